"""Routing between two sequences: the operator between projections, dense attention with one cluster, masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regard.mixers.sequence.routing_cross import RoutingCrossAttention
from regard.ops.kmeans_routing import routing_attention


def made(**changes: Any) -> RoutingCrossAttention:
    options: dict[str, Any] = {"num_heads": 3, "num_clusters": 4, "window_size": 5, **changes}
    return RoutingCrossAttention(18, **options).double().eval()


def sample(tokens: int) -> Tensor:
    return torch.randn(2, tokens, 18, dtype=torch.float64)


@pytest.mark.parametrize("mode", ["paper", "compat"])
@pytest.mark.parametrize("slots", [0, 2])
def test_is_the_operator_between_projections(mode: str, slots: int) -> None:
    mixer, x, context = made(mode=mode, num_memory=slots, head_dim=4), sample(13), sample(7)
    mask = torch.arange(7) < torch.tensor([7, 3])[:, None]
    q, k, v = (
        projection(source).unflatten(-1, (3, 4)).transpose(1, 2)
        for projection, source in ((mixer.q_proj, x), (mixer.k_proj, context), (mixer.v_proj, context))
    )
    heads = mixer.routing
    mixed = routing_attention(q, k, v, heads.centroids.means, heads.form, key_mask=mask, memory=heads.memory)
    torch.testing.assert_close(mixer(x, context=context, mask=mask), mixer.o_proj(mixed.transpose(1, 2).flatten(2)))


def test_one_cluster_sees_the_whole_context() -> None:
    mixer, x, context = made(num_clusters=1, window_size=40), sample(13), sample(7)
    weights = mixer.attention_map(x, context=context)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 3, 13, dtype=torch.float64))
    assert bool((weights > 0).all())


def test_training_counts_both_sequences() -> None:
    mixer = made().train()
    mixer(sample(13), context=sample(7))
    observed = mixer.routing.centroids.observed
    assert observed is not None
    assert observed[0].sum(dim=-1).tolist() == [40.0] * 3
    before = mixer.routing.centroids.means.clone()
    mixer.update_centroids()
    assert not torch.equal(mixer.routing.centroids.means, before)


def test_commitment_loss_is_over_both_sequences() -> None:
    mixer, x, context = made(commitment=1.0), sample(13), sample(7)
    loss = mixer.commitment_loss(x, context=context)
    gradients = torch.autograd.grad(loss, (mixer.q_proj.weight, mixer.k_proj.weight))
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients)
    mask = torch.arange(7) < 4
    torch.testing.assert_close(
        mixer.commitment_loss(x, context=context, mask=mask.expand(2, 7)),
        mixer.commitment_loss(x, context=context[:, :4]),
    )


def test_a_cluster_with_one_key_leaves_nothing_to_compare() -> None:
    assert made(window_size=1).inert_parameters() == {"q_proj.weight", "k_proj.weight"}
    assert made(window_size=1, num_memory=1).inert_parameters() == set()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"causal": True}, r"refuses causal=True: a context has no order"),
        ({"head_dim": 0}, r"head_dim must be positive, got 0"),
        ({"attn_drop": -0.5}, r"attn_drop must be in \[0, 1\), got -0.5"),
        ({"num_clusters": -2}, r"num_clusters must be positive, got -2"),
    ],
)
def test_ill_arguments_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**changed)
