from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from regard.errors import UserError
from regard.tasks.series.csv_table import CsvFile, by_number, csv_text, result_file


def _file(folder: Path, content: str | bytes) -> Path:
    path = folder / "data.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_reads_texts_and_numbers_by_name_and_keeps_line_numbers(tmp_path: Path) -> None:
    path = _file(tmp_path, 'Date, a ,b\n"x, 1",1.5,2\n\n"two\nlines",-3e2,4\n')
    file = CsvFile(path)
    assert file.columns == ("Date", "a", "b")
    assert file.find("time", "date") == "Date"
    table = file.read(texts=["Date"], numbers=["b", "a"])
    assert table.texts == {"Date": ["x, 1", "two\nlines"]}
    np.testing.assert_array_equal(table.numbers, [[2, 1.5], [4, -300]])
    assert table.lines.tolist() == [2, 5]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_semicolons_and_tabs_separate_where_the_header_has_no_comma(tmp_path: Path, mark: str) -> None:
    path = _file(tmp_path, f"\ufeffa{mark}b\r\n1{mark}2\r\n")
    np.testing.assert_array_equal(CsvFile(path).read(numbers=("a", "b")).numbers, [[1, 2]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n3\n", "line 3: 1 cells, the header names 2"),
        ("a,b\n1,2\n3,4,5\n", "line 3: 3 cells, the header names 2"),
        ("a,b\n1,2\n3,x\n", "line 3, column b: 'x' is not a number"),
        ("a,b\n1,\n", "line 2, column b: the cell is empty"),
        ("a,b\n1,2\nnan,2\n", r"line 3, column a: the value is missing \(NaN\)"),
        ("a,b\n1,2\n1,-inf\n", "line 3, column b: the value is infinite"),
        ("a,a\n1,2\n", "two columns are named a"),
        ("a,,b\n1,2,3\n", "column 2 has no name"),
        ("1,2\n3,4\n", "has no header"),
        ("", "is empty"),
        ("\n\n", "is empty"),
        (b"a,b\n1,\xff\n", "is not UTF-8 text: it has a byte 0xff"),
        ('a,b\n1,"' + "x" * 200_000 + '"\n', "line 2: field larger than field limit"),
    ],
)
def test_ill_files_are_named_with_line_and_column(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = _file(tmp_path, content)
    with pytest.raises(UserError, match=message) as caught:
        CsvFile(path).read(numbers=("a", "b"))
    assert "data.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_folders_and_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        CsvFile(tmp_path / "none.csv")
    with pytest.raises(UserError, match="is a folder"):
        CsvFile(tmp_path)
    with pytest.raises(UserError, match="has no column mark: it has time, x"):
        CsvFile(_file(tmp_path, "time,x\n")).require(("time", "mark"))


def test_written_text_reads_back(tmp_path: Path) -> None:
    rows = [("a, b", "1"), ('"', "2")]
    table = CsvFile(_file(tmp_path, csv_text(("name", "x"), rows))).read(texts=["name"], numbers=["x"])
    assert table.texts["name"] == ["a, b", '"']


def test_labels_sort_by_number_before_words() -> None:
    assert sorted(["10", "b", "9", "a"], key=by_number) == ["9", "10", "a", "b"]


def test_two_inputs_of_one_name_are_refused(tmp_path: Path) -> None:
    first = result_file(tmp_path, Path("x/a.csv"), ".csv", [])
    assert first == tmp_path / "a.csv.predicted.csv"
    with pytest.raises(UserError, match=r"two inputs are named a\.csv"):
        result_file(tmp_path, Path("y/a.csv"), ".csv", [first])
