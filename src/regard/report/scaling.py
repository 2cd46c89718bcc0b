"""Cost against length and position: forward time, peak memory, decoding time, state size."""

from __future__ import annotations

from collections.abc import Sequence

from regard.report import axes, units
from regard.report.charts import Entry, Line, Points, keys, nothing, numbers, trace, xs, ys
from regard.report.page import Chart, View
from regard.report.results import Column, Results
from regard.report.units import Formatter
from regard.report.wording import task_words


def exponent(value: float | None) -> str:
    """Format a fitted exponent as a power of the length: n^1.02."""
    return "" if value is None else f"n^{units.plain(value)}"


def _pairs(places: Sequence[float], values: Column) -> Points:
    return [(x, y) for x, y in zip(places, values, strict=True) if y is not None and y > 0]


def time_lines(styled: Sequence[Entry], *, relative: bool = False) -> list[Line]:
    """Return forward time against length in seconds or, with `relative`, as the ratio to the yardstick."""
    lines = []
    for entry in styled:
        if (cost := entry.row.cost) is None:
            continue
        times, ratios = dict(_pairs(cost.lengths, cost.forward_s)), dict(_pairs(cost.lengths, cost.ratio))
        fitted = exponent(cost.time_exponent)
        points = sorted((ratios if relative else times).items())
        hover = [
            f"{units.whole(x)} tokens\n{units.seconds(times.get(x))} · {units.ratio(ratios.get(x))} the yardstick\n"
            + (f"fitted: {fitted}" if fitted else "")
            for x, _ in points
        ]
        lines += [Line(entry, points, hover, fitted)] if points else []
    return lines


def memory_lines(results: Results, styled: Sequence[Entry], *, relative: bool = False) -> list[Line]:
    """Return peak memory against length in bytes or, with `relative`, as the ratio to the yardstick's row."""
    costs = {entry.row.name: entry.row.cost for entry in styled if entry.row.cost}
    reference = costs.get(results.yardstick)
    base = dict(_pairs(reference.lengths, reference.peak_bytes)) if reference else {}
    lines = []
    for entry in styled:
        if (cost := entry.row.cost) is None:
            continue
        bytes_at = dict(_pairs(cost.lengths, cost.peak_bytes))
        ratios = {x: value / base[x] for x, value in bytes_at.items() if x in base}
        fitted = exponent(cost.memory_exponent)
        points = sorted((ratios if relative else bytes_at).items())
        hover = [
            f"{units.whole(x)} tokens\n{units.size(bytes_at[x])}"
            + (f" · {units.ratio(ratios[x])} the yardstick" if x in ratios else "")
            + (f"\nfitted: {fitted}" if fitted else "")
            for x, _ in points
        ]
        lines += [Line(entry, points, hover, fitted)] if points else []
    return lines


def decode_lines(styled: Sequence[Entry], *, relative: bool = False) -> list[Line]:
    """Return decoding time per token against position in seconds or, with `relative`, as the ratio."""
    lines = []
    for entry in styled:
        if (decode := entry.row.decode) is None:
            continue
        times = dict(_pairs(decode.positions, decode.s_per_token))
        ratios = dict(_pairs(decode.positions, decode.ratio))
        points = sorted((ratios if relative else times).items())
        hover = [
            f"position {units.whole(x)}\n{units.seconds(times.get(x))} per token"
            f" · {units.ratio(ratios.get(x))} the yardstick"
            for x, _ in points
        ]
        lines += [Line(entry, points, hover)] if points else []
    return lines


def state_lines(styled: Sequence[Entry]) -> list[Line]:
    """Return the decoding state's bytes against position."""
    lines = []
    for entry in styled:
        if (decode := entry.row.decode) is None:
            continue
        points = _pairs(decode.positions, decode.state_bytes)
        hover = [f"position {units.whole(x)}\nstate of {units.size(y)}" for x, y in points]
        lines += [Line(entry, points, hover)] if points else []
    return lines


def _growth(lines: Sequence[Line], formatter: Formatter) -> str:
    """Say in words what each line does from its first to its last point."""
    return "; ".join(
        f"{units.shorten(line.entry.row.name)} from {formatter(line.points[0][1])} to {formatter(line.points[-1][1])}"
        + (f", {line.note}" if line.note else "")
        for line in lines
    )


def _chart(
    chart_id: str,
    title: str,
    caption: str,
    place: str,
    views: Sequence[tuple[str, str, list[Line], Formatter]],
    last: str = "",
) -> Chart:
    """Return a log-log chart with a view per (label, axis title, lines, formatter) that has lines."""
    drawn = [view for view in views if view[2]]
    every = [line for _, _, lines, _ in drawn for line in lines]
    x = axes.at_values(place, xs(every))
    made = []
    for label, axis_title, lines, formatter in drawn:
        y = axes.logarithmic(axis_title, ys(lines), formatter, binary=formatter is units.size)
        made.append(View(label, [trace(line) for line in lines], axes.layout(x, y)))
    _, _, first, formatter = drawn[0]
    alt = f"Line chart, logarithmic axes: {title.lower()}. {_growth(first, formatter)}."
    return Chart(chart_id, title, caption, alt, made, keys(first), numbers(first, units.whole, formatter, last))


def cost_charts(results: Results, styled: Sequence[Entry]) -> list[Chart]:
    """Return forward time and peak memory against length, with fitted exponents and ratios to the yardstick."""
    yardstick = units.shorten(results.yardstick) or "the yardstick"
    relative = f"relative to {yardstick}"
    time, memory = time_lines(styled), memory_lines(results, styled)
    words = task_words(results.task)
    what, title = words.forward, f"{words.forward.capitalize()} against length"
    charts: list[Chart] = []
    if time or time_lines(styled, relative=True):
        views: list[tuple[str, str, list[Line], Formatter]] = [
            ("time", what, time, units.seconds),
            (f"÷ {yardstick}", f"{what}, {relative}", time_lines(styled, relative=True), units.ratio),
        ]
        caption = (
            "A straight line is a power of the length; the legend gives the fitted exponent. Timings alternate with "
            f"{yardstick}, so the ratio is what to compare between rows."
        )
        charts.append(_chart("time", title, caption, "tokens", views, "exponent"))
    else:
        charts.append(nothing("time", title, f"no {what} was measured"))
    if memory:
        views = [
            ("memory", "peak memory", memory, units.size),
            (f"÷ {yardstick}", f"peak memory, {relative}", memory_lines(results, styled, relative=True), units.ratio),
        ]
        of = "one forward pass beyond inputs" if words.learns else "reading a prompt beyond the model's inputs"
        caption = f"Peak memory of {of} and parameters; the legend gives the fitted exponent."
        charts.append(_chart("memory", "Peak memory against length", caption, "tokens", views, "exponent"))
    else:
        charts.append(nothing("memory", "Peak memory against length", "no peak memory was measured"))
    return charts


def decode_charts(results: Results, styled: Sequence[Entry]) -> list[Chart]:
    """Return decoding time per token and state bytes against position."""
    yardstick = units.shorten(results.yardstick) or "the yardstick"
    time, relative, state = decode_lines(styled), decode_lines(styled, relative=True), state_lines(styled)
    charts: list[Chart] = []
    title = "Decoding time against position"
    if time or relative:
        views: list[tuple[str, str, list[Line], Formatter]] = [
            ("time", "time per token", time, units.seconds),
            (f"÷ {yardstick}", f"time per token, relative to {yardstick}", relative, units.ratio),
        ]
        caption = "Time for one new token after so many; a flat line does not slow down as the input grows."
        charts.append(_chart("decode", title, caption, "position", views))
    else:
        charts.append(nothing("decode", title, "no decoding was measured"))
    title = "State size against position"
    if state:
        caption = "What must be kept between tokens; a flat line is a constant state, a rising one a growing cache."
        charts.append(_chart("state", title, caption, "position", [("", "state size", state, units.size)]))
    else:
        charts.append(nothing("state", title, "no state size was measured"))
    return charts
