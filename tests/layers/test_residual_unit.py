"""The residual unit against its formula in functions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from regard.layers.residual_unit import ResidualUnit


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean, variance = x.mean(dim=(0, 2, 3), keepdim=True), x.var(dim=(0, 2, 3), keepdim=True, unbiased=False)
    return (x - mean) / (variance + 1e-5).sqrt() * weight[:, None, None] + bias[:, None, None]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("activate_input", [True, False])
def test_is_the_formula(stride: int, activate_input: bool) -> None:
    unit = ResidualUnit(3, 5, stride=stride, activate_input=activate_input).double()
    with torch.no_grad():
        for parameter in unit.parameters():
            parameter.copy_(torch.randn_like(parameter))
    x = torch.randn(2, 3, 7, 11, dtype=torch.float64, requires_grad=True)
    own = dict(unit.named_parameters())
    inner = batch_norm(x, own["bn1.weight"], own["bn1.bias"]).relu() if activate_input else x
    inner = F.conv2d(inner, own["conv1.weight"], stride=stride, padding=1)
    inner = batch_norm(inner, own["bn2.weight"], own["bn2.bias"]).relu()
    projected = F.conv2d(x, own["shortcut.0.weight"], stride=stride)
    expected = F.conv2d(inner, own["conv2.weight"], padding=1)
    expected = expected + batch_norm(projected, own["shortcut.1.weight"], own["shortcut.1.bias"])
    actual = unit(x)
    torch.testing.assert_close(actual, expected)
    weights, wanted = torch.randn_like(actual), (x, *own.values())
    torch.testing.assert_close(
        torch.autograd.grad((actual * weights).sum(), wanted), torch.autograd.grad((expected * weights).sum(), wanted)
    )


def test_leaves_its_input_alone() -> None:
    x = torch.randn(2, 3, 5, 5)
    before = x.clone()
    ResidualUnit(3, 4)(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("sizes", [(0, 3, 1), (3, 0, 1), (3, 3, 0)], ids=str)
def test_ill_sizes_are_named(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="channels and stride must be positive"):
        ResidualUnit(sizes[0], sizes[1], stride=sizes[2])
