from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from regard.errors import UserError
from regard.tasks.series.ts_format import read_ts

HEADER = "# a comment\n@problemName Toy\n@timeStamps false\n@dimensions 2\n@classLabel true left right\n@data\n"


def _file(folder: Path, content: str) -> Path:
    path = folder / "toy.ts"
    path.write_text(content)
    return path


def test_series_of_unequal_length_with_labels(tmp_path: Path) -> None:
    content = read_ts(_file(tmp_path, HEADER + "1,2,3:4,5,6:left\n\n-1.5,0: 7,8 :right\n"))
    np.testing.assert_array_equal(content.values, [[1, 4], [2, 5], [3, 6], [-1.5, 7], [0, 8]])
    assert content.lengths.tolist() == [3, 2]
    assert content.labels == ["left", "right"]
    assert content.interpolated == 0


def test_missing_values_are_interpolated_in_time(tmp_path: Path) -> None:
    content = read_ts(_file(tmp_path, HEADER + "?,2,?,NaN,8:1,1,1,1,1:left\n"))
    np.testing.assert_array_equal(content.values[:, 0], [2, 2, 4, 6, 8])
    assert content.interpolated == 3


def test_a_file_without_labels(tmp_path: Path) -> None:
    content = read_ts(_file(tmp_path, "@univariate true\n@classLabel false\n@data\n1,2\n3,4\n"))
    assert content.labels is None
    assert content.values.shape == (4, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER + "1,2:3:left\n", "line 7: dimension 2 has 1 values, dimension 1 has 2"),
        (HEADER + "1,2:left\n", "line 7: 1 dimension, not 2"),
        (HEADER + "1,2:3,4:up\n", "line 7: the class 'up' is not among"),
        (HEADER + "1,2:3,x:left\n", "line 7: could not convert string to float: 'x'"),
        (HEADER + "1,:3,4:left\n", "line 7: could not convert"),
        (HEADER + "1,inf:3,4:left\n", "line 7: an infinite value"),
        (HEADER + "?,?:3,4:left\n", "line 7: all values of dimension 1 are missing"),
        (HEADER, "no series after @data"),
        ("@timeStamps true\n@data\n", "line 1: series with time stamps"),
        ("@targetLabel true\n@data\n", "line 1: the target is a number"),
        ("@classLabel true\n@data\n", "line 1: @classLabel true names no class"),
        ("@dimensions many\n@data\n", "line 1: @dimensions must be a positive whole number"),
        ("1,2,3\n", "line 1: data before @data"),
        ("@problemName x\n", "has no line @data"),
    ],
)
def test_ill_files_are_named_with_their_line(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_ts(_file(tmp_path, content))


def test_japanese_vowels(shared_data: Path) -> None:
    folder = shared_data / "uea" / "JapaneseVowels"
    if not folder.is_dir():
        pytest.skip("no JapaneseVowels")
    train, test = (read_ts(folder / f"JapaneseVowels_{part}.ts") for part in ("TRAIN", "TEST"))
    assert (len(train.lengths), len(test.lengths)) == (270, 370)
    assert train.values.shape[1] == test.values.shape[1] == 12
    assert (min(test.lengths), max(test.lengths)) == (7, 29)
    assert train.labels is not None
    assert [train.labels.count(str(speaker)) for speaker in range(1, 10)] == [30] * 9
    first = (folder / "JapaneseVowels_TRAIN.ts").read_text().split("@data\n")[1].split("\n")[0].split(":")
    by_hand = np.array([[float(cell) for cell in dimension.split(",")] for dimension in first[:-1]]).T
    np.testing.assert_array_equal(train.values[: train.lengths[0]], by_hand)
