"""The list of planted defects: what the checks of `regard.testing` must catch.

Each defect is a mixer with one broken property, the name of the check that must catch it, and a part of the message,
so that it is caught for the right reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Class = TypeVar("Class", bound=type)


@dataclass(frozen=True)
class Defect:
    check: str
    message: str
    mixer: type

    def __str__(self) -> str:
        return f"{self.check}-{self.mixer.__name__}"


DEFECTS: list[Defect] = []


def caught_by(check: str, message: str) -> Callable[[Class], Class]:
    def note(mixer: Class) -> Class:
        DEFECTS.append(Defect(check, message, mixer))
        return mixer

    return note
