"""Recycled attention's choice and its simulation in one pass, restated with loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regard.measure import contraction_macs
from regard.ops import recycled
from regard.ops.recycled import (
    Recycling,
    choose_keys,
    group_scores,
    in_order,
    query_similarity,
    recycled_attention,
    recycled_attention_macs,
    recycled_attention_reference,
    recycled_visible,
    simulated_choice,
    take_keys,
)
from regard.ops.softmax_attention import softmax_attention_reference
from regard.ops.visibility import visible_keys

DOUBLE = torch.float64
SIZES = [(29, 5, 3), (31, 7, 5), (23, 1, 2), (37, 4, None), (13, 12, 12), (2, 1, 3)]


def inputs(tokens: int, *, heads: int = 6, kv_heads: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((2, heads, tokens, 8), (2, kv_heads, tokens, 8), (2, kv_heads, tokens, 5))
    q, k, v = (torch.randn(shape, dtype=DOUBLE) for shape in shapes)
    return q, k, v


def by_loops(q: Tensor, k: Tensor, v: Tensor, recycling: Recycling) -> tuple[Tensor, list[list[list[list[int]]]]]:
    """Token by token and head by head, with lists; also what every group chooses."""
    batch, heads, tokens, width = q.shape
    shared = heads // k.shape[1]
    mixed = torch.zeros(batch, heads, tokens, v.shape[-1], dtype=q.dtype)
    choices: list[list[list[list[int]]]] = []
    for b in range(batch):
        choices.append([])
        for g in range(k.shape[1]):
            choices[b].append([])
            mine = range(g * shared, (g + 1) * shared)
            for i in range(tokens):
                since = i % (recycling.stride or tokens)
                if since == 0:
                    rows = torch.stack([(q[b, h, i] @ k[b, g, : i + 1].T * width**-0.5).softmax(-1) for h in mine])
                    scores = (rows.amax(0) if recycling.reduce == "max" else rows.mean(0)).tolist()
                    best = sorted(range(i), key=lambda j: scores[j])[max(0, i + 1 - recycling.top_k) :]
                    chosen = [*best, i]
                    choices[b][g].append(sorted(chosen))
                    seen = list(range(i + 1))
                else:
                    kept = chosen
                    if recycling.fixed_size:
                        kept = chosen[max(0, len(chosen) + since - recycling.top_k) :]
                    seen = sorted([*kept, *range(i - since + 1, i + 1)])
                for h in mine:
                    mixed[b, h, i] = (q[b, h, i] @ k[b, g, seen].T * width**-0.5).softmax(-1) @ v[b, g, seen]
    return mixed, choices


@pytest.mark.parametrize("fixed_size", [False, True])
@pytest.mark.parametrize("reduce", ["max", "mean"])
@pytest.mark.parametrize(("tokens", "top_k", "stride"), SIZES)
def test_simulation_is_the_definition(
    tokens: int, top_k: int, stride: int | None, reduce: Any, fixed_size: bool
) -> None:
    recycling = Recycling(top_k=top_k, stride=stride, reduce=reduce, fixed_size=fixed_size)
    q, k, v = inputs(tokens)
    expected, choices = by_loops(q, k, v, recycling)
    torch.testing.assert_close(recycled_attention(q, k, v, recycling), expected)
    torch.testing.assert_close(recycled_attention_reference(q, k, v, recycling), expected)
    chosen = in_order(simulated_choice(q, k, recycling))
    for b in range(2):
        for g in range(3):
            found = [[j for j in group if j >= 0] for group in chosen[b, g].tolist()]
            assert found == choices[b][g]


@pytest.mark.parametrize("fixed_size", [False, True])
def test_gradients_are_those_of_the_masked_square(fixed_size: bool) -> None:
    recycling = Recycling(top_k=5, stride=4, fixed_size=fixed_size)
    leaves = [x.requires_grad_() for x in inputs(27)]
    found = torch.autograd.grad(recycled_attention(*leaves, recycling).square().sum(), leaves)
    expected = torch.autograd.grad(recycled_attention_reference(*leaves, recycling).square().sum(), leaves)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("tokens", "top_k", "stride"), SIZES)
def test_pieces_change_nothing_and_macs_are_counted(
    monkeypatch: pytest.MonkeyPatch, tokens: int, top_k: int, stride: int | None
) -> None:
    recycling = Recycling(top_k=top_k, stride=stride)
    q, k, v = inputs(tokens)
    whole = recycled_attention(q, k, v, recycling)
    for at_once in (1 << 13, 1, 25):
        monkeypatch.setattr(recycled, "COLUMNS_AT_ONCE", at_once)
        torch.testing.assert_close(recycled_attention(q, k, v, recycling), whole)
        counted = contraction_macs(lambda: recycled_attention(q, k, v, recycling))
        one = recycled_attention_macs(recycling, tokens=tokens, shared=2, head_dim=8, value_dim=5)
        assert counted == 2 * 3 * one


@pytest.mark.parametrize(
    "recycling",
    [
        Recycling(top_k=17, stride=6),
        Recycling(top_k=13, stride=6),
        Recycling(top_k=1, stride=1),
        Recycling(top_k=1, stride=None),
        Recycling(top_k=17, stride=6, fixed_size=True),
    ],
)
def test_everything_is_seen_where_all_fits_or_all_steps_are_full(recycling: Recycling) -> None:
    q, k, v = inputs(17)
    assert recycling.sees_all(17)
    causal = visible_keys(17, 17, causal=True, device=q.device)
    torch.testing.assert_close(
        recycled_attention(q, k, v, recycling), softmax_attention_reference(q, k, v, visible=causal)
    )
    assert bool((recycled_visible(q, k, recycling) == causal).all())


def test_not_everything_is_seen_otherwise() -> None:
    assert not Recycling(top_k=12, stride=6).sees_all(17)
    assert not Recycling(top_k=16, stride=None, fixed_size=True).sees_all(17)
    q, k, _ = inputs(17)
    assert int(recycled_visible(q, k, Recycling(top_k=3, stride=6))[:, :, -1].sum(dim=-1).max()) == 3 + 4


def test_scores_of_a_group() -> None:
    weights = torch.tensor([[0.2, 0.8], [0.6, 0.4]]).view(1, 1, 2, 1, 2)
    torch.testing.assert_close(group_scores(weights, "max").flatten(), torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(group_scores(weights, "mean").flatten(), torch.tensor([0.4, 0.6]))


def test_the_best_keys_stand_last_and_some_are_always_or_never_chosen() -> None:
    scores = torch.tensor([[0.1, 0.4, 0.0, 0.3, 0.2]])
    assert choose_keys(scores, 3).tolist() == [[4, 3, 1]]
    assert choose_keys(scores, 3, always=torch.tensor([2])).tolist() == [[3, 1, 2]]
    allowed = torch.tensor([[True, False, True, False, False]])
    assert choose_keys(scores, 3, allowed=allowed).tolist() == [[-1, 2, 0]]
    assert choose_keys(scores, 7).tolist() == [[-1, -1, 2, 0, 4, 3, 1]]
    assert in_order(torch.tensor([[-1, 4, 3, 1]])).tolist() == [[1, 3, 4, -1]]


def test_keys_are_taken_for_every_head() -> None:
    stored = torch.arange(2 * 3 * 5 * 2.0).view(2, 3, 5, 2)
    chosen = torch.randint(0, 5, (2, 3, 4, 2))
    taken = take_keys(stored, chosen)
    for b in range(2):
        for g in range(3):
            assert torch.equal(taken[b, g], stored[b, g][chosen[b, g]])
    assert bool(take_keys(stored, torch.full((2, 3, 1), -1)).isfinite().all())


def test_similarity_is_the_mean_cosine() -> None:
    q, other = torch.randn(2, 3, 7), torch.randn(2, 3, 7)
    for b in range(2):
        cosines = [float(q[b, h] @ other[b, h] / q[b, h].norm() / other[b, h].norm()) for h in range(3)]
        assert float(query_similarity(q, other)[b]) == pytest.approx(sum(cosines) / 3, rel=1e-5)
    torch.testing.assert_close(query_similarity(q, 5 * q), torch.ones(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"stride": 0}, "stride must be at least 1, or None for never, got 0"),
        ({"reduce": "sum"}, "reduce must be one of max, mean, got 'sum'"),
        ({"threshold": 1.5}, "between -1 and 1, got 1.5"),
        ({"threshold": 0.5, "check_stride": 0}, "check_stride must be at least 1, got 0"),
        ({"check_stride": 4}, "check_stride=4 has no effect without a threshold"),
    ],
)
def test_ill_sizes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recycling(**options)
