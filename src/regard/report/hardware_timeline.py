"""What both arrays of an accelerator do, phase by phase, as bars along the time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from regard.report import axes, units
from regard.report.axes import Axis, plotly_text
from regard.report.charts import compact, hover_text, nothing
from regard.report.hardware_charts import styled, words
from regard.report.hardware_record import Timeline
from regard.report.page import Chart, Key, Table, View
from regard.report.palette import LIGHT, Style, themed
from regard.report.series import number

_SQUARE, _LINE = "two-dimensional array", "one-dimensional array"
_PITCH = 2.5
"""Rows from one design to the next: one for each array, and a gap."""
_PATTERNS = ("", "x", ".", "+")
_MOST_WORKLOADS = 6
_MOST_PHASES = 40


@dataclass(frozen=True)
class _Phase:
    name: str
    square: float
    line: float
    stall: float

    @property
    def length(self) -> float:
        return max(self.square, self.line) + self.stall

    @property
    def parts(self) -> tuple[tuple[str, str, float], tuple[str, str, float]]:
        """Array, what it does, and for how long."""
        first, bar, second = self.name.partition(" | ")
        return (_SQUARE, first, self.square), (_LINE, second if bar else first, self.line)

    @property
    def colour(self) -> str:
        """Phases in which the two-dimensional array does the same share a colour, across designs."""
        return self.parts[0][1]


@dataclass(frozen=True)
class _Run:
    """A design's phases, with figures that a plot can hold."""

    design: str
    workload: str
    phases: Sequence[_Phase]

    @property
    def length(self) -> float:
        return math.fsum(phase.length for phase in self.phases)

    def busy(self, array: int) -> float:
        """Return the share of the time in which an array works: 0 for the two-dimensional one, 1 for the other."""
        return math.fsum(phase.parts[array][2] for phase in self.phases) / self.length


@dataclass
class _Bars:
    """Bars of one look, as Plotly wants them."""

    starts: list[float] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    rows: list[float] = field(default_factory=list)
    hover: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)

    def add(self, row: float, start: float, length: float, hover: str, text: str = "") -> None:
        """Append a bar, unless it has no length."""
        if length > 0:
            self.starts.append(compact(start))
            self.lengths.append(compact(length))
            self.rows.append(row)
            self.hover.append(hover)
            self.text.append(plotly_text(text))

    def trace(self, group: str, marker: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the trace, if there is anything to draw."""
        bar: dict[str, Any] = {"type": "bar", "orientation": "h", "legendgroup": group, "marker": marker, "width": 0.86}
        bar |= {"base": self.starts, "x": self.lengths, "y": self.rows, "hoverinfo": "text", "hovertext": self.hover}
        bar |= {"text": self.text, "textposition": "inside", "insidetextanchor": "middle", "textangle": 0}
        bar |= {"insidetextfont": {"color": themed("surface"), "size": 12}}
        return [bar] if self.rows else []


def timeline_chart(timelines: Sequence[Timeline]) -> Chart:
    """Return both arrays of each design as rows of bars over a common time, a pair of views per workload."""
    title = "What both arrays do"
    runs = [run for timeline in timelines if (run := _run(timeline)).length > 0]
    if not runs:
        return nothing("timeline", title, "no phase has a length", wide=True)
    every = [phase for run in runs for phase in run.phases]
    looks = styled(phase.colour for phase in every)
    keys = [Key(f"p{i}", words(name), "", look) for i, (name, look) in enumerate(looks.items())]
    keys += [Key("stall", "stall", "hatched", Style(0))] if any(phase.stall for phase in every) else []
    left = len({run.workload for run in runs}) - _MOST_WORKLOADS
    header = ["design", "workload", "phase", "2D", "1D", "stall", "lasts"]
    return Chart(
        "timeline",
        title,
        "Cycles per score, on the two-dimensional array (2D) and the one-dimensional array (1D) of each design. Empty "
        "boxes: that array is idle. Hatched: both wait. A colour is a phase, named by what 2D does; "
        "the figure at the end is the whole time."
        + (f" {left:,} further workloads are in the table only." if left > 0 else ""),
        f"Bars along the time. {'; '.join(map(_run_words, runs))}.",
        _views(runs, looks),
        keys,
        Table(header, [row for run in runs for row in _rows(run)]),
        wide=True,
    )


def _views(runs: Sequence[_Run], looks: dict[str, Style]) -> list[View]:
    workloads = list(dict.fromkeys(run.workload for run in runs))
    views = []
    for workload in workloads[:_MOST_WORKLOADS]:
        own = [run for run in runs if run.workload == workload]
        before = f"{words(workload, 24)}: " if len(workloads) > 1 else ""
        views += [_view(f"{before}cycles", own, looks), _view(f"{before}shares", own, looks, shares=True)]
    return views


def _run_words(run: _Run) -> str:
    return (
        f"{words(run.design)} on {words(run.workload)} takes {_cycles(run.length)} cycles per score, the {_SQUARE} at "
        f"work for {units.percent(run.busy(0))} of them, the {_LINE} for {units.percent(run.busy(1))}"
    )


def _run(timeline: Timeline) -> _Run:
    def length(value: object) -> float:
        return max(number(value) or 0.0, 0.0)

    phases = [
        _Phase(units.clean(phase.name), length(phase.square), length(phase.line), length(phase.stall))
        for phase in timeline.phases[:_MOST_PHASES]
    ]
    return _Run(timeline.design, timeline.workload, phases)


def _cycles(value: float | None) -> str:
    return units.tick(units.figure)(value)


def _rows(run: _Run) -> list[list[str]]:
    """Return a row per phase, and one for the whole with the share of the time in which each array works."""
    head = [words(run.design), words(run.workload)]
    rows = [
        [*head, words(phase.name, 80), *map(_cycles, (phase.square, phase.line, phase.stall, phase.length))]
        for phase in run.phases
    ]
    stall = math.fsum(phase.stall for phase in run.phases)
    busy = [units.percent(run.busy(array)) for array in (0, 1)]
    return [*rows, [*head, "whole", *busy, units.percent(stall / run.length), _cycles(run.length)]]


def _view(label: str, runs: Sequence[_Run], looks: dict[str, Style], *, shares: bool = False) -> View:
    """Return the bars in cycles or, with `shares`, every design stretched to the same length."""
    worked = {name: _Bars() for name in looks}
    idle, stalls = _Bars(), _Bars()
    ticks: list[tuple[float, str]] = []
    for index, run in enumerate(runs):
        scale = 100 / run.length if shares else 1.0
        _draw(run, index * _PITCH, scale, worked, idle, stalls)
        ticks += [(index * _PITCH, f"{words(run.design, 16)} 2D"), (index * _PITCH + 1, "1D")]
    data = idle.trace("idle", {"color": themed("surface"), "line": {"color": themed("line"), "width": 1}})
    hatch = {"shape": "/", "fgcolor": themed("muted"), "bgcolor": themed("surface"), "size": 6, "solidity": 0.25}
    line = {"color": themed("line"), "width": 1}
    data += stalls.trace("stall", {"color": themed("surface"), "pattern": hatch, "line": line})
    for index, (name, look) in enumerate(looks.items()):
        data += worked[name].trace(f"p{index}", _marker(look))
    longest = 100.0 if shares else max(run.length for run in runs)
    x_ticks = axes.linear("", [0.0, longest], units.tick(units.figure), room=0.0).ticks
    x_title = "share of the design's own time, %" if shares else "cycles per score"
    x = Axis(x_title, 0.0, longest * 1.01, ticks=x_ticks)
    y = Axis("", len(runs) * _PITCH - 0.9, -0.6, ticks=ticks)
    layout = axes.layout(x, y, round(110 + 62 * len(runs)))
    layout |= {"barmode": "overlay", "uniformtext": {"minsize": 12, "mode": "hide"}}
    # room for the plotting library's buttons above the first row, and for the whole time beside the longest one
    layout["margin"] |= {"t": 34, "r": 14 if shares else 50}
    layout["annotations"] = [] if shares else [_end(run, index) for index, run in enumerate(runs)]
    layout["yaxis"] |= {"showgrid": False, "fixedrange": True}
    return View(label, data, layout)


def _marker(look: Style) -> dict[str, Any]:
    marker: dict[str, Any] = {"color": look.role, "line": {"color": themed("surface"), "width": 0.5}}
    # a bar has no dash: a pattern tells phases of equal colour apart
    if pattern := _PATTERNS[look.index // len(LIGHT) % len(_PATTERNS)]:
        marker["pattern"] = {"shape": pattern, "size": 5, "solidity": 0.3}
    return marker


def _draw(run: _Run, row: float, scale: float, worked: dict[str, _Bars], idle: _Bars, stalls: _Bars) -> None:
    """Add a design's phases: on each row the work, then an empty box until the other array is done, then the stall."""
    start, design = 0.0, words(run.design)
    for phase in run.phases:
        together = max(phase.square, phase.line)
        for offset, (array, what, length) in enumerate(phase.parts):
            at = row + offset
            lasts = f"{_cycles(length)} of {_cycles(phase.length)} cycles, {array}"
            worked[phase.colour].add(
                at, start * scale, length * scale, hover_text(what, design, lasts), words(what, 40)
            )
            rest = together - length
            hover = hover_text("idle", design, f"{_cycles(rest)} cycles, {array}", f"during: {words(phase.name, 80)}")
            idle.add(at, (start + length) * scale, rest * scale, hover)
            hover = hover_text("stall", design, f"{_cycles(phase.stall)} cycles, both arrays wait")
            stalls.add(at, (start + together) * scale, phase.stall * scale, hover)
        start += phase.length


def _end(run: _Run, index: int) -> dict[str, Any]:
    """Return the whole time as text at the end of a design's bars, between its two rows."""
    font = {"size": 12, "color": themed("ink")}
    place = {"x": compact(run.length), "xanchor": "left", "xshift": 4, "y": index * _PITCH + 0.5, "yanchor": "middle"}
    return {"text": plotly_text(_cycles(run.length)), "showarrow": False, "font": font, **place}
