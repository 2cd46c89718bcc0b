"""The charts of `regard compare`, as Plotly figures in plain data; what they say is computed from the results alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from regard.report import axes, units
from regard.report.axes import plotly_text
from regard.report.page import Chart, Key, Table, View
from regard.report.palette import Style, themed
from regard.report.results import Results, Row
from regard.report.units import Formatter
from regard.report.wording import QualityWords, listed

_MOST_POINTS = 400
_LABELLED = 14

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One mechanism's measured points in a chart, with what a pointer over each of them shows."""

    row: Row
    style: Style
    points: Points
    hover: Sequence[str]
    note: str = ""


@dataclass(frozen=True)
class Styled:
    """A row with its place in the legend and its look."""

    row: Row
    style: Style
    group: str


def trace(line: Line, group: str, **changes: Any) -> dict[str, Any]:
    """Return a Plotly line with markers in the mechanism's style."""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [compact(x) for x, _ in line.points],
        "y": [compact(y) for _, y in line.points],
        "name": plotly_text(units.shorten(line.row.name)),
        "legendgroup": group,
        "hoverinfo": "text",
        "hovertext": list(line.hover),
        "line": {"color": line.style.role, "width": 2.2, "dash": line.style.dash},
        "marker": {
            "color": line.style.role,
            "symbol": line.style.symbol,
            "size": 8,
            "line": {"color": themed("surface"), "width": 1},
        },
    } | changes


def compact(value: float) -> float:
    """Return `value` with six significant digits, so that a page stays small."""
    return float(f"{value:.6g}")


def hover(row: Row, *lines: str) -> str:
    """Return the text of a pointer's box: the mechanism in bold, then the lines."""
    return "<br>".join([f"<b>{plotly_text(units.shorten(row.title, 60))}</b>", *(plotly_text(line) for line in lines)])


def numbers(header: str, lines: Sequence[Line], formatter: Formatter, places: Formatter, last: str = "") -> Table:
    """Return a table of lines: a row per mechanism, a column per place, and the note as the last column if named."""
    columns = sorted({x for line in lines for x, _ in line.points})
    rows = []
    for line in lines:
        values = dict(line.points)
        cells = [formatter(values.get(x)) for x in columns]
        rows.append([line.row.name, *cells, *([line.note or units.MISSING] if last else [])])
    return Table([header, *(places(x) for x in columns), *([last] if last else [])], rows)


def keys(styled: Iterable[Styled], lines: Sequence[Line]) -> list[Key]:
    """Return the legend of the rows that have a line, in the order of the rows."""
    notes = {id(line.row): line.note for line in lines}
    return [
        Key(entry.group, entry.row.name, notes[id(entry.row)], entry.style)
        for entry in styled
        if id(entry.row) in notes
    ]


def pareto(results: Results, styled: Sequence[Styled], words: QualityWords) -> Chart:
    """Quality against the forward time's ratio to the yardstick at the longest measured length."""
    title, chart_id = "Quality against cost", "pareto"
    entries = [(e, c, e.row.quality) for e in styled if e.row.cost and (c := e.row.cost.longest_ratio())]
    shown = [(e, c, q.mean, q.spread) for e, c, q in entries if q and q.mean is not None and c[1] > 0]
    if not shown:
        return _nothing(chart_id, title, "no mechanism has both a quality and a measured cost", wide=True)
    longest = max(cost[0] for _, cost, _, _ in shown)
    x = axes.logarithmic(
        f"forward time at {units.whole(longest)} tokens, relative to {units.shorten(results.yardstick)}",
        [cost[1] for _, cost, _, _ in shown],
        units.ratio,
        room=0.09,
    )
    spreads = [mean + sign * (spread or 0.0) for _, _, mean, spread in shown for sign in (-1, 1)]
    y = axes.linear(words.axis, spreads, words.tick, room=0.12)
    places = _label_places([(cost[1], mean, e.row.name) for e, cost, mean, _ in shown], x, y)
    front = sorted((cost[1], mean) for e, cost, mean, _ in shown if e.row.pareto)
    data = _front(front)
    for (entry, cost, mean, spread), place in zip(shown, places, strict=True):
        lines = [words.with_unit(mean, spread), f"{units.ratio(cost[1])} at {units.whole(cost[0])} tokens"]
        lines += ["on the Pareto front"] if entry.row.pareto else []
        text = hover(entry.row, *lines)
        point = trace(Line(entry.row, entry.style, [(cost[1], mean)], [text]), entry.group)
        point["mode"] = "markers+text" if place else "markers"
        point["text"] = [plotly_text(units.shorten(entry.row.name, 22))]
        point["textposition"] = place or "top center"
        point["textfont"] = {"size": 13, "color": themed("ink")}
        point["marker"] |= {"size": 13 if entry.row.pareto else 10, "opacity": 1 if entry.row.pareto else 0.75}
        if spread:
            point["error_y"] = {"type": "data", "array": [compact(spread)], "color": entry.style.role}
            point["error_y"] |= {"thickness": 1.2, "width": 4}
        data.append(point)
    on_front = [e.row.name for e, _, _, _ in shown if e.row.pareto]
    shorter = any(cost[0] < longest for _, cost, _, _ in shown)
    caption = f"{words.direction}, and further left is cheaper. " + (
        "The line is the Pareto front: nothing measured is both better and cheaper than a point on it."
        if front
        else "No row is marked as Pareto-optimal."
    )
    caption += " Bars are one standard deviation over seeds." if any(s for *_, s in shown) else ""
    caption += " Some mechanisms were not measured at the longest length; theirs is the longest measured." * shorter
    return Chart(
        chart_id,
        title,
        caption,
        f"Scatter plot of {words.name} against relative forward time for {len(shown)} mechanisms. "
        + (f"On the Pareto front: {listed(on_front)}." if on_front else "No mechanism is on the Pareto front."),
        [View("", data, axes.layout(x, y, 440))],
        [Key(e.group, e.row.name, "Pareto" if e.row.pareto else "", e.style) for e, *_ in shown],
        wide=True,
    )


def _front(front: Points) -> list[dict[str, Any]]:
    if len(front) < 2:
        return []
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [compact(x) for x, _ in front],
            "y": [compact(y) for _, y in front],
            "line": {"color": themed("muted"), "width": 1.5, "dash": "dot", "shape": "hv"},
            "hoverinfo": "skip",
        }
    ]


def _label_places(points: Sequence[tuple[float, float, str]], x: axes.Axis, y: axes.Axis) -> list[str]:
    """Return where each point's name stands without covering another; empty where there is no room for it.

    Sizes are those of a plot 1,000 by 360 pixels; a narrow page leaves the names to the legend.
    """
    if len(points) > _LABELLED:
        return [""] * len(points)
    scale_x, scale_y = Scale(x, 1000.0), Scale(y, 360.0)
    centres = [(scale_x(px), scale_y(py)) for px, py, _ in points]
    taken = [(cx - 9, cy - 9, cx + 9, cy + 9) for cx, cy in centres]
    places = []
    for (cx, cy), (_, _, name) in zip(centres, points, strict=True):
        width = 7.2 * len(units.shorten(name, 22))
        options = {
            "top center": (cx - width / 2, cy + 10, cx + width / 2, cy + 28),
            "bottom center": (cx - width / 2, cy - 28, cx + width / 2, cy - 10),
            "middle right": (cx + 11, cy - 9, cx + 11 + width, cy + 9),
            "middle left": (cx - 11 - width, cy - 9, cx - 11, cy + 9),
        }
        free = [place for place, box in options.items() if _fits(box) and not any(_overlap(box, t) for t in taken)]
        places.append(free[0] if free else "")
        taken += [options[place] for place in free[:1]]
    return places


Box = tuple[float, float, float, float]


def _fits(box: Box) -> bool:
    return box[0] >= 0 and box[2] <= 1000 and box[1] >= 0 and box[3] <= 360


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
