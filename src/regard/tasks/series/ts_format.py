"""The `.ts` files of the UEA and UCR archives: multivariate series with class labels.

Lines that begin with # are comments and those with @ the header; each line after @data is a series: its dimensions
apart by colons, their values by commas, and at the end the class. A missing value is a question mark.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regard.errors import UserError
from regard.tasks.text_files import reason_of
from regard.wording import count_in_words, shown


@dataclass
class _Header:
    has_labels: bool = False
    classes: set[str] = field(default_factory=set)
    dimensions: int = 0


@dataclass(frozen=True)
class TsContent:
    """What a file holds.

    Args:
        values: `(time steps of all series, dimensions)`.
        lengths: time steps of each series.
        labels: their classes; None where the header says that there are none.
        interpolated: number of values that were missing and are filled from neighbours in time.
    """

    values: NDArray[np.float64]
    lengths: NDArray[np.int64]
    labels: list[str] | None
    interpolated: int


def read_ts(path: Path) -> TsContent:
    """Read a file.

    Raises:
        UserError: missing, unreadable, not in the format, or with time stamps or a numeric target; the line is named.
    """
    try:
        # comments come in any encoding
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot read {shown(path)}: {reason_of(error)}") from None
    lines = enumerate(text.splitlines(), start=1)
    header = _read_header(path, lines)
    series: list[NDArray[np.float64]] = []
    labels: list[str] = []
    filled = 0
    for number, line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        where = f"{shown(path)} line {number}"
        body, label = _without_label(where, line.strip(), header)
        values, missing = _read_series(where, body)
        header.dimensions = header.dimensions or values.shape[1]
        if values.shape[1] != header.dimensions:
            raise UserError(f"{where}: {count_in_words(values.shape[1], 'dimension')}, not {header.dimensions}")
        series.append(values)
        labels.append(label)
        filled += missing
    if not series:
        raise UserError(f"{shown(path)} has no series after @data")
    lengths = np.array([len(values) for values in series], dtype=np.int64)
    return TsContent(np.concatenate(series), lengths, labels if header.has_labels else None, filled)


def _read_header(path: Path, lines: Iterator[tuple[int, str]]) -> _Header:
    header = _Header()
    for number, line in lines:
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        where = f"{shown(path)} line {number}"
        if not line.startswith("@"):
            raise UserError(f"{where}: data before @data, or not a .ts file")
        name, *words = line.split()
        name = name.lower()
        if name == "@data":
            return header
        _take(where, header, name, words)
    raise UserError(f"{shown(path)} has no line @data: is it a .ts file?")


def _take(where: str, header: _Header, name: str, words: list[str]) -> None:
    says_yes = bool(words) and words[0].lower() == "true"
    if name == "@classlabel":
        header.has_labels, header.classes = says_yes, set(words[1:])
        if says_yes and not header.classes:
            raise UserError(f"{where}: @classLabel true names no class")
    elif name == "@timestamps" and says_yes:
        raise UserError(f"{where}: series with time stamps are not read; give values at equal steps")
    elif name == "@targetlabel" and says_yes:
        raise UserError(f"{where}: the target is a number, and classes are needed")
    elif name in ("@dimensions", "@dimension"):
        if len(words) != 1 or not words[0].isdecimal() or int(words[0]) < 1:
            raise UserError(f"{where}: {name} must be a positive whole number, got {shown(' '.join(words), 40)!r}")
        header.dimensions = int(words[0])


def _without_label(where: str, line: str, header: _Header) -> tuple[str, str]:
    if not header.has_labels:
        return line, ""
    body, colon, label = line.rpartition(":")
    label = label.strip()
    if not colon or label not in header.classes:
        raise UserError(f"{where}: the class {shown(label, 40)!r} is not among those of @classLabel")
    return body, label


def _read_series(where: str, body: str) -> tuple[NDArray[np.float64], int]:
    """Values `(time steps, dimensions)`, the missing ones interpolated, and how many were missing."""
    dimensions = body.split(":")
    counts = [dimension.count(",") + 1 for dimension in dimensions]
    for number, count in enumerate(counts, start=1):
        if count != counts[0]:
            raise UserError(f"{where}: dimension {number} has {count} values, dimension 1 has {counts[0]}")
    cells = ",".join(dimensions).split(",")
    if "?" in body:
        cells = ["nan" if cell.strip() == "?" else cell for cell in cells]
    try:
        flat = np.array([float(cell) for cell in cells], dtype=np.float64)
    except ValueError as error:
        raise UserError(f"{where}: {shown(str(error), 80)}") from None
    if np.isinf(flat).any():
        raise UserError(f"{where}: an infinite value")
    values = flat.reshape(len(dimensions), counts[0])
    missing = np.isnan(values)
    if missing.any():
        _interpolate(where, values, missing)
    return np.ascontiguousarray(values.T), int(missing.sum())


def _interpolate(where: str, values: NDArray[np.float64], missing: NDArray[np.bool_]) -> None:
    """Fill gaps in place, linearly in time; at an end with the nearest value."""
    steps = np.arange(values.shape[1])
    for number in np.flatnonzero(missing.any(axis=1)):
        gaps = missing[number]
        if gaps.all():
            raise UserError(f"{where}: all values of dimension {number + 1} are missing")
        values[number, gaps] = np.interp(steps[gaps], steps[~gaps], values[number, ~gaps])
