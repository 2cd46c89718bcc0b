"""Routing heads: where rotation enters, what the commitment loss is over, memory slots, the compared layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regard.layers.routing_heads import RoutingHeads, parameters_version, rotate_pairs
from regard.ops.centroid_update import commitment_loss
from regard.ops.kmeans_routing import routing_attention
from regard.ops.rotary import rotate
from regard.ops.routing_form import Mode, RoutingForm

IN_MODES = pytest.mark.parametrize("mode", ["paper", "compat"])
SHARED = pytest.mark.parametrize("shared", [True, False])


def made(mode: Mode, *, causal: bool = True, shared: bool = True, **changes: Any) -> RoutingHeads:
    form = RoutingForm(window_size=4, causal=causal, shared_qk=shared, mode=mode)
    options: dict[str, Any] = {"num_heads": 2, "num_clusters": 3, "head_dim": 6, **changes}
    return RoutingHeads(form, **options).double().eval()


def qkv() -> list[Tensor]:
    return [torch.randn(2, 2, 11, 6, dtype=torch.float64) for _ in range(3)]


def test_pairs_of_neighbouring_channels_turn_together() -> None:
    x, positions = torch.randn(1, 1, 5, 6, dtype=torch.float64), torch.arange(5)[None]
    turned = rotate_pairs(x, positions, base=100.0)
    for n in range(5):
        for pair in range(3):
            angle = torch.tensor(n * 100.0 ** (-pair / 3), dtype=torch.float64)
            a, b = x[0, 0, n, 2 * pair], x[0, 0, n, 2 * pair + 1]
            torch.testing.assert_close(turned[0, 0, n, 2 * pair], a * angle.cos() - b * angle.sin())
            torch.testing.assert_close(turned[0, 0, n, 2 * pair + 1], b * angle.cos() + a * angle.sin())


@IN_MODES
@SHARED
def test_without_positions_it_is_the_operator(mode: Mode, shared: bool) -> None:
    heads = made(mode, shared=shared, num_memory=2)
    q, k, v = qkv()
    k = q if shared else k
    y = routing_attention(q, k, v, heads.centroids.means, heads.form, memory=heads.memory)
    torch.testing.assert_close(heads(heads.prepare(q, k, v)), y)


def test_compat_rotates_everything_before_it_routes() -> None:
    heads, (q, _, v), positions = made("compat", rope_base=100.0), qkv(), torch.arange(3, 14)[None]
    turned_q, turned_v = (rotate_pairs(x, positions, base=100.0) for x in (q, v))
    y = routing_attention(turned_q, turned_q, turned_v, heads.centroids.means, heads.form)
    torch.testing.assert_close(heads(heads.prepare(q, q, v, positions)), y)
    torch.testing.assert_close(heads.items(q, q, positions)[0], heads.form.items(turned_q))


def test_paper_routes_content_and_rotates_what_is_compared() -> None:
    heads, (q, k, v), positions = made("paper", shared=False, rope_base=100.0), qkv(), torch.arange(11)[None]
    routed = heads.prepare(q, k, v, positions)
    torch.testing.assert_close(routed.q_items, heads.form.items(q))
    torch.testing.assert_close(routed.q, rotate(heads.form.items(q), positions, base=100.0))
    torch.testing.assert_close(routed.k, rotate(heads.form.items(k), positions, base=100.0))
    assert routed.v is v


def test_scores_are_made_in_the_type_of_the_values() -> None:
    heads = made("paper").float()
    q, _, v = (x.float() for x in qkv())
    routed = heads.prepare(q, q, v.bfloat16())
    assert routed.q_items.dtype == torch.float32
    assert routed.q.dtype == routed.k.dtype == torch.bfloat16


@SHARED
@pytest.mark.parametrize("masked", [True, False])
def test_commitment_adds_in_paper_and_joins_in_compat(shared: bool, masked: bool) -> None:
    mask = torch.arange(11) < torch.tensor([11, 5])[:, None] if masked else None
    for mode in ("paper", "compat"):
        heads = made(mode, shared=shared, commitment=0.5)  # type: ignore[arg-type]
        q, k, _ = qkv()
        q, k = heads.items(q, q if shared else k)
        means = heads.centroids.means
        parts = [commitment_loss(x, means, mask) for x in (q, k)]
        wanted = parts[0] + parts[1] if mode == "paper" else parts[0] if shared else (parts[0] + parts[1]) / 2
        torch.testing.assert_close(heads.commitment_loss(q, k, query_mask=mask, key_mask=mask), 0.5 * wanted)


def test_one_mask_of_two_counts_the_other_sequence_whole() -> None:
    heads = made("compat", causal=False, shared=False, commitment=1.0)
    q, k, _ = qkv()
    q, k = heads.items(q, k[:, :, :7])
    mask = torch.arange(7) < torch.tensor([7, 3])[:, None]
    loss = heads.commitment_loss(q, k, key_mask=mask)
    joined = commitment_loss(
        torch.cat((q, k), dim=2), heads.centroids.means, torch.cat((torch.ones(2, 11, dtype=torch.bool), mask), dim=1)
    )
    torch.testing.assert_close(loss, joined)


def test_training_counts_and_evaluation_does_not() -> None:
    heads, (q, _, v) = made("paper"), qkv()
    heads(heads.prepare(q, q, v))
    assert heads.centroids.observed is None
    heads.train()(heads.prepare(q, q, v))
    assert heads.centroids.observed is not None
    assert float(heads.centroids.observed[0].sum()) == q.shape[0] * q.shape[1] * q.shape[2]


def test_version_changes_with_an_optimizer_step() -> None:
    heads = made("paper", num_memory=1)
    before = parameters_version(heads)
    optimizer = torch.optim.AdamW(heads.parameters())
    for parameter in heads.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert parameters_version(heads) == before
    optimizer.step()
    assert parameters_version(heads) != before


def test_loads_the_compared_layout_strictly() -> None:
    heads = made("compat", shared=False, num_memory=2)
    layout = {
        "kmeans.means": torch.randn(2, 3, 6),
        "kmeans.initted": torch.tensor(True),
        "mem_key": torch.randn(2, 3, 2, 6),
        "mem_value": torch.randn(2, 3, 2, 6),
    }
    heads.load_reference(layout)
    assert bool(heads.centroids.initialised)
    assert heads.memory_values is not None
    torch.testing.assert_close(heads.memory_values.float(), layout["mem_value"])
    made("compat").load_reference({**layout, "mem_key": torch.empty(2, 3, 0, 6), "mem_value": torch.empty(2, 3, 0, 6)})
    with pytest.raises(KeyError, match=r"unknown keys: memory_keys"):
        made("compat").load_reference(layout)


def test_a_map_cannot_show_memory_slots() -> None:
    heads = made("paper", num_memory=2)
    q, _, v = qkv()
    with pytest.raises(ValueError, match="cannot show the 2 memory slots of every cluster"):
        heads.weights(heads.prepare(q, q, v), query_mask=None, key_mask=None)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_memory": -1}, r"num_memory must not be negative, got -1"),
        ({"commitment": -0.1}, r"commitment must not be negative, got -0.1"),
        ({"head_dim": 1}, r"which must be at least 2, got 1"),
    ],
)
def test_ill_arguments_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made("paper", **changed)
