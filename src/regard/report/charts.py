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


def hover_text(title: str, *lines: str) -> str:
    """Return the text of a pointer's box: the title in bold, then the lines."""
    return "<br>".join(
        [f"<b>{plotly_text(units.shorten(title, 48))}</b>", *(plotly_text(line) for line in lines if line)]
    )


def styled_trace(
    points: Sequence[tuple[float, float | None]],
    style: Style,
    name: str,
    group: str,
    hover: Sequence[str],
    **changes: Any,
) -> dict[str, Any]:
    """Return a Plotly line with markers in a style.

    Args:
        points: pairs of x and y; a y of None is a gap in the line.
        style: colour, dash and marker.
        name: whose points they are.
        group: the legend's group.
        hover: what a pointer over each point shows, made by `hover_text`.
        changes: replace settings of the trace.
    """
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [compact(x) for x, _ in points],
        "y": [None if y is None else compact(y) for _, y in points],
        "name": plotly_text(units.shorten(name)),
        "legendgroup": group,
        "hoverinfo": "text",
        "hovertext": list(hover),
        "line": {"color": style.role, "width": 2.2, "dash": style.dash},
        "marker": {
            "color": style.role,
            "symbol": style.symbol,
            "size": 8.5,
            "line": {"color": themed("surface"), "width": 0.7},
        },
    } | changes


def trace(line: Line, **changes: Any) -> dict[str, Any]:
    """Return a Plotly line with markers in the mechanism's style; `changes` replace its settings."""
    row = line.entry.row
    hover = [hover_text(row.title, *text.split("\n")) for text in line.hover]
    return styled_trace(line.points, line.entry.style, row.name, line.entry.group, hover, **changes)


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
