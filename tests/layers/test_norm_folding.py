"""Folded norms change nothing but the number of passes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regard.layers.norm_folding import convolve


def scattered(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """A norm away from where norms start."""
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.copy_(torch.randn_like(tensor))
        norm.running_var.copy_(torch.rand_like(norm.running_var) + 0.3)
    return norm


def parts(bias: bool, kernel: int, groups: int = 1) -> tuple[nn.BatchNorm2d, nn.Conv2d, nn.BatchNorm2d]:
    conv = nn.Conv2d(4, 6, kernel, padding=kernel // 2, groups=groups, bias=bias)
    return (
        scattered(nn.BatchNorm2d(4, eps=1e-3)).double(),
        conv.double(),
        scattered(nn.BatchNorm2d(6, eps=1e-3)).double(),
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("has_before", "has_after"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_is_norm_convolution_norm(
    bias: bool, has_before: bool, has_after: bool, training: bool, order: torch.memory_format
) -> None:
    before, conv, after = (part.train(training) for part in parts(bias, 1))
    x = torch.randn(3, 4, 5, 7, dtype=torch.float64).contiguous(memory_format=order).requires_grad_()
    expected = x
    for part in ([before] if has_before else []) + [conv] + ([after] if has_after else []):
        expected = part(expected)
    y = convolve(x, conv, before=before if has_before else None, after=after if has_after else None)
    torch.testing.assert_close(y, expected)
    weights = torch.randn_like(y)
    leaves = [x, *conv.parameters()]
    leaves += [*before.parameters()] if has_before else []
    leaves += [*after.parameters()] if has_after else []
    ours = torch.autograd.grad((y * weights).sum(), leaves)
    torch.testing.assert_close(ours, torch.autograd.grad((expected * weights).sum(), leaves))


def test_the_order_of_memory_is_kept() -> None:
    before, conv, _ = (part.eval() for part in parts(bias=True, kernel=1))
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    assert convolve(x, conv, before=before).is_contiguous()
    last = convolve(x.contiguous(memory_format=torch.channels_last), conv, before=before)
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_a_strided_or_grouped_convolution_is_no_plain_product() -> None:
    x = torch.randn(2, 4, 5, 6).contiguous(memory_format=torch.channels_last)
    for conv in (nn.Conv2d(4, 6, 1, stride=2), nn.Conv2d(4, 6, 1, groups=2), nn.Conv2d(4, 6, 1, padding=1)):
        torch.testing.assert_close(convolve(x, conv), conv(x))


def test_a_padded_convolution_folds_the_norm_behind_it() -> None:
    _, conv, after = parts(bias=False, kernel=3, groups=2)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(convolve(x, conv, after=after.eval()), after(conv(x)))


def test_a_norm_without_statistics_is_never_folded() -> None:
    conv = nn.Conv2d(4, 4, 1)
    norm = nn.BatchNorm2d(4, track_running_stats=False).eval()
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(convolve(x, conv, before=norm, after=norm), norm(conv(norm(x))))


def test_the_type_is_kept() -> None:
    before, conv, after = (part.eval().bfloat16() for part in parts(bias=True, kernel=1))
    x = torch.randn(2, 4, 3, 5, dtype=torch.bfloat16)
    y = convolve(x, conv, before=before, after=after)
    assert y.dtype == torch.bfloat16
    expected = after.float()(conv.float()(before.float()(x.float())))
    assert float(((y.float() - expected).norm() / expected.norm()).detach()) < 0.02


def test_a_norm_before_padding_is_refused() -> None:
    before, conv, _ = parts(bias=True, kernel=3)
    with pytest.raises(ValueError, match=r"a norm before a convolution needs a 1 x 1 kernel, got \(3, 3\)"):
        convolve(torch.zeros(1, 4, 3, 3, dtype=torch.float64), conv, before=before.eval())
