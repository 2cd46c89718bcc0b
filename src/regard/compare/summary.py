"""The race's outcome on a terminal: the ranked table, what failed and why, and the recommendation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from regard.compare.race_tasks import TASKS, TEXT
from regard.compare.rank import cost_ratio, longest
from regard.wording import bytes_in_words, ratio_in_words, shown

Row = Mapping[str, Any]
MISSING = "-"
PADDING = 2


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Args:
        title: its heading, in one or two lines.
        text: what a row shows.
        dispensable: columns with greater numbers are left out first where the terminal is narrow; 0 never is.
    """

    title: str
    text: Callable[[Row], str]
    dispensable: int = 0

    def width(self, rows: Sequence[Row]) -> int:
        """Characters that it takes."""
        return max(len(line) for line in (*self.title.split("\n"), *(self.text(row) for row in rows)))


def table(results: Mapping[str, Any], *, width: int) -> Table:
    """The finished rows, best first.

    Args:
        results: the content of `results.json`.
        width: columns of the terminal.
    """
    rows = sorted((row for row in results["rows"] if row["status"] == "ok"), key=lambda row: row["rank"])
    return drawn_table(_columns(results, rows), rows, width=width)


def drawn_table(columns: Sequence[Column], rows: Sequence[Row], *, width: int) -> Table:
    """A table of as many columns as fit.

    Args:
        columns: all of them; the second is the name.
        rows: from top to bottom.
        width: columns of the terminal.
    """
    chosen = list(columns)
    while sum(column.width(rows) + PADDING for column in chosen) > width:
        least = max(chosen, key=lambda column: column.dispensable)
        if not least.dispensable:
            break
        chosen.remove(least)
    drawn = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for number, column in enumerate(chosen):
        drawn.add_column(column.title, justify="left" if number == 1 else "right", no_wrap=True, overflow="ellipsis")
    for row in rows:
        drawn.add_row(*(column.text(row) for column in chosen))
    return drawn


def _columns(results: Mapping[str, Any], rows: Sequence[Row]) -> list[Column]:
    # a results file may come from anywhere
    task = TASKS.get(results["task"], TEXT)
    metric = task.metric
    at = longest(rows)
    factors = sorted({point["factor"] for row in rows for point in row["extrapolation"]} - {1})
    columns = [
        Column("\n#", lambda row: f"{row['rank']}{'*' if row['pareto'] else ' '}"),
        Column("\nmechanism", lambda row: shown(row["name"], 24)),
        Column(metric.heading, lambda row: metric.figure(row["quality"]["mean"])),
    ]
    if any(row["quality"]["spread"] is not None for row in rows):
        columns.append(Column("\n±", lambda row: _plain(row["quality"]["spread"], metric.spread)))
    if factors:
        columns.append(
            Column(f"at {factors[-1]}x\nlength", lambda row: _plain(_beyond(row, factors[-1]), metric.number))
        )
    columns += [
        Column(f"train\n{task.rate}", lambda row: _thousands(row["training"]["tokens_per_s"]), 3),
        Column("train\nstep x", lambda row: _plain(row["training"]["ratio"], ".2f"), 5),
        Column(f"forward x\nat {at:,}" if at else "forward\nx", lambda row: ratio_or_dash(cost_ratio(row, at))),
        Column("time\n~ n^", lambda row: _plain(row["cost"]["time_exponent"], ".2f"), 2),
    ]
    if any(row["decode"] for row in rows):
        columns.append(Column("decode\nx", lambda row: ratio_or_dash(_last(row, "ratio"))))
        columns.append(Column("\nstate", _state, 1))
    columns.append(Column("\nparams", lambda row: f"{row['params']:,}", 4))
    return columns


def _plain(value: float | None, number: str) -> str:
    return MISSING if value is None else f"{value:{number}}"


def ratio_or_dash(value: float | None) -> str:
    """A ratio in words; a dash where there is none."""
    return MISSING if value is None else ratio_in_words(value)


def _thousands(value: float) -> str:
    return f"{value / 1000:,.1f}k" if value >= 1000 else f"{value:.0f}"


def _beyond(row: Row, factor: int) -> float | None:
    return next((point["mean"] for point in row["extrapolation"] if point["factor"] == factor), None)


def _last(row: Row, key: str) -> float | None:
    decode = row["decode"]
    return decode[key][-1] if decode and decode[key] else None


def _state(row: Row) -> str:
    size = _last(row, "state_bytes")
    return MISSING if size is None else bytes_in_words(size)


def legend(results: Mapping[str, Any]) -> str:
    """What the columns mean."""
    ends = [row["decode"]["positions"][-1] for row in results["rows"] if row.get("decode")]
    decoding = f"; decode x at position {max(ends):,}" if ends else ""
    return f"* Pareto front of quality and forward time; x: times {shown(results['yardstick'], 24)}'s{decoding}"


def remarks(results: Mapping[str, Any]) -> list[str]:
    """Lines under the table: what failed, what was not measured, and notes on the data."""
    lines = [f"{row['status']}: {row['name']}: {row['why']}" for row in results["rows"] if row["status"] != "ok"]
    lines += [f"note: {note}" for note in results["data"].get("notes", [])]
    lines += [f"note: {row['name']}: {note}" for row in results["rows"] for note in row.get("notes", [])]
    return [shown(line, 400) for line in lines]


def advice(results: Mapping[str, Any]) -> list[str]:
    """The recommendation, a line per question."""
    answers = results["recommendation"]
    return [shown(f"{item['question']}: {item['name']}. {item['sentence']}", 600) for item in answers]
