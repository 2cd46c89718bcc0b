"""Attention replaced inside a trained model: perplexity, hidden numbers found and recovered mass against length."""

from __future__ import annotations

from collections.abc import Sequence

from regard.report import axes, units
from regard.report.axes import Axis
from regard.report.charts import Entry, Line, keys, nothing, numbers, trace, xs, ys
from regard.report.page import Chart, View
from regard.report.results import Column, Inference
from regard.report.units import Formatter


def _share(value: float | None) -> str:
    return units.percent(value)


def _excess(value: float | None) -> str:
    return units.percent(value, signed=True)


def _perplexity(value: float | None) -> str:
    return units.plain(value, 3)


def perplexity_lines(styled: Sequence[Entry]) -> list[Line]:
    """Return perplexity against the length of the prompt; the note is how far from full attention it ends."""
    lines = []
    for entry in styled:
        if (found := entry.row.inference) is None:
            continue
        excess = dict(zip(found.lengths, found.excess, strict=True))
        points = _points(found, found.perplexity)
        hover = [
            f"after {units.whole(x)} tokens\nperplexity {_perplexity(y)}\n"
            f"{_excess(excess.get(x))} against full attention"
            for x, y in points
        ]
        note = _excess(excess.get(points[-1][0])) if points else ""
        lines += [Line(entry, points, hover, note)] if points else []
    return lines


def _share_lines(styled: Sequence[Entry], part: str, words: str) -> list[Line]:
    lines = []
    for entry in styled:
        if (found := entry.row.inference) is None:
            continue
        points = _points(found, getattr(found, part))
        hover = [f"{units.whole(x)} tokens\n{_share(y)} {words}" for x, y in points]
        lines += [Line(entry, points, hover, _share(points[-1][1]))] if points else []
    return lines


def _points(found: Inference, values: Column) -> list[tuple[float, float]]:
    return [(x, y) for x, y in zip(found.lengths, values, strict=True) if y is not None]


def perplexity_axes(lines: Sequence[Line]) -> tuple[Axis, Axis]:
    """Return the axes of perplexity against length: logarithmic where it spans more than a factor of 4."""
    x, values = axes.at_values("tokens of the prompt", xs(lines)), ys(lines)
    title = "perplexity (lower is better)"
    if max(values) > 4 * min(values):
        return x, axes.logarithmic(title, values, units.figure)
    return x, axes.linear(title, values, units.figure, room=0.08)


def inference_charts(styled: Sequence[Entry]) -> list[Chart]:
    """Return perplexity, hidden numbers found and recovered mass, each against the length of the prompt."""
    title = "Perplexity against length"
    if lines := perplexity_lines(styled):
        caption = (
            "Of the tokens after each prompt, decoded one by one; the same tokens whatever the length. "
            "The legend tells how far from full attention each ends."
        )
        first = _chart("perplexity", title, caption, lines, perplexity_axes(lines), _perplexity)
    else:
        first = nothing("perplexity", title, "no perplexity was measured")
    return [
        first,
        _shares(
            styled,
            "needle",
            "Hidden numbers found",
            "of the hidden numbers' tokens found",
            "Share of the tokens of numbers, hidden at three depths, that are the likeliest at the end. "
            "A guess among ten digits finds a tenth; where full attention finds none, this says nothing.",
        ),
        _shares(
            styled,
            "mass",
            "Attention mass recovered",
            "of full attention's mass recovered",
            "How much of full attention's weights falls on the keys that a decoded token attends to, averaged over "
            "layers, heads and tokens. Layers and steps that attend to all keys count as 100 %.",
        ),
    ]


def _shares(styled: Sequence[Entry], part: str, title: str, words: str, caption: str) -> Chart:
    lines = _share_lines(styled, part, words)
    if not lines:
        return nothing(part, title, "it was not measured")
    x = axes.at_values("tokens of the prompt", xs(lines))
    y = axes.linear(f"share {words}", [0.0, 1.0], _share, room=0.04)
    return _chart(part, title, caption, lines, (x, y), _share)


def _chart(
    chart_id: str, title: str, caption: str, lines: Sequence[Line], at: tuple[Axis, Axis], formatter: Formatter
) -> Chart:
    ends = "; ".join(
        f"{units.shorten(line.entry.row.name)} from {formatter(line.points[0][1])} to {formatter(line.points[-1][1])}"
        for line in lines
    )
    view = View("", [trace(line) for line in lines], axes.layout(*at))
    table = numbers(lines, units.whole, formatter)
    return Chart(chart_id, title, caption, f"Line chart: {title.lower()}. {ends}.", [view], keys(lines), table)
