"""What a model of accelerators hands to its report: plain numbers and text.

Every sequence may be empty, and values that are missing or not finite are left out of the plots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regard.report.record import Fact, Grid


@dataclass(frozen=True, kw_only=True)
class SpeedUp:
    """How much faster a design is than the yardstick on one workload.

    Args:
        model: name of the model, such as "BERT".
        length: of queries and keys.
        design: name of the design.
        attention: how many times faster attention alone is.
        end_to_end: the same with the linear layers around it.
    """

    model: str
    length: int
    design: str
    attention: float
    end_to_end: float | None = None


@dataclass(frozen=True, kw_only=True)
class Roof:
    """A machine that exists.

    Args:
        name: of the machine.
        flops_per_s: operations per second that it can do.
        bytes_per_s: to and from its memory.
        source: of both figures.
    """

    name: str
    flops_per_s: float
    bytes_per_s: float
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class RoofPoint:
    """A kernel under a roof.

    Args:
        name: of the kernel.
        roof: the machine's name.
        intensity: operations per byte.
        flops_per_s: operations per second, reached or predicted.
        measured: reached on the machine, not predicted.
    """

    name: str
    roof: str
    intensity: float
    flops_per_s: float
    measured: bool


@dataclass(frozen=True, kw_only=True)
class GrowthLine:
    """The words that a cascade keeps on the chip.

    Args:
        cascade: its name.
        passes: over the keys.
        points: pairs of the keys' length and live words.
    """

    cascade: str
    passes: int
    points: Sequence[tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class SizePoint:
    """An accelerator of one size.

    Args:
        array: processing elements per side.
        area_mm2: area of the chip; None = unknown.
        latency_s: of the workload.
        on_front: whether no other size is both smaller and faster.
        workload: what it runs.
    """

    array: int
    area_mm2: float | None
    latency_s: float
    on_front: bool
    workload: str


@dataclass(frozen=True, kw_only=True)
class TimelinePhase:
    """Work on both arrays that begins at the same time, in cycles per score.

    Args:
        name: what is done. Where it has a bar (" | "), the two-dimensional array does what stands before it and the
            one-dimensional array what stands after it.
        square: on the two-dimensional array.
        line: on the one-dimensional array.
        stall: after that, while neither works.
    """

    name: str
    square: float
    line: float
    stall: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The phases of a design, one after the other.

    Args:
        design: its name.
        workload: what it runs.
        phases: in the order of time.
    """

    design: str
    workload: str
    phases: Sequence[TimelinePhase]


@dataclass(frozen=True, kw_only=True)
class TimePair:
    """The predicted and the measured time of a mechanism.

    Args:
        mechanism: its name.
        length: in tokens.
        predicted_s: seconds that the model tells.
        measured_s: seconds that a machine took.
    """

    mechanism: str
    length: int
    predicted_s: float
    measured_s: float


@dataclass(frozen=True, kw_only=True)
class HardwareRecord:
    """What attention costs on accelerators; each part of the page is there only where its figures are given.

    Args:
        title: the page's heading.
        subtitle: a line below it.
        command: the command that was run, as its words.
        yardstick: the design that the others are compared with.
        speed_ups: of designs, by workload.
        roofs: of machines.
        roof_points: kernels under those roofs.
        growth: words on the chip against the length of the keys, by cascade.
        sizes: area and latency of one design at several sizes.
        timelines: what both arrays of a design do.
        times: predicted and measured.
        tables: titles, headings and rows of anything else.
        notes: sentences on how the figures came about, such as that energies are calibrated.
        facts: names and values for the settings.
    """

    title: str
    subtitle: str = ""
    command: Sequence[str] = ()
    yardstick: str = "flat"
    speed_ups: Sequence[SpeedUp] = ()
    roofs: Sequence[Roof] = ()
    roof_points: Sequence[RoofPoint] = ()
    growth: Sequence[GrowthLine] = ()
    sizes: Sequence[SizePoint] = ()
    timelines: Sequence[Timeline] = ()
    times: Sequence[TimePair] = ()
    tables: Sequence[Grid] = ()
    notes: Sequence[str] = ()
    facts: Sequence[Fact] = ()
