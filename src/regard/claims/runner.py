"""Measuring claims one by one: a claim that raises is reported and does not stop the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from regard.claims import Measured, RegisteredClaim, claims_of, known_systems
from regard.errors import describe_exception
from regard.metadata import Grade

Verdict = Literal["held", "not held", "out of reach", "error"]
VERDICTS: tuple[Verdict, ...] = ("held", "not held", "out of reach", "error")
DEFAULT_GRADES: tuple[Grade, ...] = ("exact", "ratio")


@dataclass(frozen=True, kw_only=True)
class ClaimResult:
    """How one claim ended.

    Args:
        system: id of the paper's system.
        name: the claim's name; empty where the module with the system's claims could not be imported.
        grade: the claim's grade.
        statement: what the paper says.
        figure: the paper's figure.
        where: the place in the paper.
        criterion: what had to be measured.
        verdict: "held", "not held", "out of reach" or "error".
        value: the measured figure; for "out of reach" the reason, for "error" what was raised.
        detail: what else is worth knowing.
        seconds: how long the measurement took.
    """

    system: str
    name: str
    grade: str
    verdict: Verdict
    value: str
    statement: str = ""
    figure: str = ""
    where: str = ""
    criterion: str = ""
    detail: str = ""
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {
            "system": self.system,
            "claim": self.name,
            "grade": self.grade,
            "verdict": self.verdict,
            "measured": self.value,
            "detail": self.detail,
            "statement": self.statement,
            "figure": self.figure,
            "where": self.where,
            "criterion": self.criterion,
            "elapsed_s": self.seconds,
        }


def run_claim(registered: RegisteredClaim) -> ClaimResult:
    """Measure one claim; an exception becomes the verdict "error"."""
    start = time.perf_counter()
    verdict: Verdict
    detail = ""
    if registered.measure is None:
        verdict, value = "out of reach", registered.claim.reason
    else:
        try:
            measured = registered.measure()
            if not isinstance(measured, Measured):
                raise TypeError(f"the measurement must return Measured, got {type(measured).__name__}")
            verdict, value, detail = "held" if measured.held else "not held", measured.value, measured.detail
        except Exception as error:
            # one claim's failure is its own result: the others are still measured
            verdict, value = "error", describe_exception(error)
    made = registered.claim
    return ClaimResult(
        system=registered.system,
        name=made.name,
        grade=made.grade,
        statement=made.statement,
        figure=made.figure,
        where=made.where,
        criterion=made.criterion,
        verdict=verdict,
        value=value,
        detail=detail,
        seconds=time.perf_counter() - start,
    )


def select(systems: Iterable[str], grades: Sequence[str]) -> tuple[list[RegisteredClaim], list[ClaimResult]]:
    """The claims of these grades, those out of reach always among them, and an error for each system whose module
    cannot be imported.

    Raises:
        LookupError: a system that has no claims.
    """
    chosen: list[RegisteredClaim] = []
    broken: list[ClaimResult] = []
    known = known_systems()
    for system in systems:
        if system not in known:
            raise LookupError(f"the system {system!r} has no claims")
        try:
            registered = claims_of(system)
        except Exception as error:
            # a module that cannot be imported is an error of that system only
            told = describe_exception(error)
            broken.append(ClaimResult(system=system, name="", grade="", verdict="error", value=told))
            continue
        chosen += [each for each in registered if each.measure is None or each.claim.grade in grades]
    return chosen, broken


def reproduce(
    systems: Iterable[str],
    grades: Sequence[str] = DEFAULT_GRADES,
    *,
    on_start: Callable[[RegisteredClaim, int, int], object] | None = None,
    on_result: Callable[[ClaimResult], object] | None = None,
) -> list[ClaimResult]:
    """Measure the claims of some systems.

    Args:
        systems: their ids.
        grades: which claims; those out of reach are always listed.
        on_start: called before each claim with it, its number (from 1) and the number of all.
        on_result: called with each result.

    Raises:
        LookupError: a system that has no claims.
    """
    chosen, results = select(systems, grades)
    for result in results:
        if on_result is not None:
            on_result(result)
    for number, registered in enumerate(chosen, start=1):
        if on_start is not None:
            on_start(registered, number, len(chosen))
        results.append(run_claim(registered))
        if on_result is not None:
            on_result(results[-1])
    return results
