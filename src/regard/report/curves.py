"""The charts of a training run, loss, learning rate and validation, and simple line charts of any kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from regard.report import axes, units
from regard.report.axes import Axis
from regard.report.charts import hover_text, nothing, styled_trace
from regard.report.page import Chart, Key, Table, View
from regard.report.palette import Style, assign, themed
from regard.report.record import LineChart, TrainingRecord
from regard.report.series import (
    Gapped,
    by_step,
    covered,
    figure_tick,
    known,
    lonely,
    number,
    smoothed,
    step_axis,
    thinned,
    value_axis,
    window,
)

_AVERAGED = 100
_MARKED = 30
_MOST_VIEWS = 8
_MOST_SERIES = 40
_MOST_ROWS = 400


@dataclass(frozen=True)
class Part:
    """One line of a chart.

    Args:
        group: the legend's group.
        label: its name.
        style: its look.
        points: its points; a value of None is a gap.
        changes: settings of its trace that differ from a strong line without markers.
    """

    group: str
    label: str
    style: Style
    points: Gapped
    changes: dict[str, Any]

    def trace(self, x_words: str, value: Callable[[float | None], str]) -> dict[str, Any]:
        """Return the Plotly trace; few points are marked, and so are those that no line joins to a neighbour."""
        hover = [hover_text(self.label, f"{x_words} {figure_tick(x)}", value(y)) for x, y in self.points]
        mode = "lines+markers" if len(self.points) <= _MARKED or lonely(self.points) else "lines"
        drawn = styled_trace(self.points, self.style, self.label, self.group, hover, mode=mode)
        return drawn | self.changes


def metric_words(name: str) -> str:
    """Return a metric's name as people read it."""
    return units.shorten(units.clean(name).replace("_", " ").strip() or "metric", 40)


def metric_value(name: str, value: object) -> str:
    """Format a metric: a percentage for an accuracy, four significant digits for anything else."""
    found = number(value)
    return units.percent(found) if name.endswith("accuracy") else units.figure(found)


def evaluated(record: TrainingRecord, metric: str) -> Gapped:
    """Return a validation metric by training step; empty where no evaluation measured it."""
    measured = [(step, figures[metric]) for step, figures in record.evaluations if metric in figures]
    return by_step([step for step, _ in measured], [value for _, value in measured])


def loss_chart(record: TrainingRecord) -> Chart:
    """Return the training loss: every record thin, a moving average strong, the validation loss where there is one."""
    title = "Training loss"
    raw = by_step(record.steps, record.loss)
    if not known(raw):
        return nothing("loss", title, "no finite loss was recorded", wide=True)
    validation = evaluated(record, record.validation_loss)
    validation = validation if known(validation) else []
    mean = smoothed(raw) if len(raw) >= _AVERAGED else []
    parts = _loss_parts(raw, mean, validation)
    both = sorted(raw + validation, key=lambda point: point[0])
    ends, outside = covered(both)
    x = step_axis([step for step, _ in both])
    views = [_loss_view("linear", parts, record, x, value_axis("loss", ends))]
    drawn = [y for _, y in known(both)]
    if min(drawn) >= 0 and max(drawn) > 0:
        positive = [replace(part, points=_positive(part.points)) for part in parts]
        y = axes.logarithmic("loss", [y for _, y in known(_positive(both))], figure_tick)
        views.append(_loss_view("logarithmic", positive, record, x, y))
    (first, before), (last, after) = known(raw)[0], known(raw)[-1]
    return Chart(
        "loss",
        title,
        _loss_caption(raw, bool(mean), outside, logarithmic=len(views) > 1),
        f"Line chart of the loss against the training step: {units.figure(before)} at step {units.whole(first)}, "
        f"{units.figure(after)} at step {units.whole(last)}.",
        views,
        [Key(part.group, part.label, f"last {units.figure(_last(part.points))}", part.style) for part in parts],
        _loss_table(raw, mean),
        wide=True,
    )


def _loss_parts(raw: Gapped, mean: Gapped, validation: Gapped) -> list[Part]:
    if mean:
        faint = {"line": {"color": Style(0).role, "width": 1, "dash": "solid"}, "opacity": 0.4, "mode": "lines"}
        parts = [Part("raw", "every record", Style(0), thinned(raw), faint)]
        parts.append(Part("smooth", "moving average", Style(1), mean, {"mode": "lines"}))
    else:
        parts = [Part("raw", "training", Style(1), raw, {})]
    if validation:
        parts.append(Part("validation", "validation", Style(3), thinned(validation), {}))
    return parts


def _last(points: Gapped) -> float | None:
    return known(points)[-1][1] if known(points) else None


def _positive(points: Gapped) -> Gapped:
    return [(x, y if y is not None and y > 0 else None) for x, y in points]


def _loss_view(label: str, parts: Sequence[Part], record: TrainingRecord, x: Axis, y: Axis) -> View:
    layout = axes.layout(x, y) | _resumed_lines(record)
    return View(label, [part.trace("step", lambda y: f"loss {units.figure(y)}") for part in parts], layout)


def _resumed_lines(record: TrainingRecord) -> dict[str, Any]:
    """Return dotted lines at the steps at which the run was taken up again."""
    shapes, notes = [], []
    for step in [place for one in record.resumed_from if (place := number(one)) is not None][:20]:
        line = {"color": themed("muted"), "width": 1, "dash": "dot"}
        shapes.append({"type": "line", "line": line, "x0": step, "x1": step, "y0": 0, "y1": 1, "yref": "paper"})
        font = {"size": 12, "color": themed("muted")}
        place_of = {"x": step, "xanchor": "left", "y": 1, "yref": "paper", "yanchor": "top"}
        notes.append({"text": "resumed", "showarrow": False, "font": font, **place_of})
    return {"shapes": shapes, "annotations": notes if len(notes) <= 4 else []}


def _loss_caption(raw: Gapped, averaged: bool, outside: int, *, logarithmic: bool) -> str:
    caption = "Loss by training step."
    if averaged:
        caption += f" The strong line is the mean over {window(len(raw)):,} neighbouring records, fewer at the start."
    if outside:
        caption += f" {_counted(outside, 'value')} outside of the linear plot"
        caption += "; the logarithmic view shows every positive one." if logarithmic else "."
    if missing := len(raw) - len(known(raw)):
        caption += f" {_counted(missing, 'record')} without a finite loss: the gaps."
    return caption


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun} is" if count == 1 else f"{count:,} {noun}s are"


def _loss_table(raw: Gapped, mean: Gapped) -> Table:
    """Return about a dozen steps with their loss, and the moving average where there is one."""
    averages = dict(mean)
    source = mean or raw
    places = sorted({index * (len(source) - 1) // 11 for index in range(12)})
    values = dict(raw)
    rows = [
        [units.whole(x), units.figure(values[x]), *([units.figure(averages[x])] if mean else [])]
        for x, _ in (source[place] for place in places)
    ]
    return Table(["step", "loss", *(["moving average"] if mean else [])], rows)


def rate_chart(record: TrainingRecord) -> Chart:
    """Return the learning rate by training step."""
    title = "Learning rate"
    points = by_step(record.steps, record.learning_rate) if record.learning_rate else []
    if not known(points):
        return nothing("rate", title, "no learning rate was recorded")
    rate = units.tick(units.figure)
    part = Part("rate", "learning rate", Style(2), thinned(points), {})
    values = [y for _, y in known(points)]
    y = value_axis("learning rate", [min(values), max(values)])
    view = View("", [part.trace("step", rate)], axes.layout(step_axis([x for x, _ in points]), y, 320))
    highest = max(known(points), key=lambda point: point[1])
    words = f"Highest {rate(highest[1])} at step {units.whole(highest[0])}, last {rate(values[-1])}."
    return Chart("rate", title, words, f"Line chart of the learning rate against the training step. {words}", [view])


def validation_chart(record: TrainingRecord) -> Chart:
    """Return the validation metrics by training step, a view each, the primary one first, the best step marked."""
    title = "Validation"
    names = dict.fromkeys(name for _, figures in record.evaluations for name in figures)
    ordered = sorted(names, key=lambda name: name != record.metric)
    curves = {name: points for name in ordered if known(points := evaluated(record, name))}
    if not curves:
        why = "no evaluation took place" if not record.evaluations else "no evaluation gave a finite figure"
        return nothing("validation", title, why)
    shown = dict(list(curves.items())[:_MOST_VIEWS])
    best = number(record.best_step)
    marked = best is not None and any(best in dict(known(points)) for points in shown.values())
    views = [_metric_view(name, points, best) for name, points in shown.items()]
    keys = [Key("metric", "validation", "", Style(3))]
    keys += [Key("best", "best step", units.whole(best), Style(9))] if marked else []
    caption = "Metrics on the validation part by training step."
    if record.metric in shown:
        words = metric_words(record.metric)
        caption = f"{words[:1].upper()}{words[1:]} on the validation part by training step; {record.better} is better."
    first = next(iter(shown))
    ends = known(shown[first])
    alt = f"Line chart of {metric_words(first)} on the validation part against the training step, from "
    alt += f"{metric_value(first, ends[0][1])} to {metric_value(first, ends[-1][1])}."
    return Chart("validation", title, caption, alt, views, keys, _evaluation_table(record, list(curves)))


def _metric_view(name: str, points: Gapped, best: float | None) -> View:
    words = metric_words(name)

    def value(y: float | None) -> str:
        return f"{words} {metric_value(name, y)}"

    parts = [Part("metric", "validation", Style(3), thinned(points), {})]
    found = dict(known(points)).get(best) if best is not None else None
    if best is not None and found is not None:
        parts.append(Part("best", "best step", Style(9), [(best, found)], {"mode": "markers"}))
    y = value_axis(words, covered(points)[0])
    if name.endswith("accuracy"):
        y = replace(y, ticks=[(place, units.tick(units.percent)(place)) for place, _ in y.ticks])
    layout = axes.layout(step_axis([x for x, _ in points]), y, 320)
    return View(words, [part.trace("step", value) for part in parts], layout)


def _evaluation_table(record: TrainingRecord, names: Sequence[str]) -> Table:
    columns = {name: dict(evaluated(record, name)) for name in names}
    steps = sorted({step for column in columns.values() for step in column})
    kept = steps[:: -(-len(steps) // _MOST_ROWS) or 1]
    rows = [[units.whole(s), *(metric_value(name, columns[name].get(s)) for name in names)] for s in kept]
    return Table(["step", *map(metric_words, names)], rows)


def line_chart(chart: LineChart, identity: str) -> Chart:
    """Return a simple line chart, a line per series, values that are not finite left out as gaps.

    Args:
        chart: title, labels of x and y, and named series of points.
        identity: the chart's id in the page.
    """
    title, x_label, y_label, series = chart
    words = [units.shorten(units.clean(text), 90) for text in (title, x_label, y_label)]
    parts = []
    shown = dict(list(series.items())[:_MOST_SERIES])
    for index, (name, style) in enumerate(zip(shown, assign(list(shown), ""), strict=True)):
        pairs = [(number(x), number(y)) for x, y in shown[name]]
        points = thinned([(x, y) for x, y in pairs if x is not None])
        if known(points):
            parts.append(Part(f"s{index}", units.clean(name), style, points, {}))
    if not parts:
        return nothing(identity, words[0], "no finite point was recorded")
    xs = [x for part in parts for x, _ in part.points]
    ys = [y for part in parts for _, y in known(part.points)]
    layout = axes.layout(value_axis(words[1], xs), value_axis(words[2], ys))
    left = len(series) - len(shown)
    caption = f"{words[2]} by {words[1]}." + (f" {left:,} further series are left out." if left else "")
    names = "; ".join(
        f"{units.shorten(part.label)} from {units.figure(known(part.points)[0][1])} to "
        f"{units.figure(known(part.points)[-1][1])}"
        for part in parts
    )
    return Chart(
        identity,
        words[0],
        caption,
        f"Line chart of {words[2]} against {words[1]}: {names}.",
        [View("", [part.trace(words[1], units.figure) for part in parts], layout)],
        [Key(part.group, part.label, "", part.style) for part in parts],
        _points_table(parts, words[1]),
    )


def _points_table(parts: Sequence[Part], places: str) -> Table:
    columns = [dict(part.points) for part in parts]
    xs = sorted({x for column in columns for x in column})
    kept = xs[:: -(-len(xs) // _MOST_ROWS) or 1]
    rows = [[figure_tick(x), *(units.figure(column.get(x)) for column in columns)] for x in kept]
    return Table([places, *(units.shorten(part.label) for part in parts)], rows)
