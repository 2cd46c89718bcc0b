"""What a cascade computes, with NumPy; and how many words are alive while it does.

A cascade is run along one rank, coordinate by coordinate (tile by tile where the rank is split), stage by stage: a
stage ends where a complete reduction over the rank is needed. What no later stage reads is dropped as soon as it has
been read, as a chip with a buffer of its own would; inputs along the rank are fetched coordinate by coordinate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regard.hardware.checking import axes_of, in_order, iterative_ranks
from regard.hardware.einsum import (
    Apply,
    Cascade,
    CascadeError,
    Coordinate,
    Einsum,
    Expression,
    Number,
    Reference,
)
from regard.hardware.operators import FUNCTIONS, REDUCTIONS, Array
from regard.hardware.passes import parts_of

Arrays = Mapping[str, Any]


@dataclass
class Ran:
    """What a run gave.

    Args:
        outputs: by name.
        peak_words: the most words that were alive at a time; the outputs are not counted.
        fetched_words: words of inputs that were fetched.
    """

    outputs: dict[str, Array]
    peak_words: int
    fetched_words: int


def sizes_of(cascade: Cascade, inputs: Arrays, split: Mapping[str, int] | None = None) -> dict[str, int]:
    """The size of every rank, from arrays whose axes are whole ranks.

    Args:
        cascade: whose ranks.
        inputs: arrays by name; of a rank that is split, an axis for the whole.
        split: length of the inner part of ranks that are split.

    Raises:
        CascadeError: a missing or unknown array, another number of axes, or a rank with two sizes.
    """
    for name in inputs:
        if name not in cascade.inputs:
            raise CascadeError(f"{cascade.name} has no input {name}: it has {', '.join(cascade.inputs)}")
    found: dict[str, int] = {}
    for name, ranks in cascade.inputs.items():
        if name not in inputs:
            raise CascadeError(f"the input {name} of {cascade.name} is missing")
        axes, shape = given_axes(cascade, ranks), np.shape(inputs[name])
        if len(shape) != len(axes):
            raise CascadeError(f"the input {name} has the ranks {', '.join(axes) or 'none'}, got shape {shape}")
        for axis, size in zip(axes, shape, strict=True):
            _settle(found, axis, size, name)
    for whole in dict.fromkeys(cascade.parts.values()):
        inner = (split or {}).get(whole, 1)
        if whole in found:
            if inner < 1 or found[whole] % inner:
                raise CascadeError(f"the rank {whole} of {found[whole]} cannot be split into parts of {inner}")
            outer_part, inner_part = parts_of(cascade, whole)
            _settle(found, outer_part, found[whole] // inner, whole)
            _settle(found, inner_part, inner, whole)
    return found


def given_axes(cascade: Cascade, ranks: tuple[str, ...]) -> list[str]:
    """The axes of the array for an input: a whole rank where it has both parts, else its ranks as they are."""
    axes: list[str] = []
    for rank in ranks:
        whole = cascade.whole(rank)
        together = whole != rank and all(part in ranks for part in parts_of(cascade, whole))
        if not together:
            axes.append(rank)
        elif whole not in axes:
            axes.append(whole)
    return axes


def _settle(found: dict[str, int], rank: str, size: int, where: str) -> None:
    if found.setdefault(rank, size) != size:
        raise CascadeError(f"the rank {rank} has two sizes: {found[rank]}, and {size} in {where}")


def run(cascade: Cascade, inputs: Arrays, *, rank: str | None = None, split: Mapping[str, int] | None = None) -> Ran:
    """Compute a cascade.

    Args:
        cascade: what is computed.
        inputs: arrays by name, with whole ranks as axes in the order of the declaration.
        rank: the rank along which it goes; None = the one on which it has running quantities, if any.
        split: length of the inner part of ranks that are split.

    Raises:
        CascadeError: inputs that do not fit.
    """
    sizes = sizes_of(cascade, inputs, split)
    iterative = set(iterative_ranks(cascade).values())
    along = None
    if rank is not None:
        along = parts_of(cascade, rank)[0]
        if iterative - {along}:
            raise CascadeError(f"{cascade.name} runs over {', '.join(sorted(iterative))}, not over {rank}")
    elif iterative:
        if len(iterative) > 1:
            raise CascadeError(f"{cascade.name} runs over several ranks: {', '.join(sorted(iterative))}")
        along = next(iter(iterative))
    arrays = {
        name: np.asarray(inputs[name], dtype=np.float64).reshape([sizes[own] for own in ranks])
        for name, ranks in cascade.inputs.items()
    }
    return _Run(cascade, arrays, sizes, along).whole()


@dataclass
class _Run:
    cascade: Cascade
    inputs: dict[str, Array]
    sizes: dict[str, int]
    along: str | None
    store: dict[str, dict[int | None, Array]] = field(default_factory=dict)
    alive: int = 0
    peak: int = 0
    fetched: int = 0

    def __post_init__(self) -> None:
        self.axes = axes_of(self.cascade)
        self.iterative = iterative_ranks(self.cascade)
        self.order = in_order(self.cascade)
        self.stages = self._stages()
        self.last = self._last_reads()
        self.held_inputs = self._held_inputs()

    # -- the plan

    def _iterates(self, einsum: Einsum) -> bool:
        return self.along is not None and self.along in einsum.ranks()

    def _reads_along(self, read: Reference) -> bool:
        return any(index.rank == self.along for index in read.indices)

    def _stages(self) -> dict[int, int]:
        """For every einsum the stage in which it is computed: 0 = before the first traversal."""
        stage: dict[int, int] = {}
        written: dict[str, int] = {}
        for number in self.order:
            einsum = self.cascade.einsums[number]
            found = int(self._iterates(einsum))
            for read in einsum.reads():
                own = written.get(read.tensor, 0)
                behind = own > 0 and not self._reads_along(read) and self._iterates(einsum)
                found = max(found, own + int(behind))
            stage[number] = found
            written[einsum.name] = max(written.get(einsum.name, 0), found)
        return stage

    def _last_reads(self) -> dict[str, int]:
        """The last stage in which each tensor is read; outputs are never dropped."""
        last: dict[str, int] = {}
        for number, einsum in enumerate(self.cascade.einsums):
            for read in einsum.reads():
                # what stands behind a traversal is read after it
                after = 0.5 if not self._iterates(einsum) and self.stages[number] else 0.0
                stage = self.stages[number] + after
                last[read.tensor] = max(last.get(read.tensor, 0), stage)  # type: ignore[assignment]
        return last

    # -- the run

    def whole(self) -> Ran:
        for stage in range(max(self.stages.values(), default=0) + 1):
            inside = [number for number in self.order if self.stages[number] == stage]
            traversal = [number for number in inside if self._iterates(self.cascade.einsums[number])]
            rest = [number for number in inside if number not in traversal]
            starts = [number for number in rest if self._is_start(number)]
            for number in starts:
                self._compute(number, None)
            if traversal:
                assert self.along is not None
                for coordinate in range(self.sizes[self.along]):
                    for number in traversal:
                        self._compute(number, coordinate)
                    self._drop_tile(stage, coordinate)
            for number in rest:
                if number not in starts:
                    self._compute(number, None)
            self._drop_stage(stage)
        outputs = {name: self._assembled(name) for name in self.cascade.outputs}
        return Ran(outputs, self.peak, self.fetched)

    def _is_start(self, number: int) -> bool:
        return any(index.rank is None and not index.at_end for index in self.cascade.einsums[number].result.indices)

    def _compute(self, number: int, coordinate: int | None) -> None:
        einsum = self.cascade.einsums[number]
        free = [rank for rank in einsum.ranks() if rank != self.along or coordinate is None]
        value = self._value(einsum.expression, free, coordinate)
        value = np.broadcast_to(value, [self.sizes[rank] for rank in free])
        kept = [index.rank for index in einsum.result.indices if index.rank is not None]
        own = [rank for rank in kept if rank != self.along or coordinate is None]
        if einsum.reduction is not None:
            axes = tuple(free.index(rank) for rank in einsum.reduction.ranks if rank in free)
            value = REDUCTIONS[einsum.reduction.operator](value, axis=axes) if axes else value
            free = [rank for rank in free if rank not in einsum.reduction.ranks]
        value = np.array(np.transpose(value, [free.index(rank) for rank in own]), dtype=np.float64)
        self._keep(einsum, value, coordinate)

    def _keep(self, einsum: Einsum, value: Array, coordinate: int | None) -> None:
        """Store a value; a reduction over the rank that is gone along is taken up from one coordinate to the next."""
        slot: int | None = None
        for index in einsum.result.indices:
            if index.rank == self.along and coordinate is not None:
                slot = coordinate + index.shift
            elif index.rank is None:
                slot = index.shift
        held = self.store.setdefault(einsum.name, {})
        reduces = einsum.reduction is not None and self.along in einsum.reduction.ranks and coordinate is not None
        if reduces and slot in held:
            assert einsum.reduction is not None
            joined = {"sum": np.add, "max": np.maximum, "min": np.minimum, "prod": np.multiply}
            value = joined[einsum.reduction.operator](held[slot], value)
        self._count(einsum.name, value.size - (held[slot].size if slot in held else 0))
        held[slot] = value

    def _held_inputs(self) -> int:
        """Words of inputs on the chip: those without the rank that is gone along, and one coordinate of the others."""
        return sum(
            value.size // (self.sizes[str(self.along)] if self.along in self.axes[name] else 1)
            for name, value in self.inputs.items()
        )

    def _count(self, name: str, words: int) -> None:
        """Words of a tensor have come to life, or are dropped; outputs are not counted."""
        if not self._is_output(name):
            self.alive += words
            self.peak = max(self.peak, self.alive + self.held_inputs)

    def _drop(self, name: str, slot: int | None) -> None:
        value = self.store[name].pop(slot, None)
        if value is not None:
            self._count(name, -value.size)

    def _is_output(self, name: str) -> bool:
        return name in self.cascade.outputs

    def _drop_tile(self, stage: int, coordinate: int) -> None:
        """After a coordinate: what only this stage reads, and running quantities but the latest."""
        for name in self.store:
            if self._is_output(name) or (self.last.get(name, 0) > stage and name not in self.iterative):
                continue
            if name in self.iterative:
                later = self.last.get(name, 0) > stage + 0.5
                if not later:
                    self._drop(name, coordinate)
            elif self.along in self.axes[name]:
                self._drop(name, coordinate)

    def _drop_stage(self, stage: int) -> None:
        for name in list(self.store):
            if not self._is_output(name) and self.last.get(name, 0) <= stage + 0.5 and self._is_written(name, stage):
                for slot in list(self.store[name]):
                    self._drop(name, slot)
                del self.store[name]

    def _is_written(self, name: str, stage: int) -> bool:
        return all(
            self.stages[number] <= stage for number, einsum in enumerate(self.cascade.einsums) if einsum.name == name
        )

    def _assembled(self, name: str) -> Array:
        held, axes = self.store[name], self.axes[name]
        if None in held:
            return held[None]
        axis = axes.index(str(self.along))
        return np.stack([held[slot] for slot in sorted(slot for slot in held if slot is not None)], axis=axis)

    # -- values

    def _value(self, expression: Expression, free: list[str], coordinate: int | None) -> Array:
        def leaf(part: Reference | Coordinate) -> Array:
            if isinstance(part, Reference):
                return self._read(part, free, coordinate)
            if part.rank == self.along and coordinate is not None:
                return np.array(float(coordinate))
            numbers = np.arange(self.sizes[part.rank], dtype=np.float64)
            return numbers.reshape([-1 if rank == part.rank else 1 for rank in free])

        return self._evaluated(expression, leaf)

    def _evaluated(self, expression: Expression, leaf: Callable[[Reference | Coordinate], Array]) -> Array:
        """An expression's value, where `leaf` says what stands at its ends."""
        if isinstance(expression, Number):
            return np.array(expression.value)
        if not isinstance(expression, Apply):
            return leaf(expression)
        values = [self._evaluated(argument, leaf) for argument in expression.arguments]
        operator = self.cascade.operators.get(expression.operator)
        if operator is not None:
            bound = dict(zip(operator.parameters, values, strict=True))
            return self._evaluated(operator.body, lambda part: bound[_name_of(part)])
        with np.errstate(all="ignore"):
            return np.asarray(FUNCTIONS[expression.operator][1](*values))

    def _read(self, reference: Reference, free: list[str], coordinate: int | None) -> Array:
        """What is read, with an axis for every free rank."""
        value, ranks = self._held(reference, coordinate)
        order = [rank for rank in free if rank in ranks]
        value = np.transpose(value, [ranks.index(rank) for rank in order])
        return value.reshape([self.sizes[rank] if rank in ranks else 1 for rank in free])

    def _held(self, reference: Reference, coordinate: int | None) -> tuple[Array, list[str]]:
        axes = list(self.axes[reference.tensor])
        index_of = dict(zip(axes, reference.indices, strict=True))
        if reference.tensor in self.inputs:
            value = self.inputs[reference.tensor]
            if self.along in axes and coordinate is not None:
                axis = axes.index(str(self.along))
                value = np.asarray(value.take(coordinate, axis=axis))
                axes.pop(axis)
                self.fetched += value.size
            return value, axes
        held = self.store[reference.tensor]
        if self.along not in axes:
            return held[None], axes
        index = index_of[str(self.along)]
        rest = [rank for rank in axes if rank != self.along]
        if index.rank is None:
            return held[self.sizes[str(self.along)] if index.at_end else index.shift], rest
        if coordinate is not None:
            return held[coordinate + index.shift], rest
        count = self.sizes[str(self.along)]
        stacked = np.stack([held[slot + index.shift] for slot in range(count)], axis=0)
        return stacked, [str(self.along), *rest]


def _name_of(argument: Reference | Coordinate) -> str:
    # the reader lets nothing but its arguments into an operator
    assert isinstance(argument, Reference)
    return argument.tensor
