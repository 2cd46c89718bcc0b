"""Sequences of events from a CSV file with the columns time, mark, and if wanted sequence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regard.errors import UserError
from regard.tasks.series.csv_table import CsvFile
from regard.tasks.series.ragged import grouped, in_order, starts_of
from regard.wording import listed, shown


@dataclass(frozen=True)
class EventSequences:
    """Events of all sequences, one after the other.

    Args:
        times: in the file's unit; rising inside a sequence.
        marks: of each event.
        lengths: events of each sequence; none is 0.
        names: of the sequences.
        notes: what the user should know.
        named: whether the file names sequences.
    """

    times: NDArray[np.float64]
    marks: list[str]
    lengths: NDArray[np.int64]
    names: list[str]
    notes: tuple[str, ...] = ()
    named: bool = True

    @property
    def starts(self) -> NDArray[np.int64]:
        """Where each sequence begins."""
        return starts_of(self.lengths)

    def gaps(self) -> NDArray[np.float64]:
        """The time from each event's predecessor; NaN for the first of a sequence."""
        gaps = np.diff(self.times, prepend=np.nan)
        gaps[self.starts] = np.nan
        return gaps


def read_events(path: Path) -> EventSequences:
    """The events of a file.

    Raises:
        UserError: missing, unreadable, or not such a table; file and line are named.
    """
    file = CsvFile(path)
    time, mark, sequence = file.find("time"), file.find("mark"), file.find("sequence", "seq")
    if time is None or mark is None:
        file.require(("time", "mark"))
    assert time is not None
    assert mark is not None
    table = file.read(texts=[mark, *([] if sequence is None else [sequence])], numbers=[time])
    if not len(table):
        raise UserError(f"{shown(path)} has a header and no events")
    if "" in table.texts[mark]:
        line = table.lines[table.texts[mark].index("")]
        raise UserError(f"{shown(path)} line {line}, column {mark}: the cell is empty")
    names, codes = grouped(table.texts[sequence] if sequence is not None else [""] * len(table))
    times = table.numbers[:, 0]
    order, lengths, went_back = in_order(codes, len(names), times)
    notes = []
    if went_back:
        notes.append("events are put into the order of their time inside each sequence")
    unused = [shown(name, 40) for name in file.columns if name not in (time, mark, sequence)]
    if unused:
        notes.append(f"columns that are not used: {listed(unused)}")
    marks = table.texts[mark]
    return EventSequences(
        times[order], [marks[row] for row in order.tolist()], lengths, names, tuple(notes), sequence is not None
    )
