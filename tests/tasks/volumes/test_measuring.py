from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest

from regard.tasks.volumes.grids import Grid
from regard.tasks.volumes.measuring import (
    cases_csv,
    f1,
    figures,
    lesions_csv,
    patients,
    spread,
    summary,
    sums,
    tables,
    worst_cases,
)
from regard.tasks.volumes.regions import BRATS, Region

LESION = (Region("lesion", (1,)),)
GRID = Grid((10, 10, 10), np.diag([10.0, 10.0, 10.0, 1.0]))
"""Voxels of one millilitre."""


def volume(*boxes):
    made = np.zeros((10, 10, 10), dtype=np.uint8)
    for start, side in boxes:
        made[tuple(slice(begin, begin + side) for begin in start)] = 1
    return made


@pytest.fixture
def measured():
    true = volume(((0, 0, 0), 2), ((6, 6, 6), 1))
    ours = volume(((1, 0, 0), 2), ((0, 8, 8), 1))
    nothing = volume()
    rows = figures("one", "a", ours, true, LESION, GRID)
    rows += figures("two", "a", nothing, nothing, LESION, GRID)
    rows += figures("three", "b", ours, nothing, LESION, GRID)
    return rows


def test_figures_of_a_case_are_counted_by_hand(measured) -> None:
    first, second, third = measured
    assert (first.true_ml, first.predicted_ml, first.both_ml) == pytest.approx((9.0, 9.0, 4.0))
    assert first.dice == pytest.approx(8 / 18)
    assert first.sensitivity == pytest.approx(4 / 9)
    assert first.precision == pytest.approx(4 / 9)
    assert [lesion.volume_ml for lesion in first.found.lesions] == pytest.approx([8.0, 1.0])
    assert [lesion.covered for lesion in first.found.lesions] == [0.5, 0.0]
    assert first.found.false == pytest.approx((1.0,))
    assert (second.dice, second.hd95) == (1.0, 0.0)
    assert math.isnan(second.sensitivity)
    assert (third.dice, third.precision) == (0.0, 0.0)
    assert third.hd95 == pytest.approx(math.sqrt(3) * 100)


def test_sums_add_up_to_the_means(measured) -> None:
    together = sums(measured)
    apart: dict[str, float] = {}
    for row in measured:
        for name, value in sums([row]).items():
            apart[name] = apart.get(name, 0.0) + value
    assert apart == pytest.approx(together)
    made = summary(together, LESION)
    assert made["dice"] == pytest.approx((8 / 18 + 1 + 0) / 3)
    assert made["hd95"] == pytest.approx(np.mean([row.hd95 for row in measured]))
    # one of two lesions found; three predicted parts touch none
    assert made["lesion_f1"] == pytest.approx(2 / (2 + 1 + 3))
    assert set(made) == {"dice", "hd95", "lesion_f1"}


def test_several_regions_are_told_one_by_one() -> None:
    true = np.zeros((10, 10, 10), dtype=np.uint8)
    true[:4], true[:2], true[:1] = 2, 1, 4
    made = summary(sums(figures("one", "a", true, true, BRATS, GRID)), BRATS)
    assert made == {
        "dice": 1.0,
        "dice_WT": 1.0,
        "dice_TC": 1.0,
        "dice_ET": 1.0,
        "hd95": 0.0,
        "hd95_WT": 0.0,
        "hd95_TC": 0.0,
        "hd95_ET": 0.0,
        "lesion_f1": 1.0,
    }


def test_patients_are_measured_over_all_their_cases(measured) -> None:
    first, second = patients(measured, "lesion")
    assert (first.patient, first.dice, first.true_ml) == ("a", pytest.approx(8 / 18), pytest.approx(9.0))
    assert (second.patient, second.dice) == ("b", 0.0)
    row = of_patients(measured, 0.0)
    assert (row["with it"], row["detected"], row["false"], row["recall"], row["precision"]) == (
        "1",
        "1",
        "1",
        "1.000",
        "0.500",
    )
    assert row["Dice"] == "0.222 ± 0.314"
    row = of_patients(measured, 0.5)
    assert (row["detected"], row["false"], row["Dice of those detected"]) == ("0", "2", "-")


def of_patients(measured, min_overlap: float) -> dict[str, str]:
    """The only row of all tables about patients."""
    found = [table for table in tables(measured, small_ml=3.0, min_overlap=min_overlap) if "patient" in table[0]]
    assert len(found) == 2
    return {name: text for _, header, rows in found for name, text in zip(header, rows[0], strict=True)}


def test_lesions_are_told_by_size(measured) -> None:
    by_lesion = next(
        table for table in tables(measured, small_ml=3.0, min_overlap=0.0) if table[0].startswith("By lesion")
    )
    rows = {row[1]: dict(zip(by_lesion[1], row, strict=True)) for row in by_lesion[2]}
    assert [(rows[name]["there"], rows[name]["found"], rows[name]["false"]) for name in rows] == [
        ("2", "1", "3"),
        ("1", "0", "2"),
        ("1", "1", "1"),
    ]
    assert list(rows) == ["all", "below 3 ml", "from 3 ml"]


def test_the_worst_cases_are_those_with_something_to_see(measured) -> None:
    assert worst_cases(measured, 5) == ["three", "one"]


def test_files_have_a_line_per_case_and_lesion(measured) -> None:
    rows = list(csv.DictReader(io.StringIO(cases_csv(measured))))
    assert [(row["case"], row["dice"], row["sensitivity"]) for row in rows] == [
        ("one", "0.444444", "0.444444"),
        ("two", "1", ""),
        ("three", "0", ""),
    ]
    kinds = [row["kind"] for row in csv.DictReader(io.StringIO(lesions_csv(measured)))]
    assert kinds == ["true", "true", "false", "false", "false"]


def test_means_leave_out_what_is_no_number() -> None:
    assert spread([1.0, math.nan, 3.0], 1) == "2.0 ± 1.4"
    assert spread([math.nan]) == "-"
    assert spread([0.5]) == "0.500 ± 0.000"
    assert (f1(0, 0, 0), f1(1, 1, 0)) == (1.0, pytest.approx(2 / 3))
