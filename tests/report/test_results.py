from __future__ import annotations

import pytest
from sample_results import results

from regard.report.results import read


def test_rows_come_ranked_then_unfinished_then_failed() -> None:
    race = results()
    race["rows"][2]["status"] = "unfinished"
    names = [row.name for row in read(race).rows]
    assert names == ["lssar", "softmax", "lightning", "sliding_window", "linear", "aaren", "hedgehog", "lssa"]


def test_columns_are_as_long_as_their_axis_whatever_the_file_holds() -> None:
    race = results()
    cost = race["rows"][0]["cost"]
    cost["forward_s"] = cost["forward_s"][:3]
    cost["ratio"] = [*cost["ratio"], 1.0, 2.0]
    cost["peak_bytes"] = None
    (row,) = [row for row in read(race).rows if row.name == "softmax"]
    assert row.cost is not None
    assert [len(c) for c in (row.cost.forward_s, row.cost.ratio, row.cost.peak_bytes)] == [7, 7, 7]
    assert row.cost.forward_s[3:] == (None,) * 4
    assert row.cost.longest_ratio() == (16384, 1.0)


@pytest.mark.parametrize("lengths", [[], [256, "x"], [0, 5], None, [float("nan")]])
def test_a_cost_without_lengths_is_no_cost(lengths: object) -> None:
    race = results()
    race["rows"][0]["cost"]["lengths"] = lengths
    race["rows"][0]["decode"]["positions"] = lengths
    (row,) = [row for row in read(race).rows if row.name == "softmax"]
    assert row.cost is None
    assert row.decode is None


def test_the_longest_figures_are_those_at_the_longest_place_that_was_measured() -> None:
    race = results()
    race["rows"][0]["cost"]["ratio"] = [1.0, 1.1, None, float("inf"), 1.4, None, None]
    race["rows"][0]["decode"] |= {"ratio": [1.0, None, None, None], "state_bytes": [8, 16, None, None]}
    (row,) = [row for row in read(race).rows if row.name == "softmax"]
    assert row.cost is not None
    assert row.decode is not None
    assert row.cost.longest_ratio() == (4096, 1.4)
    assert row.decode.at_longest() == (1024, None, 16)


def test_learning_curves_lose_only_the_points_that_are_not_finite() -> None:
    race = results()
    curve = race["rows"][0]["curves"][0]
    curve["train"][2] = float("nan")
    (row,) = [row for row in read(race).rows if row.name == "softmax"]
    expected = [pair for pair in zip(curve["steps"], curve["train"], strict=True) if pair[1] == pair[1]]
    assert list(row.curves[0].train) == expected
    assert len(expected) == len(curve["steps"]) - 1
