"""Columns of keys and keys of columns against the formula, and the choice against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from regard.ops.column_choice import (
    POOLINGS,
    Choice,
    Pooling,
    budgets,
    choose_columns,
    choose_columns_reference,
    column_starts,
    columns_of_keys,
    resize_to_keys,
    thinned_keys,
)


def column_by_formula(key: int, seen: int, columns: int) -> int:
    return max(0, math.floor((key + 0.5) / seen * columns - 1e-4))


@pytest.mark.parametrize("columns", [1, 4, 16, 127, 128])
def test_keys_and_columns_agree_with_the_formula(columns: int) -> None:
    seen = [1, 2, 3, 5, 16, 17, 97, 128, 129, 300]
    lengths = torch.tensor([seen])
    found = columns_of_keys(lengths, 300, columns)
    starts = column_starts(lengths, columns)
    for row, length in enumerate(seen):
        expected = [column_by_formula(key, length, columns) for key in range(length)]
        assert found[0, row].tolist() == expected + [columns] * (300 - length)
        assert starts[0, row].tolist() == [sum(column < m for column in expected) for m in range(columns + 1)]


def test_a_query_that_sees_nothing_has_no_keys() -> None:
    lengths = torch.tensor([[0]])
    assert column_starts(lengths, 5).tolist() == [[[0] * 6]]
    assert columns_of_keys(lengths, 3, 5).tolist() == [[[5] * 3]]


def test_no_query_keeps_more_than_the_bound() -> None:
    for pooling in ("causal_batch", "query"):
        choice = Choice(heads=3, columns=8, kept=4, pooling=pooling)
        for seen in range(1, 200):
            widths = column_starts(torch.tensor([[seen]]), 8).diff()[0, 0].sort(descending=True).values.tolist()
            share, parts = choice.shared_heads, 3 // choice.shared_heads
            most = parts * sum(sorted(widths * share, reverse=True)[: choice.most_columns(seen)])
            assert most <= choice.most_keys(seen, seen)
            assert most <= choice.most_keys(max(1, seen - 30), seen + 50)


def chosen_by_loops(estimate: Tensor, lengths: Tensor, choice: Choice) -> Tensor:
    """For every group of the pooling: sort by size, then by place, and take the budget."""
    batch, heads, queries, columns = estimate.shape
    chosen = torch.zeros_like(estimate, dtype=torch.bool)
    groups: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                key = {"causal_batch": (b, i), "query": (b, h, i), "head": (b, h), "batch": (b,)}[choice.pooling]
                groups.setdefault(key, []).extend((h, i, m) for m in range(columns))
    for key, members in groups.items():
        b = key[0]
        seen = (
            float(lengths[b if len(lengths) > 1 else 0, key[-1]]) if choice.pooling in ("causal_batch", "query") else 1
        )
        shared = heads if choice.pooling in ("causal_batch", "batch") else 1
        budget = max(1, round(choice.kept * choice.oversample * columns / seen * shared))
        members.sort(key=lambda place: (-float(estimate[(b, *place)]), place))
        for place in members[:budget]:
            chosen[(b, *place)] = True
    return chosen


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("ties", [False, True])
def test_choice_is_the_sorted_one(pooling: Pooling, ties: bool) -> None:
    choice = Choice(heads=3, columns=5, kept=2, pooling=pooling)
    estimate = torch.rand(2, 3, 7, 5)
    estimate = (estimate * 3).floor() if ties else estimate
    lengths = torch.tensor([[7] * 7, [4] * 7]) if pooling != "causal_batch" else torch.arange(1, 8)[None]
    expected = chosen_by_loops(estimate, lengths, choice)
    assert torch.equal(choose_columns_reference(estimate, lengths, choice), expected)
    assert torch.equal(choose_columns(estimate, lengths, choice), expected)
    assert torch.equal(choose_columns(estimate, lengths, choice, shortest=int(lengths.min())), expected)


def test_rows_that_are_not_real_choose_nothing() -> None:
    choice, real = Choice(heads=2, columns=4, kept=1), torch.tensor([[True, False, True]])
    for form in (choose_columns, choose_columns_reference):
        chosen = form(torch.rand(1, 2, 3, 4), torch.tensor([[3, 3, 3]]), choice, real=real)
        assert chosen[0, :, 1].sum() == 0
        assert chosen[0, :, 0].sum() == budgets(choice, torch.tensor([[3, 3, 3]]))[0, 0]


def test_resizing_repeats_columns_and_fills_the_rest() -> None:
    x, lengths = torch.rand(2, 3, 2, 4), torch.tensor([[7, 3]])
    found = resize_to_keys(x, lengths, 9, fill=-5.0)
    for row, seen in enumerate((7, 3)):
        for key in range(9):
            column = column_by_formula(key, seen, 4)
            expected = x[:, :, row, column] if key < seen else torch.full((2, 3), -5.0)
            assert torch.equal(found[:, :, row, key], expected)


def test_jitter_moves_keys_by_at_most_one_place() -> None:
    lengths = torch.tensor([[5, 29]])
    moved = columns_of_keys(lengths, 29, 12, jitter=0.75 * (2 * torch.rand(29) - 1))
    still = columns_of_keys(lengths, 29, 12)
    assert not torch.equal(moved, still)
    for row, seen in enumerate((5, 29)):
        assert (moved[0, row, seen:] == 12).all()
        for key in range(seen):
            low, high = max(key - 1, 0), min(key + 1, seen - 1)
            assert still[0, row, low] <= moved[0, row, key] <= still[0, row, high]


def test_thinning_keeps_about_one_in_oversample() -> None:
    choice = Choice(heads=1, columns=8, kept=10, oversample=2.0)
    seen = torch.tensor(200)
    kept = thinned_keys(choice, torch.arange(200), seen)
    assert abs(int(kept.sum()) - 100) <= 2
    assert thinned_keys(Choice(heads=1, columns=8, kept=10), torch.arange(200), seen).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kept": 0}, "at least 1 key must be kept per query and head, got 0"),
        ({"pooling": "rows"}, "must be one of causal_batch, query, head, batch, got 'rows'"),
        ({"oversample": 0.5}, "oversample must be at least 1, got 0.5"),
        ({"heads": 0}, "heads=0 and columns=4"),
    ],
)
def test_ill_choices_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Choice(**{"heads": 2, "columns": 4, "kept": 3, **options})  # type: ignore[arg-type]
