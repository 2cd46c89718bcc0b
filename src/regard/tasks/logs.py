"""The CSV logs of a run: a line per step, a line per evaluation; what a crash left behind a checkpoint is cut off."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TextIO

from regard.files import write_atomically

STEPS, EVALUATIONS = "log.csv", "evaluations.csv"
STEP_COLUMNS = ("step", "loss", "learning_rate")


class Logs:
    """`log.csv` and `evaluations.csv` of a folder, as a context manager.

    Args:
        folder: where they are.
        upto: lines after this step are cut off; 0 starts anew.
    """

    def __init__(self, folder: Path, *, upto: int = 0) -> None:
        self.folder = folder
        for name in (STEPS, EVALUATIONS):
            _cut(folder / name, upto)
        self._open: dict[str, TextIO] = {}

    def __enter__(self) -> Logs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self._open.values():
            stream.close()
        self._open.clear()

    def step(self, step: int, loss: float, learning_rate: float) -> None:
        """Add a step; numbers are written so that they can be read back exactly."""
        self._add(STEPS, STEP_COLUMNS, (str(step), repr(loss), repr(learning_rate)))

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add an evaluation."""
        self._add(EVALUATIONS, ("step", *metrics), (str(step), *map(repr, metrics.values())))

    def _add(self, name: str, columns: tuple[str, ...], values: tuple[str, ...]) -> None:
        path = self.folder / name
        if name not in self._open:
            new = not path.is_file() or path.stat().st_size == 0
            self._open[name] = path.open("a", encoding="utf-8", newline="")
            if new:
                csv.writer(self._open[name], lineterminator="\n").writerow(columns)
        csv.writer(self._open[name], lineterminator="\n").writerow(values)
        self._open[name].flush()


def _cut(path: Path, upto: int) -> None:
    if not path.is_file():
        return
    kept = io.StringIO()
    writer = csv.writer(kept, lineterminator="\n")
    with path.open(encoding="utf-8", newline="") as stream:
        lines = list(csv.reader(stream))
    for number, line in enumerate(lines):
        # a crash can leave the last line unfinished; it lies behind the checkpoint even where its number was cut
        whole = len(line) == len(lines[0])
        if upto and whole and (number == 0 or (line[0].isdigit() and int(line[0]) <= upto)):
            writer.writerow(line)
    write_atomically(path, kept.getvalue())


def read_steps(folder: Path) -> dict[str, list[float]]:
    """The columns of `log.csv`."""
    return _read(folder / STEPS)


def read_evaluations(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """The lines of `evaluations.csv`: step and metrics."""
    columns = _read(folder / EVALUATIONS)
    steps = columns.pop("step", [])
    return [
        (int(step), {name: values[number] for name, values in columns.items()}) for number, step in enumerate(steps)
    ]


def _read(path: Path) -> dict[str, list[float]]:
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else {})}
