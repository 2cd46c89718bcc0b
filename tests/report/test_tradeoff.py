from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
from sample_results import results

from regard.report.charts import entries
from regard.report.results import read
from regard.report.tradeoff import PAGE_FRAME, Frame, Tradeoff, tradeoff
from regard.report.wording import QualityWords


def found(race: dict[str, Any], frame: Frame = PAGE_FRAME) -> Tradeoff:
    typed = read(race)
    answer = tradeoff(typed, entries(typed), QualityWords(typed.metric, typed.lower_is_better), frame)
    assert answer is not None
    return answer


def crowd(count: int) -> dict[str, Any]:
    race = results()
    rows = [copy.deepcopy(race["rows"][0]) for _ in range(count)]
    for index, row in enumerate(rows):
        row["name"] = f"mechanism_{index}"
        row["quality"]["mean"] = 2.0 + 0.01 * (index * 7 % count)
        row["cost"]["ratio"] = [1 + 0.02 * (index * 5 % count)] * 7
    race["rows"] = rows
    return race


@pytest.mark.parametrize("count", [1, 7, 13])
def test_names_cover_neither_each_other_nor_a_marker(count: int) -> None:
    trade = found(crowd(count))
    width, height = PAGE_FRAME.width, PAGE_FRAME.height
    boxes = []
    for spot, place in zip(trade.spots, trade.labels, strict=True):
        x, y = trade.x.fraction(spot.cost) * width, trade.y.fraction(spot.quality) * height
        boxes.append((x - 5, y - 5, x + 5, y + 5))
        if place:
            row, column = place.split()
            long = 6.5 * len(spot.entry.row.name)
            left = {"center": x - long / 2, "right": x + 7, "left": x - 7 - long}[column]
            bottom = {"top": y + 7, "middle": y - 7, "bottom": y - 21}[row]
            boxes.append((left, bottom, left + long, bottom + 14))
    assert len(boxes) > count
    for a, b in itertools.combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_a_crowd_is_named_by_the_legend_alone() -> None:
    assert set(found(crowd(15)).labels) == {""}


def test_every_mechanism_of_a_usual_race_is_named() -> None:
    assert all(found(results()).labels)


def test_a_failed_row_and_one_without_a_ratio_are_left_out() -> None:
    race = results()
    race["rows"][0]["status"] = "failed"
    race["rows"][1]["cost"]["ratio"] = [None] * 7
    race["rows"][2]["quality"]["mean"] = None
    names = {spot.entry.row.name for spot in found(race).spots}
    assert names == {"aaren", "lssar", "linear", "sliding_window"}
