"""`regard reproduce`: the papers' claims, measured on this machine."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from regard.cli.errors import UserError, writable_file
from regard.files import write_atomically
from regard.metadata import GRADES

if TYPE_CHECKING:
    from regard.claims import RegisteredClaim
    from regard.claims.runner import ClaimResult
    from regard.cli.console import Console

EXAMPLES = """
  regard reproduce lightning eca
  regard reproduce --grade exact --json claims.json
"""

MEASURABLE = tuple(grade for grade in GRADES if grade != "out of reach")


def run(systems: list[str] = [], *, grade: str = "exact,ratio", json: Path | None = None) -> int:  # noqa: B006 - read only
    """Measure the claims of the papers and say of each whether it holds here.

    Each claim has a criterion that was fixed before measuring. A claim that does not hold is a result, not a failure:
    the exit status is 0 when every claim could be measured, and 1 if measuring one raised an error. Claims that are
    out of reach on such a machine are listed with the reason.

    Args:
        systems: whose claims; all systems when none is named.
        grade: which claims, separated by commas: exact (counted), ratio (two things raced in one run), scaled (a
            small training run, minutes each).
        json: write the results to this file, after each claim.
    """
    from regard.claims.runner import VERDICTS, reproduce
    from regard.cli.console import output, progress

    chosen, grades = _known(systems), _grades(grade)
    writable_file(json)
    out = output()
    results: list[ClaimResult] = []

    with progress().status("") as spinner:

        def announce(registered: RegisteredClaim, number: int, total: int) -> None:
            spinner.update(f"{registered.system} {registered.claim.name} ({number} of {total})")
            spinner.start()

        def show(result: ClaimResult) -> None:
            spinner.stop()
            results.append(result)
            _print(result, out)
            if json is not None:
                _write(results, json)

        reproduce(chosen, grades, on_start=announce, on_result=show)
    if json is not None:
        _write(results, json)
    counts = Counter(result.verdict for result in results)
    out.print(", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS))
    return 1 if counts["error"] else 0


def _known(systems: list[str]) -> list[str]:
    from regard.claims import known_systems

    known = known_systems()
    for system in systems:
        if system not in known:
            near = difflib.get_close_matches(system, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known) or 'none'}"
            raise UserError(f"the system {system!r} has no claims: {hint}")
    return list(dict.fromkeys(systems)) or known


def _grades(grade: str) -> list[str]:
    grades = [each.strip() for each in grade.split(",")]
    for each in grades:
        if each not in MEASURABLE:
            raise UserError(f"--grade must be of {', '.join(MEASURABLE)}, separated by commas, got {each!r}")
    return grades


def _write(results: list[ClaimResult], path: Path) -> None:
    try:
        write_atomically(path, json.dumps([result.as_json() for result in results], indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def _print(result: ClaimResult, out: Console) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    style = {"held": "green", "not held": "yellow", "error": "bold red"}.get(result.verdict, "dim")
    # a module that could not be imported has no claim to name
    what = f"{result.system} {result.name}".rstrip()
    grade = f" [{result.grade}] " if result.grade else " "
    head = Text.assemble((what, "bold"), grade, (result.verdict, style))
    out.print(head)
    rows = Table.grid(padding=(0, 2))
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold")
    paper = "; ".join(part for part in (result.statement, result.figure, result.where) if part)
    shown = {"paper": paper, "criterion": result.criterion, _LABELS.get(result.verdict, "measured"): result.value}
    shown["detail"] = f"{result.detail} ({result.seconds:.1f} s)" if result.detail else ""
    for label, text in shown.items():
        if text:
            rows.add_row(label, text)
    out.print(Padding(rows, (0, 0, 1, 2)))


_LABELS = {"out of reach": "reason", "error": "error"}
