from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from regard.errors import UserError
from regard.tasks.series.labelled_series import read_labelled

TS = "@classLabel true a b\n@data\n1,2:3,4:a\n5:6:b\n"
CSV = "series,time,label,x,y\nq,2,a,3,30\np,1,b,1,10\nq,1,a,2,20\n"


def test_a_table_is_grouped_by_series_and_ordered_by_time(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CSV)
    data = read_labelled(tmp_path / "t.csv")
    assert data.names == ["q", "p"]
    assert data.labels == ["a", "b"]
    assert data.channels == ("x", "y")
    np.testing.assert_array_equal(data.values, [[2, 20], [3, 30], [1, 10]])
    assert data.lengths.tolist() == [2, 1]
    assert data.starts.tolist() == [0, 2]
    assert "order of their time" in data.notes[0]
    assert data.splits is None


def test_a_split_column_and_a_missing_label_column(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("series,split,x\n1,Train,0\n2,TEST,0\n3,valid,0\n")
    data = read_labelled(tmp_path / "t.csv")
    assert data.splits == ["train", "test", "validation"]
    assert data.labels is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,label,x\n1,a,0\n", "has no column series: it has id, label, x"),
        ("series,label\n1,a\n", "no column with numbers beside series, label"),
        ("series,label,x\n", "a header and no rows"),
        ("series,label,x\n1,a,0\n1,b,0\n", "line 3: series 1 has label b, and before it a"),
        ("series,label,x\n1,a,0\n2,,0\n", "line 3, column label: the cell is empty"),
        ("series,split,x\n1,train,0\n2,dev,0\n", "line 3, column split: 'dev' is not train, validation or test"),
        ("series,label,x\n1,a,high\n", "line 2, column x: 'high' is not a number"),
    ],
)
def test_ill_tables(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        read_labelled(tmp_path / "t.csv")


def test_the_pair_named_for_its_folder_is_preferred(tmp_path: Path) -> None:
    folder = tmp_path / "Toy"
    folder.mkdir()
    for name in ("Toy_TRAIN", "Toy_TEST", "A_TRAIN", "A_TEST", "Odd_TRAIN"):
        (folder / f"{name}.ts").write_text(TS if name.startswith("Toy") else TS.replace("5:6:b\n", ""))
    data = read_labelled(folder)
    assert data.splits == ["train", "train", "test", "test"]
    assert data.labels == ["a", "b", "a", "b"]
    assert "not A_TRAIN.ts" in data.notes[0]


def test_folders_without_a_pair(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no pair of \*_TRAIN.ts and \*_TEST.ts: it has no .ts file"):
        read_labelled(tmp_path)
    with pytest.raises(UserError, match="there is no file or folder"):
        read_labelled(tmp_path / "none")
    (tmp_path / "one.ts").write_text(TS)
    assert len(read_labelled(tmp_path)) == 2
    (tmp_path / "two.ts").write_text(TS)
    with pytest.raises(UserError, match=r"it has one\.ts, two\.ts"):
        read_labelled(tmp_path)


def test_a_pair_of_different_width_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x_TRAIN.ts").write_text(TS)
    (tmp_path / "x_TEST.ts").write_text("@classLabel true a b\n@data\n1,2:a\n")
    with pytest.raises(UserError, match="the training file has 2 dimensions, the test file 1"):
        read_labelled(tmp_path)
