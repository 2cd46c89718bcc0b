from __future__ import annotations

import pytest

from regard.tasks.series.date_steps import continue_column


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["2016-12-31 22:00:00", "2016-12-31 23:00:00"], ["2017-01-01 00:00:00", "2017-01-01 01:00:00"]),
        (["2020-02-27", "2020-02-28"], ["2020-02-29", "2020-03-01"]),
        (["2019-10-01", "2019-11-01", "2019-12-01"], ["2020-01-01", "2020-02-01"]),
        (["2019-11", "2019-12"], ["2020-01", "2020-02"]),
        (["1990/1/1 0:00", "1990/1/2 0:00"], ["1990/01/03 00:00", "1990/01/04 00:00"]),
        (["2020-01-01T00:00:00Z", "2020-01-01T00:15:00Z"], ["2020-01-01T00:30:00Z", "2020-01-01T00:45:00Z"]),
        (["7", "9", "11"], ["13", "15"]),
        (["0.1", "0.2", "0.3"], ["0.4", "0.5"]),
    ],
)
def test_constant_steps_go_on(texts: list[str], expected: list[str]) -> None:
    assert continue_column(texts, 2) == expected


@pytest.mark.parametrize(
    "texts",
    [
        ["2020-01-01"],
        ["2020-01-01", "2020-01-02", "2020-01-04"],
        ["2020-01-01", "soon"],
        ["1", "2", "4"],
        ["1.5", "2.5", "2.6"],
        ["nan", "nan", "nan"],
        ["2019-12-31", "2020-01-31", "2020-02-29"],
        ["9999-12-30", "9999-12-31"],
    ],
)
def test_other_columns_do_not(texts: list[str]) -> None:
    assert continue_column(texts, 2) is None
