"""`regard hardware cost`, `compare` and `sweep`: layers on designs and chips."""

from __future__ import annotations

from dataclasses import asdict
from statistics import fmean
from typing import TYPE_CHECKING, Any

from regard.cli.hardware import Made, table
from regard.hardware.chips import chip_cost
from regard.hardware.cost import attention_cost, phases
from regard.hardware.designs import ARRAYS, DESIGNS, Design, design
from regard.hardware.growth import growth
from regard.hardware.library import along, cascade, names
from regard.hardware.linear import linear_cost
from regard.hardware.passes import count_passes
from regard.hardware.roofline import MACHINES, Machine
from regard.hardware.sweep import Point, pareto_front, sweep, sweep_designs
from regard.hardware.workloads import TITLES, Workload, length_in_words
from regard.report.hardware import (
    GrowthLine,
    HardwareRecord,
    Roof,
    RoofPoint,
    SizePoint,
    SpeedUp,
    Timeline,
    TimelinePhase,
)
from regard.wording import count_in_words

if TYPE_CHECKING:
    from regard.cli.console import Console
    from regard.hardware.einsum import Cascade

YARDSTICK = "flat"
CALIBRATED = (
    "Energies are calibrated: the energy of an access to the global buffer is one constant for each design, fitted to "
    "published energies."
)
SIZED = "What FLAT keeps on the chip was chosen for 256 elements per side, and buffers do not grow with the arrays."
AREAS = "Areas are published ones; they are not modelled."
ROOFED = ("attention_one_pass", "softplus", "window", "hip", "agent", "aaren", "lightning")
"""Cascades under the roofs: the others of attention compute what the 1-pass one does."""
GROWN = (64, 128, 256, 512, 1024)
SWEPT_LENGTH = 262144
TYPICAL = 65536
"""The length of the workload whose timeline and roofs are shown."""


def cost_on_design(console: Console, work: Workload, name: str) -> Made:
    """Print and return what softmax attention costs on a design."""
    chip = design(name)
    cost, linear = attention_cost(work, chip), linear_cost(work, chip)
    console.print(f"{_title(work)} on {chip.name}: {chip.summary}", soft_wrap=True)
    rows = [
        ("attention", f"{cost.latency_s:.6g} s", f"bound by {cost.bound}"),
        ("linear layers", f"{linear.latency_s:.6g} s", ""),
        ("two-dimensional array at work", f"{cost.util_2d:.1%}", ""),
        ("one-dimensional array at work", f"{cost.util_1d:.1%}", ""),
        ("off the chip", f"{cost.traffic_bytes / 1e9:,.2f} GB", "attention"),
        ("energy", f"{cost.energy_pj / 1e12:,.3f} J", "attention, calibrated"),
    ]
    console.print(table(("", "", ""), rows))
    parts = phases(work, chip)
    figures: dict[str, Any] = {
        "workload": asdict(work),
        "arch": chip.name,
        **asdict(cost),
        "linear": asdict(linear),
        "phases": [asdict(part) | {"length": part.length} for part in parts],
        "notes": [CALIBRATED],
    }
    record = HardwareRecord(
        title=f"{_title(work)} on {chip.name}",
        subtitle=chip.summary,
        speed_ups=_speed_ups([work], list(DESIGNS.values())),
        timelines=[_timeline(work, chip)],
        notes=[CALIBRATED],
    )
    return figures, record


def cost_on_chip(console: Console, found: Cascade, work: Workload, machine: Machine, keys: int, agents: int) -> Made:
    """Print and return the least that a cascade costs on a chip."""
    if keys < 1 or agents < 1:
        raise ValueError(f"keys and agents must be positive, got {keys} and {agents}")
    cost = chip_cost(found, work, machine, keys_seen=keys, agents=agents)
    console.print(f"{found.name}, {_title(work)}, on {machine.name}", soft_wrap=True)
    if machine.source:
        console.print(machine.source, soft_wrap=True)
    rows = [
        ("least time", f"{cost.latency_s:.6g} s", f"bound by {cost.bound}"),
        ("operations", f"{cost.operations:.4g}", ""),
        ("in and out of the chip", f"{cost.traffic_bytes / 1e9:,.4g} GB", "inputs and outputs, once"),
        ("operations per byte", f"{cost.intensity:,.1f}", f"products take the time from {machine.ridge:,.1f} on"),
    ]
    console.print(table(("", "", ""), rows))
    figures = {
        "cascade": found.name,
        "workload": asdict(work),
        "machine": asdict(machine),
        **asdict(cost),
        "operations_per_byte": cost.intensity,
    }
    record = HardwareRecord(
        title=f"{found.name}, {_title(work)}, on {machine.name}",
        subtitle=found.summary,
        roofs=[_roof(machine)],
        roof_points=[_roof_point(found, work, machine, keys=keys, agents=agents)],
    )
    return figures, record


def compare(console: Console, works: list[Workload], calibrated: Machine | None) -> Made:
    """Print and return five designs on some workloads."""
    ups = _speed_ups(works, list(DESIGNS.values()))
    headings = ("design", "attention", "end to end", "2-D array", "1-D array", "energy (calibrated)")
    rows = [_means(name, works, ups) for name in DESIGNS]
    said = f"{count_in_words(len(works), 'workload')}, arithmetic means"
    console.print(f"{said}; times faster than {YARDSTICK}, energy relative to it", soft_wrap=True)
    console.print(table(headings, rows))
    machines = [*MACHINES.values(), *([calibrated] if calibrated else [])]
    example = next((work for work in works if work.keys == TYPICAL), works[-1])
    record = HardwareRecord(
        title="Attention on accelerators",
        subtitle=f"{len(DESIGNS)} designs, {_in_words(works)}",
        yardstick=YARDSTICK,
        speed_ups=[up for up in ups if up.design != YARDSTICK],
        roofs=[_roof(machine) for machine in machines],
        roof_points=[_roof_point(cascade(name), example, machine) for machine in machines for name in ROOFED],
        growth=[_growth_line(cascade(name)) for name in names() if name.startswith("attention")],
        sizes=[size for work in works if work.keys == SWEPT_LENGTH for size in _sizes(work)],
        timelines=[_timeline(example, DESIGNS[name]) for name in ("flat", "cascade", "arch", "fusemax")],
        notes=[CALIBRATED, AREAS],
    )
    points = [
        {"model": work.model, "seq": work.keys, "arch": name, **asdict(attention_cost(work, chip))}
        | {"linear": asdict(linear_cost(work, chip))}
        for work in works
        for name, chip in DESIGNS.items()
    ]
    means = [dict(zip(headings, row, strict=True)) for row in rows]
    return {"yardstick": YARDSTICK, "means": means, "points": points, "notes": [CALIBRATED]}, record


def _means(name: str, works: list[Workload], ups: list[SpeedUp]) -> tuple[str, ...]:
    """A design's row."""
    own = [up for up in ups if up.design == name]
    costs = [attention_cost(work, DESIGNS[name]) for work in works]
    base = [attention_cost(work, DESIGNS[YARDSTICK]) for work in works]
    return (
        name,
        f"{fmean(up.attention for up in own):.3f}x",
        f"{fmean(up.end_to_end or 0.0 for up in own):.3f}x",
        f"{fmean(cost.util_2d for cost in costs):.1%}",
        f"{fmean(cost.util_1d for cost in costs):.1%}",
        f"{fmean(cost.energy_pj / other.energy_pj for cost, other in zip(costs, base, strict=True)):.3f}",
    )


def sweep_one(console: Console, work: Workload) -> Made:
    """Print and return FuseMax at six sizes for one workload."""
    points = sweep(work)
    front = {point.array for point in pareto_front(points)}
    rows = [
        (
            f"{point.array} x {point.array}",
            "-" if point.area_mm2 is None else f"{point.area_mm2:,.1f} mm^2",
            f"{point.latency_s:.6g} s",
            f"{point.traffic_bytes / 1e9:,.1f} GB",
            f"{point.buffer_bytes / 2**20:,.2f} MiB",
            "on the front" if point.array in front else "",
        )
        for point in points
    ]
    console.print(f"{_title(work)} on FuseMax, attention alone")
    console.print(table(("array", "area", "time", "traffic", "buffer", ""), rows))
    figures = {"workload": asdict(work), "points": [asdict(point) for point in points], "front": sorted(front)}
    record = HardwareRecord(title=f"{_title(work)} on FuseMax of six sizes", sizes=_sizes(work), notes=[AREAS])
    return figures, record


def sweep_all(console: Console, works: list[Workload]) -> Made:
    """Print and return all designs on several workloads at all sizes of the arrays."""
    points = sweep_designs(works)
    rows = []
    for array in ARRAYS:
        own = [point for point in points if point.array == array]
        base = {(point.model, point.seq): point.latency_s for point in own if point.arch == YARDSTICK}
        means = [
            fmean(base[point.model, point.seq] / point.latency_s for point in own if point.arch == name)
            for name in DESIGNS
        ]
        rows.append((f"{array} x {array}", *(f"{mean:.2f}x" for mean in means)))
    console.print(
        f"{len(points)} points; attention, times faster than {YARDSTICK} with arrays of equal size, arithmetic means "
        f"over {len(works)} workloads",
        soft_wrap=True,
    )
    console.print(table(("array", *DESIGNS), rows))
    console.print(SIZED, soft_wrap=True)
    shown = SWEPT_LENGTH if any(work.keys == SWEPT_LENGTH for work in works) else works[-1].keys
    record = HardwareRecord(
        title="FuseMax of six sizes",
        subtitle=f"at {shown:,} tokens",
        sizes=[size for work in works if work.keys == shown for size in _sizes(work)],
        notes=[AREAS],
    )
    return {"points": [asdict(point) for point in points], "notes": [CALIBRATED, SIZED]}, record


def _in_words(works: list[Workload]) -> str:
    models = ", ".join(dict.fromkeys(TITLES[work.model] for work in works))
    lengths = [length_in_words(work.keys) for work in works]
    span = lengths[0] if len(set(lengths)) == 1 else f"{lengths[0]} to {lengths[-1]}"
    return f"{count_in_words(len(works), 'workload')}: {models} at {span}"


def _title(work: Workload) -> str:
    return f"{TITLES[work.model]} at {work.keys:,} tokens"


def _speed_ups(works: list[Workload], chips: list[Design]) -> list[SpeedUp]:
    made = []
    for work in works:
        linear = linear_cost(work, DESIGNS[YARDSTICK]).latency_s
        base = attention_cost(work, DESIGNS[YARDSTICK]).latency_s
        for chip in chips:
            own = attention_cost(work, chip).latency_s
            made.append(
                SpeedUp(
                    model=TITLES[work.model],
                    length=work.keys,
                    design=chip.name,
                    attention=base / own,
                    end_to_end=(base + linear) / (own + linear),
                )
            )
    return made


def _timeline(work: Workload, chip: Design) -> Timeline:
    return Timeline(
        design=chip.name,
        workload=_title(work),
        phases=[
            TimelinePhase(name=part.name, square=part.square, line=part.line, stall=part.stall)
            for part in phases(work, chip)
        ],
    )


def _roof(machine: Machine) -> Roof:
    return Roof(
        name=machine.name,
        flops_per_s=machine.flops_per_s,
        bytes_per_s=machine.bytes_per_s,
        source=machine.source,
    )


def _roof_point(found: Cascade, work: Workload, machine: Machine, *, keys: int = 512, agents: int = 49) -> RoofPoint:
    cost = chip_cost(found, work, machine, keys_seen=keys, agents=agents)
    return RoofPoint(
        name=found.name,
        roof=machine.name,
        intensity=cost.intensity,
        flops_per_s=cost.operations / cost.latency_s,
        measured=False,
    )


def _growth_line(found: Cascade) -> GrowthLine:
    rank = along(found)
    return GrowthLine(
        cascade=found.name,
        passes=count_passes(found, rank).count,
        points=[(row.length, row.live_words) for row in growth(found, rank, GROWN)],
    )


def _sizes(work: Workload) -> list[SizePoint]:
    points: list[Point] = sweep(work)
    front = {point.array for point in pareto_front(points)}
    return [
        SizePoint(
            array=point.array,
            area_mm2=point.area_mm2,
            latency_s=point.latency_s,
            on_front=point.array in front,
            workload=_title(work),
        )
        for point in points
    ]
