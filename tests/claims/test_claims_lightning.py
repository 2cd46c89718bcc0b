"""The forms that lightning's claims race compute the same, and the networks that they train are of one size."""

from __future__ import annotations

import pytest
import torch

from regard.claims.lightning import cumsum_linear_attention, quadratic_in_strips, small_network, validation_losses
from regard.ops.linear_attention import linear_attention_reference


def test_what_is_raced_computes_the_same() -> None:
    q, k = torch.randn(2, 1, 3, 1031, 5).double()
    v = torch.randn(1, 3, 1031, 7).double()
    torch.testing.assert_close(cumsum_linear_attention(q, k, v), linear_attention_reference(q, k, v))
    strips = quadratic_in_strips(q[0, 1], k[0, 1], v[0, 1], 0.3)
    torch.testing.assert_close(strips, linear_attention_reference(q, k, v, slopes=(0.0, 0.3, 1.0))[0, 1])


@pytest.mark.parametrize("kind", ["tnl", "elu"])
def test_networks_that_are_compared_have_equally_many_parameters(kind: str) -> None:
    sizes = [sum(p.numel() for p in small_network(name).parameters()) for name in (kind, "softmax")]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)
    assert sizes[0] <= sizes[1]


def test_losses_are_measured_for_every_seed() -> None:
    losses = validation_losses("tnl", steps=1, evaluated=1024)
    assert len(set(losses)) == 3
    assert all(4 < loss < 7 for loss in losses)
