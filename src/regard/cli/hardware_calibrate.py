"""`regard hardware calibrate`: this machine's roofs, and how well they tell the time of attention layers."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from regard.cli.hardware import Made, table
from regard.report.hardware import HardwareRecord, Roof, RoofPoint, TimePair

if TYPE_CHECKING:
    from regard.analysis.calibration import Compared
    from regard.cli.console import Console
    from regard.hardware.roofline import Machine


def calibrated(console: Console) -> Made:
    """Measure, print and return the peaks, and predicted times beside measured ones."""
    from rich.progress import Progress

    from regard.analysis.calibration import LENGTHS, calibrate, compare_times
    from regard.cli.console import progress
    from regard.hardware.kernels import KERNELS

    errors = progress()
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("measuring peaks", total=1 + len(LENGTHS) * len(KERNELS))
        machine = calibrate()
        bar.update(task, advance=1, description="running layers")
        found = compare_times(
            machine, on_result=lambda each: bar.update(task, advance=1, description=f"{each.mechanism} {each.tokens:,}")
        )
    console.print(f"{machine.name}: {machine.source}", soft_wrap=True)
    console.print(table(("", "", ""), _peaks(machine)))
    console.print()
    headings = ("mechanism", "tokens", "predicted", "measured", "measured / predicted")
    rows = [_row(each) for each in found]
    console.print(table(headings, rows))
    figures: dict[str, Any] = {
        "machine": asdict(machine),
        "layers": [asdict(each) | {"measured_over_predicted": each.ratio} for each in found],
    }
    roof = Roof(
        name=machine.name,
        flops_per_s=machine.flops_per_s,
        bytes_per_s=machine.bytes_per_s,
        source=machine.source,
    )
    record = HardwareRecord(
        title="This machine's roofs",
        subtitle=machine.source,
        roofs=[roof],
        roof_points=[_point(each, machine) for each in found],
        times=[
            TimePair(
                mechanism=each.mechanism,
                length=each.tokens,
                predicted_s=each.predicted_s,
                measured_s=each.measured_s,
            )
            for each in found
        ],
        facts=[(name, value) for name, value, _ in _peaks(machine)],
    )
    return figures, record


def _peaks(machine: Machine) -> list[tuple[str, str, str]]:
    return [
        ("products of large matrices", f"{machine.flops_per_s / 1e9:,.1f} GFLOP/s", ""),
        ("products of tiles in the cache", f"{machine.tile_flops_per_s / 1e9:,.1f} GFLOP/s", ""),
        ("memory", f"{machine.bytes_per_s / 1e9:,.1f} GB/s", "read and written"),
        ("exponentials", f"{machine.exps_per_s / 1e9:,.2f} G/s", "in the cache"),
        ("other operations on elements", f"{machine.element_ops_per_s / 1e9:,.2f} G/s", "in the cache"),
        ("a call", f"{machine.call_s * 1e6:,.2f} us", ""),
    ]


def _row(each: Compared) -> tuple[str, ...]:
    return (
        each.mechanism,
        f"{each.tokens:,}",
        f"{each.predicted_s * 1e3:,.2f} ms",
        f"{each.measured_s * 1e3:,.2f} ms",
        f"{each.ratio:.2f}",
    )


def _point(each: Compared, machine: Machine) -> RoofPoint:
    return RoofPoint(
        name=f"{each.mechanism}, {each.tokens:,}",
        roof=machine.name,
        intensity=each.operations / each.moved_bytes,
        flops_per_s=each.operations / each.measured_s,
        measured=True,
    )
