"""Pooling whose gradient goes to all that are nearly the largest, against a loop over cubes."""

from __future__ import annotations

import torch

from regard.ops.tied_pooling import tied_max_pool


def gradient_by_loop(x: torch.Tensor, weights: torch.Tensor, ties: float) -> torch.Tensor:
    """Cube by cube."""
    found = torch.zeros_like(x)
    for i in range(weights.shape[0]):
        for j in range(weights.shape[1]):
            for k in range(weights.shape[2]):
                cube = (slice(2 * i, 2 * i + 2), slice(2 * j, 2 * j + 2), slice(2 * k, 2 * k + 2))
                near = (x[cube].max() - x[cube]) < ties
                found[cube] = near * weights[i, j, k]
    return found


def test_all_that_are_near_get_the_gradient() -> None:
    x = (torch.randn(4, 6, 10, dtype=torch.float64) * 4).round() / 4
    x.requires_grad_()
    weights = torch.randn(2, 3, 5, dtype=torch.float64)
    y = tied_max_pool(x[None, None], 0.3)[0, 0]
    (gradient,) = torch.autograd.grad((y * weights).sum(), x)
    torch.testing.assert_close(gradient, gradient_by_loop(x.detach(), weights, 0.3))
    assert torch.equal(y, tied_max_pool(x[None, None])[0, 0])


def test_without_ties_one_position_gets_it() -> None:
    x = torch.ones(1, 1, 2, 2, 2, requires_grad=True)
    (alone,) = torch.autograd.grad(tied_max_pool(x).sum(), x)
    (shared,) = torch.autograd.grad(tied_max_pool(x, 1e-5).sum(), x)
    assert float(alone.sum()) == 1
    assert torch.equal(shared, torch.ones_like(x))
