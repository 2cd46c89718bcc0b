from __future__ import annotations

import numpy as np
import pytest

from regard.tasks.series.splitting import hold_out, three_parts


def test_a_share_of_each_group_is_held_out() -> None:
    groups = np.repeat([0, 1, 2], [30, 10, 4])
    held = hold_out(groups, 0.1, 0)
    assert [int(held[groups == group].sum()) for group in range(3)] == [3, 1, 0]
    np.testing.assert_array_equal(held, hold_out(groups, 0.1, 0))
    assert (held != hold_out(groups, 0.1, 1)).any()


def test_something_is_held_out_of_small_groups() -> None:
    assert hold_out(np.array([0, 1, 2]), 0.1, 0).sum() == 1
    assert hold_out(np.array([0]), 0.1, 0).sum() == 0


@pytest.mark.parametrize("count", [3, 4, 11, 100])
@pytest.mark.parametrize("shares", [(0.1, 0.1), (0.5, 0.45), (0.01, 0.9)])
def test_three_parts_are_a_partition_without_an_empty_part(count: int, shares: tuple[float, float]) -> None:
    parts = three_parts(count, validation=shares[0], test=shares[1], seed=3)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(count))
    assert all(len(members) for members in parts.values())


def test_shares_are_kept_and_too_few_items_refused() -> None:
    parts = three_parts(200, validation=0.1, test=0.2, seed=0)
    assert {name: len(members) for name, members in parts.items()} == {"train": 140, "validation": 20, "test": 40}
    with pytest.raises(ValueError, match="at least 3 items, got 2"):
        three_parts(2, validation=0.1, test=0.1, seed=0)
