"""`regard verify`: parity with the authors' code, case by case."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from regard.cli.errors import UserError, writable_file
from regard.files import write_atomically

if TYPE_CHECKING:
    from rich.table import Table

    from regard.cli.console import Console
    from regard.parity.runner import CaseResult, Report

EXAMPLES = """
  regard verify tests/parity/cases
  regard verify tests/parity/cases --systems lightning,eca --json parity.json
"""


def run(folder: Path, *, systems: str | None = None, json: Path | None = None) -> int:
    """Compare our code with stored results of the authors' code: outputs and gradients, case by case.

    Every tensor of every case must agree within the case's tolerance. A mismatch that may be rounding is settled in
    float64, by how far one float32 rounding of the inputs moves the exact result, and is named. Ends with the line
    `N passed, M failed`; the exit status is 0 only if no case failed and at least one passed.

    Args:
        folder: where the cases are (`<case>.safetensors` and `<case>.json`), in sub-folders or directly.
        systems: only the cases of these systems, separated by commas.
        json: write all results to this file.
    """
    from rich.progress import Progress

    from regard.cli.console import output, progress
    from regard.parity.runner import verify

    writable_file(json)
    console = progress()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("verifying", total=None)

        def show(result: CaseResult, total: int) -> None:
            bar.update(task, advance=1, total=total, description=f"{result.system}/{result.name}")

        report = verify(folder, _names(systems), on_result=show)
    _print(report, output())
    if json is not None:
        _write(report, json)
    print(f"{report.passed} passed, {report.failed} failed", flush=True)
    return 0 if report.ok else 1


def _names(systems: str | None) -> list[str] | None:
    if systems is None:
        return None
    names = [name.strip() for name in systems.split(",")]
    if not all(names):
        raise UserError(f"--systems must be names separated by commas, got {systems!r}")
    return names


def _write(report: Report, path: Path) -> None:
    try:
        write_atomically(path, json.dumps(report.as_json(), indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def _print(report: Report, console: Console) -> None:
    console.print(_table(report))
    for result in report.results:
        if result.settled:
            count = f"{len(result.settled)} of {result.compared} tensors"
            console.print(f"settled in float64 {result.system}/{result.name}: {count} are off by rounding alone")
    for result in report.results:
        if result.unchecked:
            console.print(f"left out by the case {result.system}/{result.name}: {', '.join(result.unchecked)}")
    for result in report.results:
        if not result.passed:
            first, *more = result.problems or ("nothing was compared",)
            rest = f" (and {len(more)} more)" if more else ""
            console.print(f"FAILED {result.system}/{result.name}: {first}{rest}", soft_wrap=True)


def _table(report: Report) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("system", "cases", "tensors", "worst error / tolerance", "of", ""):
        table.add_column(heading, justify="right" if heading in ("cases", "tensors") else "left", overflow="fold")
    for system, results in report.by_system().items():
        failed = sum(not result.passed for result in results)
        compared = [result for result in results if not math.isnan(result.worst)]
        worst = max(compared, key=lambda result: result.worst, default=None)
        table.add_row(
            system,
            str(len(results)),
            str(sum(result.compared for result in results)),
            f"{worst.worst:.2g}" if worst else "",
            f"{worst.name} {worst.worst_name}" if worst else "",
            f"{failed} failed" if failed else "passed",
        )
    return table
