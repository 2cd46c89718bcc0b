"""`regard hardware passes`: what begins each pass of a cascade, and how it grows with the length."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from regard.cli.hardware import Made, table
from regard.hardware.growth import Growth, growth
from regard.hardware.library import along
from regard.hardware.passes import TAXONOMY, Passes, count_passes
from regard.report.hardware import GrowthLine, HardwareRecord

if TYPE_CHECKING:
    from regard.cli.console import Console
    from regard.hardware.einsum import Cascade

LENGTHS = (64, 128, 256, 512, 1024)


def passes(console: Console, cascade: Cascade, rank: str | None) -> Made:
    """Print and return the passes over a rank."""
    rank = rank or along(cascade)
    counted = count_passes(cascade, rank)
    console.print(f"{cascade.name}: {cascade.summary}" if cascade.summary else cascade.name, soft_wrap=True)
    rows = [
        (step.tensor, str(step.number) if step.number else "-", step.forced_by, _what(step.iterates, rank))
        for step in counted.steps
    ]
    console.print(table(("tensor", "pass", "begun by the whole of", ""), rows))
    console.print(f"{_words(counted)} over {rank}")
    if cascade.name.startswith("attention") and counted.count in TAXONOMY:
        console.print(f"as in {', '.join(TAXONOMY[counted.count])}", soft_wrap=True)
    found = growth(cascade, rank, LENGTHS)
    console.print()
    console.print(table((rank, "live words", "fetched words", "operations per word"), [_row(row) for row in found]))
    figures: dict[str, Any] = {
        "cascade": cascade.name,
        "rank": rank,
        "passes": counted.count,
        "steps": [asdict(step) for step in counted.steps],
        "growth": [asdict(row) | {"operations_per_word": row.intensity} for row in found],
    }
    line = GrowthLine(
        cascade=cascade.name, passes=counted.count, points=[(row.length, row.live_words) for row in found]
    )
    record = HardwareRecord(
        title=f"{cascade.name}: {_words(counted)} over {rank}", subtitle=cascade.summary, growth=[line]
    )
    return figures, record


def _what(iterates: bool, rank: str) -> str:
    return "" if iterates else f"not over all of {rank}"


def _words(counted: Passes) -> str:
    return f"{counted.count} pass" if counted.count == 1 else f"{counted.count} passes"


def _row(row: Growth) -> tuple[str, str, str, str]:
    return f"{row.length:,}", f"{row.live_words:,}", f"{row.fetched_words:,}", f"{row.intensity:.1f}"
