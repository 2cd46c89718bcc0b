"""Cascades of extended einsums: what they consist of.

An extended einsum computes every coordinate of a tensor from coordinates of others: a map (any expression), then
reductions (`sum`, `max`, `min`, `prod`) over the ranks that the result does not have. A cascade is a list of them.
A rank may be iterative: a tensor at coordinate m + 1 may depend on itself at m. Source: "FuseMax: Leveraging Extended
Einsums to Optimize Attention Accelerator Design", Nayak et al., MICRO 2024, https://arxiv.org/abs/2406.10491.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

END = "end"
"""The coordinate behind the last one of an iterative rank."""


@dataclass(frozen=True)
class Place:
    """Where something stands in a file: line and column, counted from 1."""

    line: int
    column: int


class CascadeError(ValueError):
    """A cascade that cannot be; the message begins with line and column where they are known.

    Args:
        told: what is wrong.
        place: where.
    """

    def __init__(self, told: str, place: Place | None = None) -> None:
        super().__init__(told if place is None else f"line {place.line}, column {place.column}: {told}")
        self.place = place


@dataclass(frozen=True)
class Index:
    """One coordinate of a reference: a rank's variable, shifted, or a fixed one.

    Args:
        rank: the variable; None = a fixed coordinate.
        shift: added to the variable, or the fixed coordinate itself.
        at_end: whether it is the coordinate behind the last of the rank.
    """

    rank: str | None
    shift: int = 0
    at_end: bool = False


@dataclass(frozen=True)
class Reference:
    """A tensor at some coordinates."""

    tensor: str
    indices: tuple[Index, ...]
    place: Place


@dataclass(frozen=True)
class Number:
    """A constant."""

    value: float


@dataclass(frozen=True)
class Coordinate:
    """A rank's variable as a number, in conditions such as `m <= p`."""

    rank: str
    place: Place


@dataclass(frozen=True)
class Apply:
    """An operator on expressions: "+", "-", "*", "/", a comparison, or a function's name."""

    operator: str
    arguments: tuple[Expression, ...]
    place: Place


Expression = Reference | Number | Coordinate | Apply


@dataclass(frozen=True)
class Reduction:
    """What is done over ranks that the result does not have."""

    operator: str
    ranks: tuple[str, ...]


@dataclass(frozen=True)
class Einsum:
    """One tensor from others.

    Args:
        result: the tensor and the coordinates that are written.
        reduction: over ranks of the expression; None where it has no others than the result.
        expression: the map.
    """

    result: Reference
    reduction: Reduction | None
    expression: Expression

    @property
    def name(self) -> str:
        """Of the tensor that is written."""
        return self.result.tensor

    def reads(self) -> list[Reference]:
        """What the map reads, in order."""
        return [part for part in walk(self.expression) if isinstance(part, Reference)]

    def ranks(self) -> tuple[str, ...]:
        """The ranks that it iterates over: those of the result, then those that are reduced."""
        own = [index.rank for index in self.result.indices if index.rank is not None]
        return (*own, *(self.reduction.ranks if self.reduction is not None else ()))


@dataclass(frozen=True)
class Operator:
    """An operator that a cascade defines.

    Args:
        name: as it is called.
        parameters: names of its arguments.
        body: their value, with each parameter as a reference without coordinates.
    """

    name: str
    parameters: tuple[str, ...]
    body: Expression


@dataclass(frozen=True)
class Cascade:
    """Einsums, each of which may read what others write.

    Args:
        name: of the cascade.
        summary: what it computes, in one line.
        ranks: all ranks; where one is split, its outer and inner part.
        inputs: ranks of the tensors that are given.
        outputs: tensors that are wanted.
        einsums: in the order in which they are written.
        operators: that it defines, by name.
        parts: ranks of which another is the outer or the inner part, such as {"m1": "m", "m0": "m"}.
    """

    name: str
    summary: str
    ranks: tuple[str, ...]
    inputs: Mapping[str, tuple[str, ...]]
    outputs: tuple[str, ...]
    einsums: tuple[Einsum, ...]
    operators: Mapping[str, Operator] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)

    def writers(self) -> dict[str, list[Einsum]]:
        """The einsums that write each tensor: initial values, and the one that gives all others."""
        found: dict[str, list[Einsum]] = {}
        for einsum in self.einsums:
            found.setdefault(einsum.name, []).append(einsum)
        return found

    def whole(self, rank: str) -> str:
        """The rank that `rank` is a part of, or itself."""
        return self.parts.get(rank, rank)

    def outer(self, rank: str) -> str | None:
        """The outer part of a rank that is split."""
        return next((part for part, whole in self.parts.items() if whole == rank), None)

    def inner(self, rank: str) -> str | None:
        """The inner part of a rank that is split."""
        found = [part for part, whole in self.parts.items() if whole == rank]
        return found[1] if len(found) == 2 else None


def walk(expression: Expression) -> Iterator[Expression]:
    """An expression and all that it consists of."""
    yield expression
    if isinstance(expression, Apply):
        for argument in expression.arguments:
            yield from walk(argument)
