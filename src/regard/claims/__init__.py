"""The papers' claims as measurements that anyone can run again: `regard.claims.<system>`, one module per system.

```python
from regard.claims import Measured, claim


@claim("lightning", name="block_equals_quadratic", grade="exact", statement="...", where="Eq. 5",
       criterion="max relative error <= 2e-4")
def block_equals_quadratic() -> Measured:
    error = ...
    return Measured(value=f"{error:.1e}", held=error <= 2e-4, detail="n in {1, 63, 64}")
```

The criterion is fixed before measuring. A claim that does not hold is a result, reported as such.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from regard.metadata import Claim, Grade

__all__ = ["Measured", "RegisteredClaim", "claim", "claims_of", "known_systems", "out_of_reach"]

_NOT_SYSTEMS = {"runner"}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a claim's measurement gave.

    Args:
        value: the measured figure, as shown.
        held: whether the claim's criterion is met.
        detail: what else is worth knowing, such as the sizes.

    Raises:
        TypeError: `held` is neither a bool nor a scalar that says yes or no, or `value` is not a text.
        ValueError: `value` is empty.
    """

    value: str
    held: bool
    detail: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.value, str):
            raise TypeError(f"value must be a text, got {self.value!r}")
        if not self.value.strip():
            raise ValueError("a measurement needs a figure, got an empty value")
        # comparisons of NumPy and PyTorch scalars are no bool
        object.__setattr__(self, "held", bool(self.held))


@dataclass(frozen=True, kw_only=True)
class RegisteredClaim:
    """A claim, the system it belongs to, and how it is measured.

    Args:
        system: id of the paper's system.
        claim: the claim.
        measure: measures it; None for claims out of reach.
    """

    system: str
    claim: Claim
    measure: Callable[[], Measured] | None


_claims: dict[tuple[str, str], RegisteredClaim] = {}


def _add(registered: RegisteredClaim) -> None:
    key = (registered.system, registered.claim.name)
    other = _claims.get(key)
    if other is not None and _origin(other) != _origin(registered):
        raise ValueError(f"the system {key[0]!r} has two claims named {key[1]!r}")
    _claims[key] = registered


def _origin(registered: RegisteredClaim) -> tuple[str, str] | Claim:
    """What stays the same when a module is imported anew."""
    measure = registered.measure
    return registered.claim if measure is None else (measure.__module__, measure.__qualname__)


def claim(
    system: str, *, name: str, grade: Grade, statement: str, criterion: str, figure: str = "", where: str = ""
) -> Callable[[Callable[[], Measured]], Callable[[], Measured]]:
    """Make the decorated function the measurement of a claim.

    Args:
        system: id of the paper's system.
        name: short identifier, unique within the system.
        grade: "exact", "ratio" or "scaled".
        statement: what the paper says.
        criterion: what must be measured here for the claim to hold.
        figure: the paper's figure; empty where it gives none.
        where: the place in the paper.

    Raises:
        ValueError: the grade is another, or the system already has a claim of this name.
    """
    if grade == "out of reach":
        raise ValueError(f"the claim {name!r} is out of reach, nothing measures it: use out_of_reach()")
    made = Claim(name=name, grade=grade, statement=statement, criterion=criterion, figure=figure, where=where)

    def decorate(measure: Callable[[], Measured]) -> Callable[[], Measured]:
        _add(RegisteredClaim(system=system, claim=made, measure=measure))
        return measure

    return decorate


def out_of_reach(
    system: str, *, name: str, statement: str, criterion: str, reason: str, figure: str = "", where: str = ""
) -> None:
    """Record a claim that cannot be measured here.

    Args:
        system: id of the paper's system.
        name: short identifier, unique within the system.
        statement: what the paper says.
        criterion: what would have to be measured.
        reason: why it cannot be, and what stands in for it.
        figure: the paper's figure; empty where it gives none.
        where: the place in the paper.

    Raises:
        ValueError: no reason, or the system already has a claim of this name.
    """
    made = Claim(
        name=name,
        grade="out of reach",
        statement=statement,
        criterion=criterion,
        figure=figure,
        where=where,
        reason=reason,
    )
    _add(RegisteredClaim(system=system, claim=made, measure=None))


def known_systems() -> list[str]:
    """The systems that have claims, in alphabetical order; none of their modules is imported."""
    names = {module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")}
    return sorted((names | {system for system, _ in _claims}) - _NOT_SYSTEMS)


def claims_of(system: str) -> list[RegisteredClaim]:
    """The claims of a system in the order of their file; its module is imported.

    Raises:
        LookupError: the system has no claims.
    """
    module = f"{__name__}.{system}"
    if system not in known_systems():
        raise LookupError(f"the system {system!r} has no claims")
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        # registered outside the package
        if error.name != module:
            raise
    return [registered for (owner, _), registered in _claims.items() if owner == system]
