"""Routing attention against loops over clusters, its map, memory slots, padding, grouped heads and its cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regard.measure import contraction_macs
from regard.ops.kmeans_routing import (
    Members,
    attend_in_clusters,
    compared,
    find_members,
    nearest_tokens,
    routed_weights,
    routing_attention,
    routing_macs,
    scatter_mean,
    similarities,
)
from regard.ops.routing_form import Mode, RoutingForm

FORMS = pytest.mark.parametrize("causal", [True, False])
SHARED = pytest.mark.parametrize("shared", [True, False])
IN_MODES = pytest.mark.parametrize("mode", ["paper", "compat"])


def inputs(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def by_loops(
    q: Tensor, k: Tensor, v: Tensor, mu: Tensor, form: RoutingForm, *, real: int | None = None, memory: Any = None
) -> Tensor:
    """One row and one head, a token and a cluster at a time; only the first `real` tokens exist."""
    if form.mode == "paper":
        q, k = (x - x.mean(-1, keepdim=True) for x in (q, k))
        q, k = (x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
        q_items, k_items = q, k
    else:
        q_items, k_items = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
        k = k_items if form.shared_qk else k
    queries, keys = real or len(q), real or len(k)
    found: list[list[Tensor]] = [[] for _ in range(len(q))]
    for c in range(len(mu)):
        members = sorted(range(queries), key=lambda i: -float((q_items[i] @ mu[c]).detach()))[: form.window_size]
        held = members if form.shared_qk else sorted(range(keys), key=lambda j: -float((k_items[j] @ mu[c]).detach()))
        held = held[: form.window_size]
        for i in members:
            seen = [j for j in held if not form.causal or j <= i]
            scores = [q[i] @ k[j] / q.shape[-1] ** 0.5 for j in seen]
            if form.mode == "compat" and form.shared_qk and len(seen) > 1:
                scores = [score for j, score in zip(seen, scores, strict=True) if j != i]
                seen = [j for j in seen if j != i]
            rows = [v[j] for j in seen]
            if memory is not None:
                scores += [q[i] @ slot / q.shape[-1] ** 0.5 for slot in memory[0][c]]
                rows += list(memory[1][c])
            if rows:
                found[i].append(torch.stack(scores).softmax(dim=0) @ torch.stack(rows))
    more = 0.0 if form.mode == "paper" else 1e-5
    return torch.stack(
        [torch.stack(each).sum(dim=0) / (len(each) + more) if each else torch.zeros_like(v[0]) for each in found]
    )


@FORMS
@SHARED
@IN_MODES
@pytest.mark.parametrize(("tokens", "clusters", "window"), [(17, 3, 5), (11, 1, 40), (1, 2, 1), (13, 5, 1)])
def test_is_the_loop(causal: bool, shared: bool, mode: Mode, tokens: int, clusters: int, window: int) -> None:
    form = RoutingForm(window_size=window, causal=causal, shared_qk=shared, mode=mode)
    q, k, v, mu = inputs((2, 3, tokens, 6), (2, 3, tokens, 6), (2, 3, tokens, 7), (3, clusters, 6))
    k = q if shared else k
    y = routing_attention(q, k, v, mu, form)
    for row in range(2):
        for head in range(3):
            expected = by_loops(q[row, head], k[row, head], v[row, head], mu[head], form)
            torch.testing.assert_close(y[row, head], expected)


@FORMS
@IN_MODES
def test_memory_slots_are_seen_by_all(causal: bool, mode: Mode) -> None:
    form = RoutingForm(window_size=4, causal=causal, shared_qk=False, mode=mode)
    q, k, v, mu, keys, values = inputs((1, 2, 13, 6), (1, 2, 13, 6), (1, 2, 13, 6), (2, 3, 6), *[(2, 3, 2, 6)] * 2)
    y = routing_attention(q, k, v, mu, form, memory=(keys, values))
    for head in range(2):
        memory = (keys[head], values[head])
        torch.testing.assert_close(
            y[0, head], by_loops(q[0, head], k[0, head], v[0, head], mu[head], form, memory=memory)
        )


@FORMS
@SHARED
@IN_MODES
def test_padding_takes_no_place(causal: bool, shared: bool, mode: Mode) -> None:
    form = RoutingForm(window_size=6, causal=causal, shared_qk=shared, mode=mode)
    q, k, v, mu = inputs((3, 1, 14, 6), (3, 1, 14, 6), (3, 1, 14, 6), (1, 4, 6))
    k = q if shared else k
    mask = torch.arange(14) < torch.tensor([14, 8, 3])[:, None]
    y = routing_attention(q, k, v, mu, form, query_mask=mask, key_mask=mask)
    for row, real in enumerate((14, 8, 3)):
        expected = by_loops(q[row, 0], k[row, 0], v[row, 0], mu[0], form, real=real)
        torch.testing.assert_close(y[row, 0, :real], expected[:real])


def test_queries_and_keys_of_two_sequences() -> None:
    form = RoutingForm(window_size=5, causal=False, shared_qk=False)
    q, k, v, mu = inputs((2, 2, 11, 6), (2, 2, 7, 6), (2, 2, 7, 3), (2, 3, 6))
    mask = torch.arange(7) < torch.tensor([7, 4])[:, None]
    y = routing_attention(q, k, v, mu, form, key_mask=mask)
    assert y.shape == (2, 2, 11, 3)
    alone = routing_attention(q[1:], k[1:, :, :4], v[1:, :, :4], mu, form)
    torch.testing.assert_close(y[1:], alone)


@FORMS
@SHARED
@IN_MODES
def test_map_times_values_is_the_attention(causal: bool, shared: bool, mode: Mode) -> None:
    form = RoutingForm(window_size=6, causal=causal, shared_qk=shared, mode=mode)
    q, k, v, mu = inputs((2, 3, 19, 6), (2, 3, 19, 6), (2, 3, 19, 6), (3, 4, 6))
    k = q if shared else k
    q_items, k_items = form.items(q), form.items(k)
    members = find_members(q_items, k_items, mu, form)
    pair = compared(q, k, q_items, k_items, form)
    weights = routed_weights(*pair, members, form)
    torch.testing.assert_close(weights @ v, attend_in_clusters(*pair, v, members, form))
    if causal:
        assert float(weights.triu(1).abs().max()) == 0


def test_fewer_key_heads_are_shared() -> None:
    form = RoutingForm(window_size=4, causal=True, shared_qk=False)
    q, k, v, mu = inputs((1, 4, 13, 6), (1, 2, 13, 6), (1, 2, 13, 6), (4, 3, 6))
    whole = routing_attention(q, k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1), mu, form)
    torch.testing.assert_close(routing_attention(q, k, v, mu, form), whole)


def test_gradients_are_those_of_the_loop() -> None:
    form = RoutingForm(window_size=4, causal=True, shared_qk=True, mode="compat")
    q, v, mu = (x.requires_grad_() for x in inputs((1, 1, 11, 6), (1, 1, 11, 6), (1, 3, 6)))
    weights = torch.randn(11, 6, dtype=torch.float64)
    ours = torch.autograd.grad((routing_attention(q, q, v, mu, form)[0, 0] * weights).sum(), (q, v))
    theirs = torch.autograd.grad((by_loops(q[0, 0], q[0, 0], v[0, 0], mu[0], form) * weights).sum(), (q, v))
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected)


def test_members_are_the_most_similar_tokens_in_the_order_of_time() -> None:
    similarity = torch.tensor([[[[0.3, 0.9, -1.0, 0.5, 0.8]]]])
    assert nearest_tokens(similarity, 3).tolist() == [[[[1, 4, 3]]]]
    assert nearest_tokens(similarity, 9).shape[-1] == 5
    assert nearest_tokens(torch.tensor([0.5, 1.0] * 200).expand(1, 1, 1, -1), 5).tolist() == [[[[1, 3, 5, 7, 9]]]]
    items, mu = similarity[0].transpose(1, 2)[None], torch.ones(1, 1, 1)
    form = RoutingForm(window_size=3, causal=True, shared_qk=True)
    members = find_members(items, items, mu, form)
    assert members.queries.tolist() == [[[[1, 3, 4]]]]
    masked = similarities(items, mu, torch.tensor([[True, False, True, True, True]]))
    assert masked[0, 0, 0, 1] == -torch.inf


def test_mean_over_clusters_and_nothing_outside_them() -> None:
    mixed = torch.tensor([[[[[2.0], [4.0]], [[6.0], [8.0]]]]])
    chosen = torch.tensor([[[[0, 2], [2, 3]]]])
    assert scatter_mean(mixed, chosen, 5, epsilon=0.0).flatten().tolist() == [2.0, 0.0, 5.0, 8.0, 0.0]
    shrunk = scatter_mean(mixed, chosen, 5, epsilon=1.0).flatten()
    torch.testing.assert_close(shrunk, torch.tensor([1.0, 0.0, 10 / 3, 4.0, 0.0]))
    counted = torch.tensor([[[[1.0, 0.0], [1.0, 1.0]]]])
    assert scatter_mean(mixed, chosen, 5, epsilon=0.0, counted=counted).flatten().tolist() == [2.0, 0.0, 6.0, 8.0, 0.0]


def test_a_cluster_without_visible_keys_does_not_count() -> None:
    form = RoutingForm(window_size=1, causal=True, shared_qk=False)
    q, k, v = inputs((1, 1, 4, 6), (1, 1, 4, 6), (1, 1, 4, 6))
    members = Members(torch.tensor([[[[1], [1]]]]), torch.tensor([[[[3], [0]]]]))
    y = attend_in_clusters(q, k, v, members, form)
    torch.testing.assert_close(y[0, 0, 1], v[0, 0, 0])
    assert float(y[0, 0, [0, 2, 3]].abs().max()) == 0


def test_dropout_drops_weights() -> None:
    form = RoutingForm(window_size=6, causal=True, shared_qk=True)
    q, v, mu = inputs((1, 1, 12, 6), (1, 1, 12, 6), (1, 2, 6))
    members = find_members(form.items(q), form.items(q), mu, form)
    plain = attend_in_clusters(q, q, v, members, form)
    assert not torch.allclose(attend_in_clusters(q, q, v, members, form, dropout=0.5), plain)


@FORMS
@SHARED
@pytest.mark.parametrize("slots", [0, 2])
def test_cost_is_what_is_counted(causal: bool, shared: bool, slots: int) -> None:
    form = RoutingForm(window_size=5, causal=causal, shared_qk=shared)
    q, k, v, mu = (torch.randn(shape) for shape in ((1, 1, 31, 6), (1, 1, 31, 6), (1, 1, 31, 7), (1, 4, 6)))
    memory = (torch.randn(1, 4, slots, 6), torch.randn(1, 4, slots, 7)) if slots else None
    counted = contraction_macs(lambda: routing_attention(q, k, v, mu, form, memory=memory))
    claimed = routing_macs(form, clusters=4, tokens=31, keys=31, head_dim=6, value_dim=7, slots=slots)
    assert claimed == counted
