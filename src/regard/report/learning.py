"""Quality during training and beyond the training length: learning curves and extrapolation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from regard.report import axes, units
from regard.report.axes import Axis
from regard.report.charts import Entry, Line, Points, compact, keys, nothing, numbers, trace, xs, ys
from regard.report.page import Chart, Table, View
from regard.report.palette import themed
from regard.report.results import Results
from regard.report.units import Formatter
from regard.report.wording import QualityWords, task_words

MOST_POINTS = 400
Part = Literal["validation", "train"]


def seed_points(entry: Entry, part: Part) -> list[Points]:
    """Return each seed's curve, in the order of its steps, thinned to at most 400 points."""
    curves = [curve.validation if part == "validation" else curve.train for curve in entry.row.curves]
    return [_thin(sorted(curve)) for curve in curves if curve]


def mean_points(seeds: Sequence[Points]) -> Points:
    """Return the mean over seeds at the steps that every seed has; a lone seed is its own mean."""
    values = [dict(points) for points in seeds]
    shared = sorted(set.intersection(*(set(value) for value in values))) if values else []
    return [(step, sum(value[step] for value in values) / len(values)) for step in shared]


def _thin(points: Points) -> Points:
    stride = -(-len(points) // MOST_POINTS)
    kept = points[::stride]
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def curve_lines(styled: Sequence[Entry], part: Part) -> list[Line]:
    """Return the mean learning curve of every mechanism that has one; the note is its last value."""
    lines = []
    for entry in styled:
        if points := mean_points(seed_points(entry, part)):
            hover = [f"step {units.whole(x)}\n{part}: {_loss(y)}" for x, y in points]
            lines.append(Line(entry, points, hover, _loss(points[-1][1])))
    return lines


def _loss(value: float) -> str:
    """Three decimals, or below 0.1 three digits."""
    return units.plain(value, 3) if abs(value) >= 0.1 else units.figure(value, 3)


def curve_words(results: Results) -> str:
    """Return what the learning curves measure."""
    return task_words(results.task).curve


def baselines_within(results: Results, y: Axis) -> list[tuple[str, float]]:
    """Return the reference lines that fall inside an axis, without those too close to another to read its name."""
    if not task_words(results.task).measures_quality:
        return []
    within = sorted((value, name) for name, value in results.baselines.items() if y.low <= value <= y.high)
    kept: list[tuple[str, float]] = []
    for value, name in within:
        if not kept or y.fraction(value) - y.fraction(kept[-1][1]) > 0.07:
            kept.append((name, value))
    return kept


def curve_chart(results: Results, styled: Sequence[Entry]) -> Chart:
    """Return the learning curves, validation and training as two views; seeds faint, the mean strong."""
    title = "Learning curves"
    parts: list[tuple[Part, str]] = [("validation", "validation"), ("train", "training")]
    views, legends = [], []
    for part, label in parts:
        lines = curve_lines(styled, part)
        if lines:
            views.append(View(label, *_curve_view(results, lines, part)))
            legends.append((label, lines))
    if not views:
        return nothing("curves", title, "no learning curve was recorded")
    label, lines = legends[0]
    several = any(len(seed_points(line.entry, "validation")) > 1 for line in lines)
    caption = f"Mean {label} {curve_words(results)} by training step"
    caption += "; faint lines are single seeds." if several else "."
    finals = ", ".join(f"{units.shorten(line.entry.row.name)} {line.note}" for line in lines)
    return Chart(
        "curves",
        title,
        f"{caption} The legend gives the last {label} value; the first steps may lie above the plot.",
        f"Line chart of {curve_words(results)} against training step. Last {label} values: {finals}.",
        views,
        keys(lines),
        Table(
            ["mechanism", *(f"last {name}" for name, _ in legends)],
            [[e.row.name, *(_last(drawn, e) for _, drawn in legends)] for e in (line.entry for line in lines)],
        ),
    )


def _last(lines: Sequence[Line], entry: Entry) -> str:
    return next((line.note for line in lines if line.entry is entry), units.MISSING)


def _curve_view(results: Results, lines: Sequence[Line], part: Part) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return traces and layout of one view: single seeds below, means above."""
    faint, strong = [], []
    for line in lines:
        seeds = seed_points(line.entry, part)
        for points in seeds if len(seeds) > 1 else []:
            single = trace(Line(line.entry, points, []), mode="lines", hoverinfo="skip", opacity=0.28)
            single["line"] |= {"width": 1}
            faint.append({key: value for key, value in single.items() if key not in ("hovertext", "marker")})
        strong.append(trace(line, mode="lines+markers" if len(line.points) == 1 else "lines"))
    x, y = curve_axes(results, lines, part)
    layout = axes.layout(x, y)
    layout |= _reference_lines(baselines_within(results, y))
    return faint + strong, layout


def curve_axes(results: Results, lines: Sequence[Line], part: Part) -> tuple[Axis, Axis]:
    """Return the axes of one view of the learning curves."""
    label = "validation" if part == "validation" else "training"
    x = axes.linear("training step", [0.0, *xs(lines)], units.whole, room=0.015)
    return x, axes.linear(f"{label} {curve_words(results)}", curve_range(lines), _tick, room=0.06)


def curve_range(lines: Sequence[Line]) -> list[float]:
    """Return the values that a curve's axis covers: those after the first fifth of the steps.

    The fall before would hide the rest. A curve that ends above the others is covered to its end, unless it diverged
    beyond twice their range.
    """
    start = 0.2 * max(xs(lines))
    values = [y for line in lines for x, y in line.points if x >= start] or ys(lines)
    ordered = sorted(values)
    lowest, upper = ordered[0], ordered[min(len(ordered) - 1, int(0.985 * len(ordered)))]
    last = max(line.points[-1][1] for line in lines)
    return [lowest, max(upper, min(last, lowest + 2 * (upper - lowest)))]


def _reference_lines(references: Sequence[tuple[str, float]]) -> dict[str, Any]:
    shapes, notes = [], []
    for name, value in references:
        line = {"color": themed("muted"), "width": 1, "dash": "dot"}
        ends: dict[str, Any] = {"x0": 0, "x1": 1, "xref": "paper", "y0": compact(value), "y1": compact(value)}
        shapes.append({"type": "line", "line": line, **ends})
        font = {"size": 12, "color": themed("muted")}
        text = axes.plotly_text(f"{units.shorten(name)} {units.plain(value)}")
        place = {"x": 1, "xref": "paper", "xanchor": "right", "y": compact(value), "yanchor": "bottom"}
        notes.append({"text": text, "showarrow": False, "font": font, **place})
    return {"shapes": shapes, "annotations": notes}


def _tick(value: float | None) -> str:
    return units.MISSING if value is None else f"{value:.4g}".replace("-", units.MINUS)


def factor(value: float | None) -> str:
    """Format a multiple of the training length: 4×."""
    return units.MISSING if value is None else f"{value:g}{units.TIMES}"


def extrapolation_lines(styled: Sequence[Entry], words: QualityWords) -> list[Line]:
    """Return quality against the multiple of the training length."""
    lines = []
    for entry in styled:
        points = [(point.factor, point.mean) for point in entry.row.extrapolation]
        hover = [
            f"{factor(point.factor)} the training length"
            + (f" ({units.whole(point.length)} tokens)" if point.length else "")
            + f"\n{words.with_unit(point.mean, point.spread)}"
            for point in entry.row.extrapolation
        ]
        lines += [Line(entry, points, hover)] if points else []
    return lines


def extrapolation_axes(lines: Sequence[Line], words: QualityWords) -> tuple[Axis, Axis]:
    """Return the axes of an extrapolation plot: logarithmic quality where it spans more than a factor of 4."""
    x = axes.at_values("length, as a multiple of the training length", xs(lines), factor)
    values = ys(lines)
    if min(values) > 0 and max(values) > 4 * min(values) and words.lower_is_better:
        return x, axes.logarithmic(words.axis, values, words.tick)
    return x, axes.linear(words.axis, values, words.tick)


def extrapolation_chart(styled: Sequence[Entry], words: QualityWords) -> Chart:
    """Return quality at 1×, 2×, 4× and 8× the training length."""
    title = "Beyond the training length"
    lines = extrapolation_lines(styled, words)
    if not lines:
        return nothing("extrapolation", title, "no quality was measured beyond the training length")
    x, y = extrapolation_axes(lines, words)
    data = []
    for line in lines:
        drawn = trace(line)
        spreads = [point.spread or 0.0 for point in line.entry.row.extrapolation]
        if any(spreads):
            drawn["error_y"] = {"type": "data", "array": [compact(s) for s in spreads], "thickness": 1, "width": 3}
            drawn["error_y"] |= {"color": line.entry.style.role}
        data.append(drawn)
    ends = "; ".join(
        f"{units.shorten(line.entry.row.name)} {words.value(line.points[0][1])} at {factor(line.points[0][0])}"
        f" and {words.value(line.points[-1][1])} at {factor(line.points[-1][0])}"
        for line in lines
    )
    formatter: Formatter = words.value
    return Chart(
        "extrapolation",
        title,
        f"Trained at {factor(1)}, evaluated at longer inputs. {words.direction}; a flat line keeps its quality.",
        f"Line chart of {words.name} against the length. {ends}.",
        [View("", data, axes.layout(x, y))],
        keys(lines),
        numbers(lines, factor, formatter),
    )
