"""Routing among the tokens so far, against routing every prefix anew; chunks, ties, padding and cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regard.measure import contraction_macs
from regard.ops.kmeans_routing import similarities
from regard.ops.prefix_routing import (
    PrefixRouter,
    no_members,
    prefix_routed_attention,
    prefix_routed_weights,
    prefix_routing_macs,
)
from regard.ops.routing_form import Mode, RoutingForm


def inputs(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def every_prefix(
    q: Tensor, k: Tensor, v: Tensor, query_scores: Tensor, key_scores: Tensor, form: RoutingForm
) -> Tensor:
    """One row and one head: for every token the clusters are filled anew."""
    rows = []
    for t in range(len(q)):
        found = []
        for c in range(len(query_scores)):
            # of equal similarities the earlier token stays
            held = sorted(range(t + 1), key=lambda i: (-float(query_scores[c, i]), i))[: form.window_size]
            keys = sorted(range(t + 1), key=lambda i: (-float(key_scores[c, i]), i))[: form.window_size]
            if t not in held:
                continue
            if form.avoids_own_key and len(keys) > 1:
                keys = [key for key in keys if key != t]
            found.append((q[t] @ k[keys].T / q.shape[-1] ** 0.5).softmax(dim=-1) @ v[keys])
        more = 0.0 if form.mode == "paper" else 1e-5
        rows.append(sum(found) / (len(found) + more) if found else torch.zeros_like(v[0]))
    return torch.stack(rows)  # type: ignore[arg-type]


def run(
    q: Tensor, k: Tensor, v: Tensor, scores: tuple[Tensor, Tensor], form: RoutingForm, chunks: list[int], places: int
) -> Tensor:
    batch, heads, clusters = scores[0].shape[:3]
    router = PrefixRouter(no_members(batch, torch.zeros(heads, clusters, 1, dtype=q.dtype), places), form)
    parts, start = [], 0
    for chunk in chunks:
        rows = slice(start, start + chunk)
        parts.append(
            prefix_routed_attention(
                q[:, :, rows],
                k,
                v,
                *(each[..., rows] for each in scores),
                router,
                form,
                first=torch.full((batch,), start),
                places=places or None,
            )
        )
        start += chunk
    return torch.cat(parts, dim=2)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("mode", ["paper", "compat"])
@pytest.mark.parametrize("chunks", [[41], [1] * 41, [17, 1, 3, 20]])
def test_every_chunking_is_the_clusters_of_every_prefix(shared: bool, mode: Mode, chunks: list[int]) -> None:
    form = RoutingForm(window_size=5, causal=True, shared_qk=shared, mode=mode)
    q, k, v, mu = inputs((2, 2, 41, 6), (2, 2, 41, 6), (2, 2, 41, 7), (2, 3, 6))
    scores = similarities(q, mu)
    pair = (scores, scores if shared else similarities(k, mu))
    y = run(q, k, v, pair, form, chunks, places=0 if len(chunks) == 1 else 5)
    for row in range(2):
        for head in range(2):
            part = (x[row, head] for x in (q, k, v, *pair))
            torch.testing.assert_close(y[row, head], every_prefix(*part, form))


def test_of_equal_similarities_the_earlier_stays() -> None:
    form = RoutingForm(window_size=3, causal=True, shared_qk=True)
    q, v = inputs((1, 1, 23, 6), (1, 1, 23, 6))
    scores = torch.randint(0, 3, (1, 1, 2, 23)).double()
    expected = every_prefix(q[0, 0], q[0, 0], v[0, 0], scores[0, 0], scores[0, 0], form)
    for chunks in ([23], [1] * 23, [20, 3]):
        torch.testing.assert_close(run(q, q, v, (scores, scores), form, chunks, places=3)[0, 0], expected)


def test_map_times_values_is_the_attention() -> None:
    form = RoutingForm(window_size=4, causal=True, shared_qk=True, mode="compat")
    q, v, mu = inputs((2, 2, 37, 6), (2, 2, 37, 6), (2, 3, 6))
    scores = similarities(q, mu)
    weights = prefix_routed_weights(q, q, scores, scores, PrefixRouter(no_members(2, mu, 0), form), form)
    torch.testing.assert_close(weights @ v, run(q, q, v, (scores, scores), form, [37], places=0))
    assert float(weights.triu(1).abs().max()) == 0


def test_padding_is_never_held() -> None:
    form = RoutingForm(window_size=4, causal=True, shared_qk=True)
    q, v, mu = inputs((2, 1, 19, 6), (2, 1, 19, 6), (1, 3, 6))
    mask = torch.arange(19) < torch.tensor([19, 7])[:, None]
    scores = similarities(q, mu, mask)
    router = PrefixRouter(no_members(2, mu, 4), form)
    first = torch.zeros(2, dtype=torch.int64)
    y = prefix_routed_attention(q, q, v, scores, scores, router, form, first=first, places=4)
    torch.testing.assert_close(
        y[1:, :, :7], run(*(x[1:, :, :7] for x in (q, q, v)), (scores[1:, ..., :7],) * 2, form, [7], 0)
    )
    assert int(router.members.places[1].max()) < 7
    assert bool((router.members.keys[1] > -torch.inf).all())


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("tokens", [1, 16, 53])
def test_cost_is_what_is_counted(shared: bool, tokens: int) -> None:
    form = RoutingForm(window_size=5, causal=True, shared_qk=shared)
    q, k, v, mu = (torch.randn(shape) for shape in ((1, 1, tokens, 6),) * 2 + ((1, 1, tokens, 7), (1, 4, 6)))

    def call() -> Tensor:
        scores = similarities(q, mu)
        pair = (scores, scores if shared else similarities(k, mu))
        router = PrefixRouter(no_members(1, mu, 0), form)
        return prefix_routed_attention(q, k, v, *pair, router, form, first=torch.zeros(1, dtype=torch.int64))

    assert prefix_routing_macs(form, clusters=4, tokens=tokens, head_dim=6, value_dim=7) == contraction_macs(call)


def test_refuses_a_form_without_causality() -> None:
    form = RoutingForm(window_size=5, causal=False, shared_qk=True)
    with pytest.raises(ValueError, match="choosing among the tokens so far needs causal=True"):
        PrefixRouter(no_members(1, torch.zeros(1, 2, 3), 0), form)
