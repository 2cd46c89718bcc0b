"""The map of visible keys against its definition."""

from __future__ import annotations

import itertools

import torch

from regard.ops.visibility import run_numbers, run_starts, visible_keys

CPU = torch.device("cpu")


def test_runs_of_equal_numbers_are_counted_from_zero() -> None:
    segments = torch.tensor([[0, 0, 1, 0, 0], [3, 3, 3, 3, 3], [1, 2, 3, 3, 2]])
    assert run_numbers(segments).tolist() == [[0, 0, 1, 2, 2], [0] * 5, [0, 1, 2, 2, 3]]
    assert run_numbers(torch.tensor([[7]])).tolist() == [[0]]


def test_every_token_knows_where_its_run_starts() -> None:
    segments = torch.tensor([[0, 0, 1, 0, 0], [3, 3, 3, 3, 3], [1, 2, 3, 3, 2]])
    assert run_starts(segments).tolist() == [[0, 0, 2, 3, 3], [0] * 5, [0, 1, 2, 2, 4]]
    assert run_starts(torch.tensor([[7]])).tolist() == [[0]]


def test_every_combination_is_the_definition() -> None:
    mask = torch.tensor([[True, True, False, True, True], [True, False, True, True, False]])
    segments = torch.tensor([[0, 0, 1, 0, 0], [1, 1, 1, 2, 2]])
    runs = run_numbers(segments)
    for causal, with_mask, with_segments in itertools.product([False, True], repeat=3):
        visible = visible_keys(
            5,
            5,
            causal=causal,
            mask=mask if with_mask else None,
            segments=segments if with_segments else None,
            device=CPU,
        )
        if not (causal or with_mask or with_segments):
            assert visible is None
            continue
        assert visible is not None
        full = visible.expand(2, 1, 5, 5)
        for b, i, j in itertools.product(range(2), range(5), range(5)):
            expected = (j <= i or not causal) and (bool(mask[b, j]) or not with_mask)
            expected = expected and (bool(runs[b, i] == runs[b, j]) or not with_segments)
            assert bool(full[b, 0, i, j]) == expected


def test_fewer_queries_than_keys_end_together() -> None:
    visible = visible_keys(2, 5, causal=True, device=CPU)
    assert visible is not None
    assert visible[0, 0].tolist() == [[True] * 4 + [False], [True] * 5]
