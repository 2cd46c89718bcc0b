"""The memory's network: its gradients in closed form against autograd, token by token."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from regard.ops.memory_network import Weights, gradients_by_autograd, memory_widths, read_memory, surprise

ROWS, HEADS, TOKENS, WIDTH = 2, 3, 7, 5


def random_weights(depth: int, *, residual_norm: bool) -> Weights:
    widths = memory_widths(WIDTH, depth=depth, expansion=2)
    matrices = [torch.randn(ROWS, HEADS, *pair, dtype=torch.float64) * 0.5 for pair in pairwise(widths)]
    gain = [torch.randn(ROWS, HEADS, 1, WIDTH, dtype=torch.float64)] * residual_norm
    return (*matrices, *gain)


def keys_and_values() -> tuple[Tensor, Tensor]:
    k, v = torch.randn(2, ROWS, HEADS, TOKENS, WIDTH, dtype=torch.float64)
    return k, v


@pytest.mark.parametrize("residual_norm", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_reading_is_the_formula(depth: int, residual_norm: bool) -> None:
    weights = random_weights(depth, residual_norm=residual_norm)
    k, _ = keys_and_values()
    got = read_memory(k, weights, residual_norm=residual_norm)
    for row in range(ROWS):
        for head in range(HEADS):
            for token in range(TOKENS):
                z = k[row, head, token]
                for number in range(depth):
                    z = (gelu(z) if number else z) @ weights[number][row, head]
                if residual_norm:
                    gain = 1 + weights[-1][row, head, 0]
                    z = layer_norm(z, (WIDTH,)) * gain + k[row, head, token]
                torch.testing.assert_close(got[row, head, token], z)


@pytest.mark.parametrize("residual_norm", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_closed_form_is_vmap_over_grad(depth: int, residual_norm: bool) -> None:
    weights = random_weights(depth, residual_norm=residual_norm)
    k, v = keys_and_values()
    found = surprise(k, v, weights, residual_norm=residual_norm)
    expected = gradients_by_autograd(k, v, weights, residual_norm=residual_norm)
    for x, delta, gradient in zip(found.x, found.delta, expected, strict=True):
        torch.testing.assert_close(x[..., :, None] * delta[..., None, :], gradient)
    torch.testing.assert_close(found.error, read_memory(k, weights, residual_norm=residual_norm) - v)


@pytest.mark.parametrize("residual_norm", [False, True])
def test_summed_closed_form_is_autograd_of_the_summed_loss(residual_norm: bool) -> None:
    weights = [weight.requires_grad_() for weight in random_weights(2, residual_norm=residual_norm)]
    k, v = keys_and_values()
    loss = (read_memory(k, tuple(weights), residual_norm=residual_norm) - v).square().sum()
    expected = torch.autograd.grad(loss, weights)
    found = surprise(k, v, tuple(weights), residual_norm=residual_norm)
    for x, delta, gradient in zip(found.x, found.delta, expected, strict=True):
        torch.testing.assert_close(x.mT @ delta, gradient)


def test_long_gradients_are_shortened_and_short_ones_kept() -> None:
    weights = random_weights(2, residual_norm=False)
    k, v = keys_and_values()
    k[0, 0, 0] *= 50
    gradients = gradients_by_autograd(k, v, weights, residual_norm=False)
    limit = float(gradients[0].flatten(-2).norm(dim=-1).median())
    found = surprise(k, v, weights, residual_norm=False, limit=limit)
    for x, delta, gradient in zip(found.x, found.delta, gradients, strict=True):
        size = gradient.flatten(-2).norm(dim=-1)[..., None, None]
        torch.testing.assert_close(
            x[..., :, None] * delta[..., None, :], torch.where(size > limit, gradient * limit / size, gradient)
        )


def test_a_gradient_of_zero_has_gradients() -> None:
    weights = tuple(torch.zeros(1, 1, *pair, dtype=torch.float64, requires_grad=True) for pair in ((3, 6), (6, 3)))
    k = torch.zeros(1, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    found = surprise(k, torch.zeros_like(k), weights, residual_norm=False, limit=1.0)
    total = sum((x.mT @ delta).sum() for x, delta in zip(found.x, found.delta, strict=True))
    for gradient in torch.autograd.grad(total, (k, *weights)):
        assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("sizes", [(0, 1, 1), (3, 0, 2), (3, 2, -1)])
def test_ill_sizes_are_named(sizes: tuple[int, int, int]) -> None:
    width, depth, expansion = sizes
    with pytest.raises(ValueError, match=f"width={width}, depth={depth}, expansion={expansion}"):
        memory_widths(width, depth=depth, expansion=expansion)
