"""Logarithmic buckets of distances and rows of tables, restated with plain numbers."""

from __future__ import annotations

import math

import pytest
import torch

from regard.ops.relative_buckets import check_relation, log_buckets, log_rows, lowest_bucket


def bucket_by_hand(distance: int, num_buckets: int, max_distance: int) -> int:
    half, far = num_buckets // 2, abs(distance)
    exact = half // 2
    if far >= exact:
        shared = math.floor(math.log(far / exact) / math.log(max_distance / exact) * (half - exact) + 1e-9)
        far = min(exact + shared, half - 1)
    return far if distance >= 0 else -far


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(64, 128), (16, 24), (8, 100), (4, 2)])
def test_buckets_are_the_formula(num_buckets: int, max_distance: int) -> None:
    distance = torch.arange(-311, 312)
    found = log_buckets(distance, num_buckets=num_buckets, max_distance=max_distance)
    # at a border of two buckets the rounding of float32 decides; the stored cases cover the compared code's
    borders = {
        round(num_buckets // 4 * (max_distance / (num_buckets // 4)) ** (step / (num_buckets // 4)))
        for step in range(num_buckets // 4 + 1)
    }
    for place, bucket in zip(distance.tolist(), found.tolist(), strict=True):
        if abs(place) not in borders or abs(place) <= num_buckets // 4:
            assert bucket == bucket_by_hand(place, num_buckets, max_distance), place


def test_rows_leave_two_between_past_and_present() -> None:
    lowest = lowest_bucket(40, num_buckets=16, max_distance=24)
    rows = log_rows(torch.arange(-39, 40), num_buckets=16, max_distance=24, lowest=lowest)
    assert rows.min() == 0
    assert rows.max() == 16
    assert rows[38] == 6
    assert rows[39] == 9
    assert rows[39:].tolist() == sorted(rows[39:].tolist())


def test_few_positions_begin_at_row_0_as_well() -> None:
    for positions in (1, 2, 5):
        lowest = lowest_bucket(positions, num_buckets=16, max_distance=24)
        distance = torch.arange(1 - positions, positions)
        assert log_rows(distance, num_buckets=16, max_distance=24, lowest=lowest).min() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relation": "linear"}, "unique, log, got 'linear'"),
        ({"max_positions": 0}, "max_positions must be positive, got 0"),
        ({"relation": "log", "num_buckets": 2}, "even number of at least 4, got 2"),
        ({"relation": "log", "num_buckets": 7}, "even number of at least 4, got 7"),
        ({"relation": "log", "max_distance": 16}, "must exceed num_buckets // 4 = 16, got 16"),
    ],
)
def test_ill_options_are_named(options: dict[str, object], message: str) -> None:
    given = {"relation": "unique", "max_positions": 9, "num_buckets": 64, "max_distance": 128, **options}
    with pytest.raises(ValueError, match=message):
        check_relation(given.pop("relation"), **given)
