"""Directions are stored, frozen, and drawn anew after a number of training calls."""

from __future__ import annotations

import pytest
import torch

from regard.layers.random_features import RandomFeatures
from regard.ops.performer_features import exp_kernel_features, relu_kernel_features


@pytest.mark.parametrize("causal", [False, True])
def test_both_kinds_of_features(causal: bool) -> None:
    features, q, k = RandomFeatures(6, causal=causal), torch.randn(1, 2, 5, 6), torch.randn(1, 2, 5, 6)
    phi_q, phi_k = features(q, k)
    directions = features.directions
    assert directions.shape == (features.width, 6) == (10, 6)
    if causal:
        assert torch.equal(phi_q, relu_kernel_features(q, directions))
        assert torch.equal(phi_k, relu_kernel_features(k, directions))
    else:
        assert torch.equal(phi_q, exp_kernel_features(q, directions, queries=True))
        assert torch.equal(phi_k, exp_kernel_features(k, directions, queries=False))


def test_directions_change_after_the_interval_and_while_training_only() -> None:
    features, x = RandomFeatures(6, causal=True, redraw_interval=3), torch.randn(1, 1, 2, 6)
    before = features.directions
    for _ in range(3):
        features(x, x)
    assert features.directions is before
    features.eval()(x, x)
    assert features.directions is before
    stored = features.state_dict()
    assert int(stored["calls"]) == 3
    resumed = RandomFeatures(6, causal=True, redraw_interval=3)
    resumed.load_state_dict(stored)
    for module in (features.train(), resumed):
        module(x, x)
        assert not torch.equal(module.directions, before)
        assert not module.directions.requires_grad
        assert int(module.calls) == 0


def test_a_redraw_spares_the_backward_pass_of_earlier_calls() -> None:
    features, x = RandomFeatures(4, causal=True, redraw_interval=1), torch.randn(1, 1, 3, 4, requires_grad=True)
    expected = torch.autograd.grad(features(x, x)[0].sum(), x, retain_graph=True)[0]
    y = relu_kernel_features(x, features.directions)
    features(x, x)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], expected)


def test_an_ill_interval_is_named() -> None:
    with pytest.raises(ValueError, match="got 0"):
        RandomFeatures(6, causal=True, redraw_interval=0)
