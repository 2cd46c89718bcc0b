"""Series with classes, as one flat array: from a pair of `.ts` files, one `.ts` file, or a CSV file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regard.errors import UserError
from regard.tasks.series.csv_table import CsvFile, Table
from regard.tasks.series.ragged import grouped, in_order, starts_of
from regard.tasks.series.ts_format import read_ts
from regard.tasks.text_files import reason_of
from regard.wording import count_in_words, listed, shown

TRAIN, TEST = "_train.ts", "_test.ts"
SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation", "test": "test"}
SERIES, TIME, LABEL, SPLIT = ("series", "series_id"), ("time", "date", "timestamp"), ("label", "class"), ("split",)


@dataclass(frozen=True)
class LabelledSeries:
    """Multivariate series of unequal length.

    Args:
        values: `(time steps of all series, channels)`.
        lengths: time steps of each series; none is 0.
        names: of the series.
        labels: their classes; None where the file has none.
        channels: names of the channels.
        notes: what the user should know.
        splits: the part that the file puts each series into; None where it puts them nowhere.
    """

    values: NDArray[np.float64]
    lengths: NDArray[np.int64]
    names: list[str]
    labels: list[str] | None
    channels: tuple[str, ...]
    notes: tuple[str, ...] = ()
    splits: list[str] | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def starts(self) -> NDArray[np.int64]:
        """Where each series begins in `values`."""
        return starts_of(self.lengths)


def read_labelled(path: Path) -> LabelledSeries:
    """The series at `path`.

    Args:
        path: a folder with `*_TRAIN.ts` and `*_TEST.ts`, a `.ts` file, or a CSV file with the columns series, label,
            channels, and if wanted time and split (train, validation or test).

    Raises:
        UserError: missing, unreadable, or not such data; file and line are named.
    """
    if not path.exists():
        raise UserError(f"there is no file or folder {shown(path)}")
    if path.is_dir():
        return _read_folder(path)
    return _read_file(path) if path.suffix.lower() == ".ts" else _read_table(path)


def _read_folder(folder: Path) -> LabelledSeries:
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".ts" and file.is_file())
    except OSError as error:
        raise UserError(f"cannot read {shown(folder)}: {reason_of(error)}") from None
    by_name = {file.name.lower(): file for file in files}
    problems = [name.removesuffix(TRAIN) for name in by_name if name.endswith(TRAIN)]
    problems = [name for name in problems if name + TEST in by_name]
    if not problems:
        if len(files) == 1:
            return _read_file(files[0])
        found = listed([shown(file.name, 60) for file in files]) or "no .ts file"
        raise UserError(f"{shown(folder)} has no pair of *_TRAIN.ts and *_TEST.ts: it has {found}")
    # variants of a problem, such as one cut to equal lengths, have longer names
    problem = folder.name.lower() if folder.name.lower() in problems else min(problems, key=len)
    both = _join(_read_file(by_name[problem + TRAIN]), _read_file(by_name[problem + TEST]))
    others = [shown(by_name[name + TRAIN].name, 60) for name in problems if name != problem]
    note = f"of several pairs, {by_name[problem + TRAIN].name} and its test file are read, not {listed(others)}"
    return replace(both, notes=(*both.notes, note)) if others else both


def _read_file(path: Path) -> LabelledSeries:
    content = read_ts(path)
    notes: tuple[str, ...] = ()
    if content.interpolated:
        values = count_in_words(content.interpolated, "missing value")
        notes = (f"{shown(path.name)}: {values} interpolated from neighbours in time",)
    return LabelledSeries(
        content.values,
        content.lengths,
        [str(number) for number in range(1, len(content.lengths) + 1)],
        content.labels,
        tuple(f"dimension {number}" for number in range(1, content.values.shape[1] + 1)),
        notes,
    )


def _join(train: LabelledSeries, test: LabelledSeries) -> LabelledSeries:
    if train.channels != test.channels:
        raise UserError(f"the training file has {len(train.channels)} dimensions, the test file {len(test.channels)}")
    labels = None if train.labels is None or test.labels is None else train.labels + test.labels
    return LabelledSeries(
        np.concatenate((train.values, test.values)),
        np.concatenate((train.lengths, test.lengths)),
        [*train.names, *test.names],
        labels,
        train.channels,
        (*train.notes, *test.notes),
        ["train"] * len(train) + ["test"] * len(test),
    )


def _read_table(path: Path) -> LabelledSeries:
    file = CsvFile(path)
    series, time, label, split = (file.find(*names) for names in (SERIES, TIME, LABEL, SPLIT))
    if series is None:
        file.require(("series",))
    special = [name for name in (series, label, split) if name is not None]
    channels = tuple(name for name in file.columns if name not in (*special, time))
    if not channels:
        raise UserError(f"{shown(path)} has no column with numbers beside {listed(special)}")
    table = file.read(texts=special, numbers=(*channels, *([] if time is None else [time])))
    if not len(table):
        raise UserError(f"{shown(path)} has a header and no rows")
    assert series is not None
    names, codes = grouped(table.texts[series])
    times = None if time is None else table.numbers[:, -1]
    order, lengths, went_back = in_order(codes, len(names), times)
    return LabelledSeries(
        table.numbers[order, : len(channels)],
        lengths,
        names,
        None if label is None else _one_per_series(table, label, names, codes),
        channels,
        (f"rows are put into the order of their {time} inside each series",) if went_back else (),
        None if split is None else _parts(table, split, _one_per_series(table, split, names, codes)),
    )


def _one_per_series(table: Table, column: str, names: Sequence[str], codes: NDArray[np.int64]) -> list[str]:
    """The value of a column that must be the same in all rows of a series."""
    values: dict[int, str] = {}
    for code, line, value in zip(codes.tolist(), table.lines.tolist(), table.texts[column], strict=True):
        if not value:
            raise UserError(f"{shown(table.path)} line {line}, column {column}: the cell is empty")
        if values.setdefault(code, value) != value:
            raise UserError(
                f"{shown(table.path)} line {line}: series {shown(names[code], 40)} has {column} {shown(value, 40)}, "
                f"and before it {shown(values[code], 40)}"
            )
    return [values[code] for code in range(len(names))]


def _parts(table: Table, column: str, given: Sequence[str]) -> list[str]:
    for value in given:
        if value.lower() not in SPLITS:
            line = table.lines[table.texts[column].index(value)]
            raise UserError(
                f"{shown(table.path)} line {line}, column {column}: {shown(value, 40)!r} is not train, validation or "
                "test"
            )
    return [SPLITS[value.lower()] for value in given]
