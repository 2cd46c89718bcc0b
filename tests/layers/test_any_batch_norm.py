"""Batch norm for any number of axes against PyTorch's, and its folding into convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regard.layers.any_batch_norm import AnyBatchNorm, convolved, grown
from regard.layers.same_transposed import SameConvTranspose3d
from regard.measure import contraction_macs

SPACES = [(11,), (5, 7), (2, 3, 5)]
THEIRS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def scattered(norm: nn.Module) -> None:
    """Statistics and parameters away from their start."""
    with torch.no_grad():
        for name, tensor in norm.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(0.5 + torch.rand_like(tensor) if name == "running_var" else torch.randn_like(tensor))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("training", [True, False])
def test_is_pytorchs_norm(space: tuple[int, ...], training: bool) -> None:
    ours, theirs = AnyBatchNorm(7, eps=1e-3, momentum=0.02), THEIRS[len(space)](7, eps=1e-3, momentum=0.02)
    scattered(theirs)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 7, *space)
    torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_folding_changes_nothing(space: tuple[int, ...], bias: bool, training: bool) -> None:
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(space)](5, 7, 3, padding=1, bias=bias).double()
    norm = AnyBatchNorm(7).double().train(training)
    scattered(norm)
    x = torch.randn(2, 5, *space, dtype=torch.float64)
    expected = norm(conv(x))
    torch.testing.assert_close(convolved(x, conv.weight, conv.bias, norm=norm, padding=1), expected)


def test_gradients_pass_through_the_folded_norm() -> None:
    conv, norm = nn.Conv2d(3, 5, 3, padding=1).double(), AnyBatchNorm(5).double().eval()
    scattered(norm)
    x = torch.randn(2, 3, 7, 11, dtype=torch.float64, requires_grad=True)
    leaves = (x, *conv.parameters(), *norm.parameters())
    weights = torch.randn(2, 5, 7, 11, dtype=torch.float64)
    ours = convolved(x, conv.weight, conv.bias, norm=norm, padding=1)
    expected = torch.autograd.grad((norm(conv(x)) * weights).sum(), leaves)
    torch.testing.assert_close(torch.autograd.grad((ours * weights).sum(), leaves), expected)


@pytest.mark.parametrize("space", SPACES)
def test_a_matrix_is_a_convolution_of_one_tap(space: tuple[int, ...]) -> None:
    linear, x = nn.Linear(5, 3), torch.randn(2, 5, *space)
    expected = linear(x.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(convolved(x, linear.weight, linear.bias), expected)


@pytest.mark.parametrize("batch", [1, 2])
def test_single_volumes_with_few_channels_are_convolved_alike(batch: int) -> None:
    conv = nn.Conv3d(3, 5, 3, padding=1)
    x = torch.randn(batch, 3, 7, 11, 5, requires_grad=True)
    weights = torch.randn(batch, 5, 7, 11, 5)
    ours = convolved(x, conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(ours, conv(x))
    leaves = (x, *conv.parameters())
    expected = torch.autograd.grad((conv(x) * weights).sum(), leaves)
    torch.testing.assert_close(torch.autograd.grad((ours * weights).sum(), leaves), expected, rtol=1e-4, atol=1e-4)


def test_their_products_are_counted() -> None:
    conv, x = nn.Conv3d(3, 5, 3, padding=1), torch.randn(1, 3, 7, 11, 5)
    assert contraction_macs(lambda: convolved(x, conv.weight, conv.bias, padding=1)) == 7 * 11 * 5 * 27 * 3 * 5


@pytest.mark.parametrize("training", [True, False])
def test_norms_fold_into_transposed_convolutions(training: bool) -> None:
    layer, norm = SameConvTranspose3d(3, 5).double(), AnyBatchNorm(5).double().train(training)
    scattered(norm)
    x = torch.randn(2, 3, 4, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(grown(x, layer, norm), norm(layer(x)))
    torch.testing.assert_close(grown(x, layer, None), layer(x))


def test_a_vector_is_no_map() -> None:
    with pytest.raises(ValueError, match="channels, \\*space"):
        AnyBatchNorm(3)(torch.randn(2, 3))
