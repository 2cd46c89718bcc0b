"""The parts that line charts are made of: a mechanism's measured points, its trace, its legend entry, its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from regard.report import units
from regard.report.axes import plotly_text
from regard.report.page import Chart, Key, Table
from regard.report.palette import Style, assign, themed
from regard.report.results import Results, Row
from regard.report.units import Formatter

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Entry:
    """A row with its look and the name of its group of traces."""

    row: Row
    style: Style
    group: str


@dataclass(frozen=True)
class Line:
    """One mechanism's points in a chart.

    Args:
        entry: whose points they are.
        points: pairs of x and y.
        hover: what a pointer over each point shows below the mechanism's name.
        note: a figure for the legend, such as a fitted exponent.
    """

    entry: Entry
    points: Points
    hover: Sequence[str]
    note: str = ""


def entries(results: Results) -> list[Entry]:
    """Return the rows with their styles, which are the same in every chart of the report."""
    styles = assign([row.name for row in results.rows], results.yardstick)
    return [Entry(row, style, f"r{i}") for i, (row, style) in enumerate(zip(results.rows, styles, strict=True))]


def compact(value: float) -> float:
    """Return `value` with six significant digits, so that a page stays small."""
    return float(f"{value:.6g}")


def hover_text(row: Row, *lines: str) -> str:
    """Return the text of a pointer's box: the mechanism in bold, then the lines."""
    title = f"<b>{plotly_text(units.shorten(row.title, 48))}</b>"
    return "<br>".join([title, *(plotly_text(line) for line in lines if line)])


def trace(line: Line, **changes: Any) -> dict[str, Any]:
    """Return a Plotly line with markers in the mechanism's style; `changes` replace its settings."""
    style = line.entry.style
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [compact(x) for x, _ in line.points],
        "y": [compact(y) for _, y in line.points],
        "name": plotly_text(units.shorten(line.entry.row.name)),
        "legendgroup": line.entry.group,
        "hoverinfo": "text",
        "hovertext": [hover_text(line.entry.row, *text.split("\n")) for text in line.hover],
        "line": {"color": style.role, "width": 2.2, "dash": style.dash},
        "marker": {
            "color": style.role,
            "symbol": style.symbol,
            "size": 8.5,
            "line": {"color": themed("surface"), "width": 0.7},
        },
    } | changes


def keys(lines: Iterable[Line]) -> list[Key]:
    """Return a legend entry per line."""
    return [Key(line.entry.group, line.entry.row.name, line.note, line.entry.style) for line in lines]


def numbers(lines: Sequence[Line], places: Formatter, values: Formatter, last: str = "") -> Table:
    """Return lines as a table: a row per mechanism, a column per place, the note last where `last` names it."""
    columns = sorted({x for line in lines for x, _ in line.points})
    rows = []
    for line in lines:
        measured = dict(line.points)
        note = [line.note or units.MISSING] if last else []
        rows.append([line.entry.row.name, *(values(measured.get(x)) for x in columns), *note])
    return Table(["mechanism", *(places(x) for x in columns), *([last] if last else [])], rows)


def nothing(chart_id: str, title: str, why: str, *, wide: bool = False) -> Chart:
    """Return a chart that only says why there is nothing to draw."""
    return Chart(chart_id, title, "", "", wide=wide, empty=f"Nothing to draw: {why}.")


def xs(lines: Iterable[Line]) -> list[float]:
    """Return every x of the lines."""
    return [x for line in lines for x, _ in line.points]


def ys(lines: Iterable[Line]) -> list[float]:
    """Return every y of the lines."""
    return [y for line in lines for _, y in line.points]
