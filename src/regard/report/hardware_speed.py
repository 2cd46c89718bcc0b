"""How many times faster designs are than the yardstick, as bars by model and length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from regard.report import axes, units
from regard.report.axes import Axis, plotly_text
from regard.report.charts import compact, hover_text, nothing
from regard.report.hardware_charts import length_words, positive, styled, words
from regard.report.hardware_record import SpeedUp
from regard.report.page import Chart, Key, Table, View
from regard.report.palette import Style, themed
from regard.report.units import TIMES

_MOST_MODELS = 8
_Workload = tuple[str, int]
_Found = dict[tuple[str, _Workload], float]
_WHATS: dict[str, Callable[[SpeedUp], float | None]] = {
    "attention": lambda row: positive(row.attention),
    "end to end": lambda row: positive(row.end_to_end),
}


def speed_up_chart(rows: Sequence[SpeedUp], yardstick: str) -> Chart:
    """Return bars of how many times faster each design is than the yardstick, by model and length."""
    title = "Speed-up by workload"
    compared = [row for row in rows if row.design != yardstick]
    looks = styled([yardstick, *(row.design for row in compared)], yardstick)
    places = _workload_places(compared)
    both = {what: _found(compared, value) for what, value in _WHATS.items()}
    drawn = {what: found for what, found in both.items() if found}
    if not drawn:
        return nothing("speed-up", title, "no design was compared with the yardstick", wide=True)
    reference = words(yardstick) or "the yardstick"
    keys = [Key("d0", reference, f"1{TIMES}", looks[yardstick])]
    keys += [Key(f"d{i}", words(name), "", look) for i, (name, look) in enumerate(looks.items()) if i]
    ranges = [_range_words(design, what, found) for design in looks for what, found in drawn.items()]
    return Chart(
        "speed-up",
        title,
        f"How many times faster than {reference}, the line at 1: higher is better. By model and length of queries "
        "and keys.",
        f"Grouped bars of times faster than {reference}, workloads: {len(places)}. {'; '.join(filter(None, ranges))}.",
        [_view(what, found, places, looks, yardstick) for what, found in drawn.items()],
        keys,
        _table([design for design in looks if design != yardstick], drawn, places),
        wide=True,
    )


def _found(rows: Sequence[SpeedUp], value: Callable[[SpeedUp], float | None]) -> _Found:
    return {(row.design, (row.model, row.length)): found for row in rows if (found := value(row)) is not None}


def _table(designs: Sequence[str], drawn: dict[str, _Found], places: dict[_Workload, float]) -> Table:
    columns = [(design, what) for what in drawn for design in designs]
    rows = [
        [
            f"{words(model, 24)} {length_words(length)}",
            *(units.ratio(drawn[what].get((design, (model, length)))) for design, what in columns),
        ]
        for model, length in places
    ]
    return Table(["workload", *(f"{words(design, 20)}, {what}" for design, what in columns)], rows)


def _workload_places(rows: Sequence[SpeedUp]) -> dict[_Workload, float]:
    """Return where each workload's bars stand: the lengths of a model side by side, a gap between models."""
    places: dict[_Workload, float] = {}
    at = 0.0
    for model in dict.fromkeys(row.model for row in rows):
        for length in sorted({row.length for row in rows if row.model == model}):
            places[model, length] = at
            at += 1
        at += 0.6
    return places


def _range_words(design: str, what: str, found: _Found) -> str:
    own = [value for (name, _), value in found.items() if name == design]
    return f"{words(design)}, {what}: {units.ratio(min(own))} to {units.ratio(max(own))}" if own else ""


def _view(
    what: str,
    found: _Found,
    places: dict[_Workload, float],
    looks: dict[str, Style],
    yardstick: str,
) -> View:
    low, high = -0.7, max(places.values()) + 0.7
    x = Axis("length of queries and keys", low, high, ticks=[(at, length_words(n)) for (_, n), at in places.items()])
    y = axes.linear(f"times faster, {what}", [0.0, 1.0, max(found.values())], units.ratio)
    layout = axes.layout(x, replace(y, low=0.0), 420)
    layout |= {"barmode": "group", "bargap": 0.22, "bargroupgap": 0.06} | _model_marks(places)
    # room for the models' names
    layout["margin"] |= {"t": 34}
    layout["xaxis"] |= {"showgrid": False, "tickfont": {"size": 11, "color": themed("muted")}}
    line = {"color": looks[yardstick].role, "width": 1.8}
    data: list[dict[str, Any]] = []
    for index, (design, look) in enumerate(looks.items()):
        own = {workload: value for (name, workload), value in found.items() if name == design}
        hover = [
            hover_text(words(design), f"{words(model)} at {length_words(n)}", f"{units.ratio(value)}, {what}")
            for (model, n), value in own.items()
        ]
        bar: dict[str, Any] = {"type": "bar", "hoverinfo": "text", "hovertext": hover, "legendgroup": f"d{index}"}
        bar |= {"x": [places[workload] for workload in own], "y": [compact(value) for value in own.values()]}
        data += [bar | {"marker": {"color": look.role}}] if own else []
    # drawn last, so that the bars do not hide it
    data.append({"type": "scatter", "mode": "lines", "x": [low, high], "y": [1, 1], "line": line, "hoverinfo": "skip"})
    data[-1]["legendgroup"] = "d0"
    return View(what, data, layout)


def _model_marks(places: dict[_Workload, float]) -> dict[str, Any]:
    """Return the models' names above their bars, and lines between the models."""
    groups: dict[str, list[float]] = {}
    for (model, _), at in places.items():
        groups.setdefault(model, []).append(at)
    if len(groups) > _MOST_MODELS:
        return {}
    font = {"size": 13, "color": themed("ink")}
    notes = [
        {"text": plotly_text(words(model, 16)), "x": sum(ats) / len(ats), "showarrow": False, "font": font}
        | {"y": 1, "yref": "paper", "yanchor": "bottom"}
        for model, ats in groups.items()
    ]
    line = {"color": themed("line"), "width": 1}
    shapes = [
        {
            "type": "line",
            "layer": "below",
            "line": line,
            "x0": ats[0] - 0.8,
            "x1": ats[0] - 0.8,
            "y0": 0,
            "y1": 1,
            "yref": "paper",
        }
        for ats in list(groups.values())[1:]
    ]
    return {"annotations": notes, "shapes": shapes}
