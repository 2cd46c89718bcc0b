"""Machines as roofs, and kernels under them: operations per second against operations per byte."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from regard.report import axes, units
from regard.report.axes import Axis, plotly_text
from regard.report.charts import Points, hover_text, nothing, styled_trace
from regard.report.hardware_charts import along, positive, styled, words
from regard.report.hardware_record import Roof, RoofPoint
from regard.report.page import Chart, Key, Table, View
from regard.report.palette import Style, themed
from regard.report.tradeoff import PAGE_FRAME, Box, place_names
from regard.report.training import Listing

_Kept = Sequence[tuple[RoofPoint, float, float]]


@dataclass(frozen=True)
class _Machine:
    name: str
    flops: float
    speed: float

    @property
    def ridge(self) -> float:
        """Operations per byte from which the operations, not memory, take the time."""
        return self.flops / self.speed

    def attainable(self, intensity: float) -> float:
        """Operations per second under the roof."""
        return min(self.flops, intensity * self.speed)


def rate(value: float | None, unit: str) -> str:
    """Format a rate, such as 4.80 TB/s or 512 B/s."""
    text = units.count(value)
    return text if value is None else f"{text}{unit}" if text[-1].isalpha() else f"{text} {unit}"


def machines_table(roofs: Sequence[Roof]) -> Listing:
    """Return the machines with the sources of their figures."""
    rows = []
    for roof in roofs:
        flops, speed = positive(roof.flops_per_s), positive(roof.bytes_per_s)
        ridge = flops / speed if flops and speed else None
        source = words(roof.source, 400) or units.MISSING
        rows.append([words(roof.name), units.count(flops), rate(speed, "B/s"), units.count(ridge), source])
    header = ["machine", "operations/s", "memory", "ridge, operations/byte", "source"]
    return Listing("Machines", header, rows, frozenset({4}))


def roofline_chart(roofs: Sequence[Roof], points: Sequence[RoofPoint]) -> Chart:
    """Return the roofs of machines with kernels under them: hollow where predicted, full where measured."""
    title = "Under the roof"
    machines = {
        roof.name: _Machine(roof.name, flops, speed)
        for roof in roofs
        if (flops := positive(roof.flops_per_s)) and (speed := positive(roof.bytes_per_s))
    }
    kept = [
        (point, intensity, reached)
        for point in points
        if (intensity := positive(point.intensity)) and (reached := positive(point.flops_per_s))
    ]
    if not machines and not kept:
        return nothing("roofline", title, "no machine has both of its rates", wide=True)
    looks = styled([*machines, *(point.roof for point, *_ in kept)])
    x, y = _axes(list(machines.values()), kept)
    keys = [
        Key(f"m{i}", words(name), f"ridge {units.count(machines[name].ridge)}" if name in machines else "", look)
        for i, (name, look) in enumerate(looks.items())
    ]
    return Chart(
        "roofline",
        title,
        "Left of the ridge memory sets the pace, right of it the operations; the legend gives the ridge in operations "
        "per byte. Full markers are measured, hollow ones predicted.",
        _alt(machines, kept),
        [View("", _traces(machines, kept, looks, x, y), axes.layout(x, y, 440))],
        keys,
        _table(machines, kept),
        wide=True,
    )


def _axes(machines: Sequence[_Machine], kept: _Kept) -> tuple[Axis, Axis]:
    places = [x for _, x, _ in kept] + [machine.ridge for machine in machines]
    # both sides of a ridge are seen even where all points lie on one
    places += [end for machine in machines for end in (machine.ridge / 8, machine.ridge * 8)]
    x = axes.logarithmic("operations per byte", places, units.count, room=0.09)
    speeds = [y for _, _, y in kept] + [machine.flops for machine in machines]
    speeds += [machine.attainable(min(places)) for machine in machines]
    return x, axes.logarithmic("operations per second", speeds, units.count, room=0.2)


def _traces(
    machines: dict[str, _Machine], kept: _Kept, looks: dict[str, Style], x: Axis, y: Axis
) -> list[dict[str, Any]]:
    """Return each machine's roof, then the points under it."""
    labels = _labels(list(machines.values()), kept, x, y)
    data: list[dict[str, Any]] = []
    for index, (name, look) in enumerate(looks.items()):
        group = f"m{index}"
        data += [_roof(machines[name], look, group, x)] if name in machines else []
        own = [(*one, label) for one, label in zip(kept, labels, strict=True) if one[0].roof == name]
        for measured in (False, True):
            data += _points([one for one in own if one[0].measured == measured], look, group, measured=measured)
    return data


def _line(machine: _Machine, x: Axis) -> Points:
    return [(place, machine.attainable(place)) for place in (x.low, machine.ridge, x.high)]


def _roof(machine: _Machine, look: Style, group: str, x: Axis) -> dict[str, Any]:
    said = f"{units.count(machine.flops)} operations/s, {rate(machine.speed, 'B/s')}"
    hover = [hover_text(words(machine.name), said, f"ridge at {units.count(machine.ridge)} operations per byte")] * 3
    return styled_trace(_line(machine, x), look, words(machine.name), group, hover, mode="lines")


def _points(
    own: Sequence[tuple[RoofPoint, float, float, str]], look: Style, group: str, *, measured: bool
) -> list[dict[str, Any]]:
    if not own:
        return []
    how = "measured" if measured else "predicted"
    hover = [
        hover_text(
            words(point.name),
            words(point.roof),
            f"{units.count(y)} operations/s, {how}",
            f"{units.count(x)} operations/byte",
        )
        for point, x, y, _ in own
    ]
    trace = styled_trace([(x, y) for _, x, y, _ in own], look, how, group, hover, mode="markers+text")
    trace["text"] = [plotly_text(words(point.name, 22)) if at else "" for point, *_, at in own]
    trace["textposition"] = [at or "top center" for *_, at in own]
    trace["textfont"] = {"size": 13, "color": themed("ink" if measured else "muted")}
    trace["marker"] |= {"size": 11}
    if not measured:
        trace["marker"] |= {"symbol": f"{look.symbol}-open", "line": {"color": look.role, "width": 2}}
    return [trace]


def _labels(machines: Sequence[_Machine], kept: _Kept, x: Axis, y: Axis) -> list[str]:
    """Return where names stand, away from the roofs where that is possible; once where there are both markers."""

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return x.fraction(point[0]) * PAGE_FRAME.width, y.fraction(point[1]) * PAGE_FRAME.height

    boxes: list[Box] = []
    for machine in machines:
        for start, end in itertools.pairwise(map(place, _line(machine, x))):
            boxes += along(start, end)
    centres = [place((intensity, speed)) for _, intensity, speed in kept]
    measured = {(point.name, point.roof) for point, *_ in kept if point.measured}
    names = [
        words(point.name, 22) if point.measured or (point.name, point.roof) not in measured else ""
        for point, *_ in kept
    ]
    return place_names(centres, names, boxes, PAGE_FRAME)


def _alt(machines: dict[str, _Machine], kept: _Kept) -> str:
    roofs = [f"{words(name)} with its ridge at {units.count(found.ridge)}" for name, found in machines.items()]
    measured = sum(point.measured for point, *_ in kept)
    return (
        f"Roofline plot, logarithmic axes, of operations per second against operations per byte: {'; '.join(roofs)}. "
        f"Points: {measured} measured, {len(kept) - measured} predicted."
    )


def _table(machines: dict[str, _Machine], kept: _Kept) -> Table:
    rows = []
    for point, x, y in kept:
        share = y / machines[point.roof].attainable(x) if point.roof in machines else None
        how = "measured" if point.measured else "predicted"
        figures = [units.count(x), units.count(y), units.percent(share)]
        rows.append([words(point.name), words(point.roof), how, *figures])
    header = ["kernel", "machine", "how", "operations/byte", "operations/s", "of the roof"]
    return Table(header, rows)
