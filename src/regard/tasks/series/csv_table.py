"""CSV files with a header: chosen columns as texts or numbers, and one line that names file, line and column if not."""

from __future__ import annotations

import csv
import io
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from regard.errors import UserError
from regard.tasks.text_files import reason_of
from regard.wording import listed, shown

DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True)
class Table:
    """Columns of a file.

    Args:
        path: the file.
        texts: cells by column.
        numbers: values `(rows, columns)`, the columns in the order asked for; all finite.
        lines: the line of the file on which each row ends.
    """

    path: Path
    texts: dict[str, list[str]]
    numbers: NDArray[np.float64]
    lines: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.lines)


class CsvFile:
    """A CSV file whose header has been read.

    Args:
        path: UTF-8, its cells separated by commas, or by semicolons or tabs where the header has no comma.

    Raises:
        UserError: missing, unreadable, empty, or without a header of different names.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_dir():
            raise UserError(f"{shown(path)} is a folder, not a CSV file")
        with self._open() as stream:
            first = stream.readline()
            self._delimiter = next((mark for mark in DELIMITERS if mark in first), ",")
            stream.seek(0)
            header = next((row for row in csv.reader(stream, delimiter=self._delimiter) if row), [])
        self.columns = tuple(name.strip() for name in header)
        self._check_header()

    def _check_header(self) -> None:
        name = shown(self.path)
        if not any(self.columns):
            raise UserError(f"{name} is empty: a CSV file with a header is needed")
        if all(map(_is_number, self.columns)):
            raise UserError(f"{name} has no header: its first line must name the columns")
        for number, column in enumerate(self.columns):
            if number and not column:
                raise UserError(f"{name} line 1: column {number + 1} has no name")
            if self.columns.index(column) < number:
                raise UserError(f"{name} line 1: two columns are named {shown(column, 40)}")

    def find(self, *names: str) -> str | None:
        """The first column with one of these names, whatever its letters' case."""
        return next((column for column in self.columns if column.lower() in names), None)

    def require(self, columns: Iterable[str]) -> None:
        """Refuse a file without one of the columns.

        Raises:
            UserError: the missing ones, and those that it has.
        """
        missing = [shown(column, 40) for column in columns if column not in self.columns]
        if missing:
            has = listed([shown(column, 40) for column in self.columns], 10)
            raise UserError(f"{shown(self.path)} has no column {listed(missing)}: it has {has}")

    def read(self, *, texts: Sequence[str] = (), numbers: Sequence[str] = ()) -> Table:
        """The chosen columns of all lines that are not blank.

        Raises:
            UserError: a line with more or fewer cells than the header, or a cell that is no finite number.
        """
        at_texts = [self.columns.index(name) for name in texts]
        at_numbers = [self.columns.index(name) for name in numbers]
        cells: list[list[str]] = [[] for _ in texts]
        values, lines = array("d"), array("q")
        for line, row in self._rows():
            lines.append(line)
            for column, index in zip(cells, at_texts, strict=True):
                column.append(row[index].strip())
            try:
                values.extend([float(row[index]) for index in at_numbers])
            except ValueError:
                self._refuse_cell(line, row, at_numbers)
        table = Table(
            self.path,
            dict(zip(texts, cells, strict=True)),
            np.array(values, dtype=np.float64).reshape(len(lines), len(numbers)),
            np.array(lines, dtype=np.int64),
        )
        self._check_finite(table, numbers)
        return table

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        with self._open() as stream:
            reader = csv.reader(stream, delimiter=self._delimiter)
            try:
                next(row for row in reader if row)
                for row in reader:
                    if not row:
                        continue
                    if len(row) != len(self.columns):
                        raise UserError(
                            f"{shown(self.path)} line {reader.line_num}: {len(row)} cells, "
                            f"the header names {len(self.columns)}"
                        )
                    yield reader.line_num, row
            except csv.Error as error:
                raise UserError(f"{shown(self.path)} line {reader.line_num}: {error}") from None

    def _refuse_cell(self, line: int, row: Sequence[str], at: Sequence[int]) -> None:
        index = next(index for index in at if not _is_number(row[index]))
        cell = row[index].strip()
        what = f"{shown(cell, 40)!r} is not a number" if cell else "the cell is empty"
        raise UserError(f"{shown(self.path)} line {line}, column {shown(self.columns[index], 40)}: {what}")

    def _check_finite(self, table: Table, numbers: Sequence[str]) -> None:
        wrong = ~np.isfinite(table.numbers)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            what = "the value is missing (NaN)" if np.isnan(table.numbers[row, column]) else "the value is infinite"
            raise UserError(f"{shown(self.path)} line {table.lines[row]}, column {shown(numbers[column], 40)}: {what}")

    @contextmanager
    def _open(self) -> Iterator[TextIO]:
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as stream:
                yield stream
        except FileNotFoundError:
            raise UserError(f"there is no file {shown(self.path)}") from None
        except UnicodeDecodeError as error:
            raise UserError(
                f"{shown(self.path)} is not UTF-8 text: it has a byte {error.object[error.start]:#x}"
            ) from None
        except (OSError, csv.Error) as error:
            raise UserError(f"cannot read {shown(self.path)}: {reason_of(error)}") from None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The content of a CSV file."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue()


def number_text(value: float) -> str:
    """A number with the seven digits that float32 has."""
    return f"{value:.7g}"


def result_file(out: Path, source: Path, suffix: str, written: Sequence[Path]) -> Path:
    """Where the predictions for `source` go.

    Raises:
        UserError: another input of the same name was predicted before it.
    """
    path = out / f"{source.name}.predicted{suffix}"
    if path in written:
        raise UserError(f"two inputs are named {shown(source.name)}: predict them into different folders")
    return path


def by_number(label: str) -> tuple[float, str]:
    """A key that sorts whole numbers by their value, before words."""
    return (float(label), label) if label.isdecimal() else (float("inf"), label)
