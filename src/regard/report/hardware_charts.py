"""The smaller charts of accelerators: words on the chip, area against latency, predicted and measured times."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from regard.report import axes, units
from regard.report.charts import Points, hover_text, nothing, styled_trace
from regard.report.hardware_record import GrowthLine, SizePoint, TimePair
from regard.report.page import Chart, Key, Table, View
from regard.report.palette import Style, assign, themed
from regard.report.series import number
from regard.report.tradeoff import Box, Frame, place_names
from regard.report.units import TIMES

_HALF_FRAME = Frame(480, 290, 7.2, 16, 10)


def words(text: object, most: int = 60) -> str:
    """Return any text as one line that a chart or a table has room for."""
    return units.shorten(units.clean(text).strip(), most)


def positive(value: object) -> float | None:
    """Return `value` as a float if a logarithmic axis can show it, from 1e-30 to 1e30, else None."""
    found = number(value)
    return found if found is not None and 1e-30 <= found <= 1e30 else None


def styled(names: Iterable[str], yardstick: str = "") -> dict[str, Style]:
    """Return a style for each different name, in the order in which the names come first."""
    different = list(dict.fromkeys(names))
    return dict(zip(different, assign(different, yardstick), strict=True))


def length_words(length: float) -> str:
    """Return 1024 as "1K", 1048576 as "1M", and other lengths as they are."""
    for unit, letter in ((2**20, "M"), (2**10, "K")):
        if length >= unit and length % unit == 0:
            return f"{units.whole(length / unit)}{letter}"
    return units.whole(length)


def seconds(value: float | None) -> str:
    """Format a time that may be hours long without minutes: 820 ns, 1.25 s, 16,667 s."""
    return f"{units.whole(value)} s" if value is not None and value >= 120 else units.seconds(value)


def geometric_mean(values: Sequence[float]) -> float:
    """Return the mean that ratios have: 2 and 0.5 make 1. The values are positive, and there is at least one."""
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def along(start: tuple[float, float], end: tuple[float, float]) -> list[Box]:
    """Return small boxes that cover a straight line, for placing names beside it."""
    count = max(1, round(max(abs(end[0] - start[0]), abs(end[1] - start[1])) / 4))
    boxes = []
    for index in range(count + 1):
        cx, cy = (a + (b - a) * index / count for a, b in zip(start, end, strict=True))
        boxes.append((cx - 2, cy - 2, cx + 2, cy + 2))
    return boxes


def growth_chart(lines: Sequence[GrowthLine]) -> Chart:
    """Return the words that must stay on the chip against the length of the keys, a line per cascade."""
    title = "Words on the chip"
    looks = assign([line.cascade for line in lines], "")
    drawn = []
    for index, (line, look) in enumerate(zip(lines, looks, strict=True)):
        points = sorted({x: y for own, live in line.points if (x := positive(own)) and (y := positive(live))}.items())
        passes = f"{line.passes} pass" + "es" * (line.passes != 1)
        drawn += [(words(line.cascade), passes, look, f"g{index}", points)] if points else []
    if not drawn:
        return nothing("growth", title, "no cascade has a count of live words")
    every: Points = [point for *_, points in drawn for point in points]
    layout = axes.layout(
        axes.at_values("length of the keys", [x for x, _ in every]),
        axes.logarithmic("live words on the chip", [y for _, y in every], units.count),
    )
    traces, table, said = [], [], []
    columns = sorted({x for x, _ in every})
    for name, passes, look, group, points in drawn:
        hover = [hover_text(name, passes, f"{units.whole(y)} words at {units.whole(x)} keys") for x, y in points]
        traces.append(styled_trace(points, look, name, group, hover))
        table.append([name, passes, *(units.whole(dict(points).get(x)) for x in columns)])
        said.append(f"{name}, {passes}, from {units.whole(points[0][1])} to {units.whole(points[-1][1])}")
    return Chart(
        "growth",
        title,
        "Live words against the length of the keys: a flat line needs the same room whatever the length.",
        f"Line chart, logarithmic axes, of live words against the length of the keys: {'; '.join(said)}.",
        [View("", traces, layout)],
        [Key(group, name, passes, look) for name, passes, look, group, _ in drawn],
        Table(["cascade", "passes", *map(units.whole, columns)], table),
    )


def sizes_chart(rows: Sequence[SizePoint]) -> Chart:
    """Return the area of a chip against its latency, a point per size of the array, each workload's front drawn."""
    title = "Area against latency"
    looks = styled(row.workload for row in rows)
    drawn = [(row, x, y) for row in rows if (x := positive(row.latency_s)) and (y := positive(row.area_mm2))]
    if not drawn:
        return nothing("sizes", title, "no size has both an area and a latency")
    on_front = {w: sum(row.on_front for row, *_ in drawn if row.workload == w) for w in looks}
    said = [f"{words(w)}: {count} on the front" for w, count in on_front.items()]
    return Chart(
        "sizes",
        title,
        "A chip with an array of each size; lower is smaller, further left is faster. The dotted line joins the sizes "
        "that no other beats in both.",
        f"Scatter plot, logarithmic axes, of area against latency, points: {len(drawn)}. {'; '.join(said)}.",
        [_sizes_view(drawn, looks)],
        [Key(f"w{i}", words(w), f"{on_front[w]} on the front", look) for i, (w, look) in enumerate(looks.items())],
        Table(["workload, array", "area, mm²", "latency", "on the front"], [_size_row(row) for row in rows]),
    )


def _size_row(row: SizePoint) -> list[str]:
    figures = [units.tick(units.figure)(number(row.area_mm2)), seconds(number(row.latency_s))]
    return [f"{words(row.workload)}, {_square(row.array)}", *figures, "yes" if row.on_front else "no"]


def _sizes_view(drawn: Sequence[tuple[SizePoint, float, float]], looks: dict[str, Style]) -> View:
    x_axis = axes.logarithmic("latency", [x for _, x, _ in drawn], seconds, room=0.25)
    y_axis = axes.logarithmic("area, mm²", [y for _, _, y in drawn], units.tick(units.figure), room=0.1)
    frame = _HALF_FRAME
    centres = [(x_axis.fraction(x) * frame.width, y_axis.fraction(y) * frame.height) for _, x, y in drawn]
    fronts: list[Box] = []
    for workload in looks:
        pairs = zip(centres, drawn, strict=True)
        front = sorted(at for at, (row, *_) in pairs if row.workload == workload and row.on_front)
        fronts += [box for pair in itertools.pairwise(front) for box in along(*pair)]
    labels = place_names(centres, [_square(row.array) for row, *_ in drawn], fronts, frame)
    data: list[dict[str, Any]] = []
    for index, (workload, look) in enumerate(looks.items()):
        own = [(*one, at) for one, at in zip(drawn, labels, strict=True) if one[0].workload == workload]
        data += _size_traces(own, look, f"w{index}")
    return View("", data, axes.layout(x_axis, y_axis))


def _square(array: int) -> str:
    return f"{array} {TIMES} {array}"


def _size_traces(own: Sequence[tuple[SizePoint, float, float, str]], look: Style, group: str) -> list[dict[str, Any]]:
    """Return the front of a workload as a line, and its points with their names."""
    front = sorted((x, y) for row, x, y, _ in own if row.on_front)
    line = {"color": look.role, "width": 1.8, "dash": "dot"}
    traces = [styled_trace(front, look, "front", group, [], mode="lines", line=line, hoverinfo="skip")]
    hover = [
        hover_text(_square(row.array), words(row.workload), f"{units.figure(y)} mm² · {seconds(x)}")
        for row, x, y, _ in own
    ]
    points = styled_trace([(x, y) for _, x, y, _ in own], look, "sizes", group, hover, mode="markers+text")
    points["text"] = [_square(row.array) if at else "" for row, *_, at in own]
    points["textposition"] = [at or "top center" for *_, at in own]
    points["textfont"] = {"size": 12, "color": themed("ink")}
    return [*(traces if len(front) > 1 else []), *([points] if own else [])]


@dataclass(frozen=True)
class _Times:
    """A mechanism's times: length, predicted and measured seconds."""

    name: str
    style: Style
    group: str
    points: Sequence[tuple[int, float, float]]

    @property
    def ratio(self) -> str:
        return units.ratio(geometric_mean([measured / predicted for _, predicted, measured in self.points]))

    def traces(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return the predicted and the measured line, and the line of their ratio."""
        look, role = self.style, self.style.role
        hover = [
            hover_text(
                self.name,
                f"{units.whole(length)} tokens",
                f"predicted {seconds(p)}, measured {seconds(m)}: {units.ratio(m / p)}",
            )
            for length, p, m in self.points
        ]
        full = {"color": role, "width": 2.2, "dash": "solid"}
        hollow = {"color": role, "symbol": f"{look.symbol}-open", "size": 8.5, "line": {"width": 1.6}}
        changes = {"line": full | {"width": 1.8, "dash": "dash"}, "marker": hollow}
        lines = [[(n, p) for n, p, _ in self.points], [(n, m) for n, _, m in self.points]]
        ratios = [(n, m / p) for n, p, m in self.points]
        return [
            styled_trace(lines[0], look, self.name, self.group, hover, **changes),
            styled_trace(lines[1], look, self.name, self.group, hover, line=full),
        ], styled_trace(ratios, look, self.name, self.group, hover, line=full)


def times_chart(pairs: Sequence[TimePair]) -> Chart:
    """Return predicted and measured time against length, and how many times longer than predicted it took."""
    title = "Predicted and measured time"
    found = _times(pairs)
    if not found:
        return nothing("times", title, "no time was both predicted and measured", wide=True)
    every = [point for own in found for point in own.points]
    x = axes.at_values("tokens", [length for length, *_ in every])
    time = axes.logarithmic("time", [value for _, *both in every for value in both], seconds)
    ratios = axes.logarithmic("measured ÷ predicted", [1.0, *(m / p for _, p, m in every)], units.ratio)
    traces = [own.traces() for own in found]
    said = [f"{own.name} takes {own.ratio} of what is predicted" for own in found]
    table = [
        [own.name, units.whole(length), seconds(p), seconds(m), units.ratio(m / p)]
        for own in found
        for length, p, m in own.points
    ]
    return Chart(
        "times",
        title,
        "Dashed and hollow: predicted; full: measured. The legend gives the geometric mean of measured ÷ predicted.",
        f"Line chart, logarithmic axes, of predicted and measured time against length: {'; '.join(said)}.",
        [
            View("time", [line for pair, _ in traces for line in pair], axes.layout(x, time)),
            View("measured ÷ predicted", [ratio for _, ratio in traces], axes.layout(x, ratios)),
        ],
        [Key(own.group, own.name, own.ratio, own.style) for own in found],
        Table(["mechanism", "tokens", "predicted", "measured", "measured ÷ predicted"], table),
        wide=True,
    )


def _times(pairs: Sequence[TimePair]) -> list[_Times]:
    points: dict[str, dict[int, tuple[float, float]]] = {}
    for pair in pairs:
        predicted, measured = positive(pair.predicted_s), positive(pair.measured_s)
        if predicted and measured and positive(pair.length):
            points.setdefault(pair.mechanism, {})[pair.length] = (predicted, measured)
    looks = styled(points)
    return [
        _Times(words(name), looks[name], f"t{index}", [(length, *both) for length, both in sorted(own.items())])
        for index, (name, own) in enumerate(points.items())
    ]
