from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from regard.errors import UserError
from regard.tasks.series.event_table import read_events


def test_events_are_grouped_and_ordered(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    path.write_text("sequence,Time,mark,place\nq,5,a,x\np,1,b,x\nq,3,c,x\np,1,a,x\n")
    events = read_events(path)
    assert events.names == ["q", "p"]
    assert events.times.tolist() == [3, 5, 1, 1]
    assert events.marks == ["c", "a", "b", "a"]
    np.testing.assert_array_equal(events.gaps(), [np.nan, 2, np.nan, 0])
    assert any("order of their time" in note for note in events.notes)
    assert any("not used: place" in note for note in events.notes)


def test_one_sequence_without_a_name(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    path.write_text("time,mark\n0.5,1\n0.75,1\n")
    events = read_events(path)
    assert not events.named
    assert events.lengths.tolist() == [2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("time,kind\n1,a\n", "has no column mark: it has time, kind"),
        ("time,mark\n", "a header and no events"),
        ("time,mark\n1,a\n2,\n", "line 3, column mark: the cell is empty"),
        ("time,mark\nnoon,a\n", "line 2, column time: 'noon' is not a number"),
    ],
)
def test_ill_tables(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "e.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        read_events(tmp_path / "e.csv")
