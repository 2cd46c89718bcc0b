"""How words on the chip, words fetched and operations of a cascade grow with the length of its keys, by running it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from regard.hardware.einsum import Apply, Cascade, Einsum, walk
from regard.hardware.interpreter import given_axes, run, sizes_of
from regard.hardware.operators import COST_FREE
from regard.hardware.passes import count_passes, parts_of

SMALL = {"e": 8, "f": 8, "p": 16, "a": 4}
"""Sizes of ranks that do not grow."""
OTHERS = 8
TILE = 16


@dataclass(frozen=True)
class Growth:
    """A cascade at one length.

    Args:
        length: of the keys.
        live_words: the most words that are alive on the chip at a time, outputs left out.
        fetched_words: of inputs.
        operations: of maps and reductions.
    """

    length: int
    live_words: int
    fetched_words: int
    operations: int

    @property
    def intensity(self) -> float:
        """Operations per word that is fetched."""
        return self.operations / self.fetched_words


def growth(cascade: Cascade, rank: str, lengths: Sequence[int], *, seed: int = 0) -> list[Growth]:
    """Run a cascade on random numbers at several lengths.

    Args:
        cascade: what is run.
        rank: that grows.
        lengths: of that rank; multiples of 16 where it is split.
        seed: of the numbers.
    """
    made = []
    for length in lengths:
        inputs = random_inputs(cascade, rank, length, seed=seed)
        split = dict.fromkeys(cascade.parts.values(), TILE)
        ran = run(cascade, inputs, rank=rank, split=split)
        fetched = sum(np.size(value) for value in inputs.values())
        # what is needed in every pass is fetched again, unless it stays on the chip, where it counts as alive
        passes = max(1, count_passes(cascade, rank).count)
        again = passes - 1
        along = sum(
            np.size(inputs[name])
            for name, ranks in cascade.inputs.items()
            if any(part in ranks for part in parts_of(cascade, rank))
        )
        sizes = sizes_of(cascade, inputs, split)
        total = sum(operations(einsum, sizes) for einsum in cascade.einsums)
        made.append(Growth(length, ran.peak_words, fetched + again * along, total))
    return made


def random_inputs(cascade: Cascade, rank: str, length: int, *, seed: int) -> dict[str, np.ndarray]:
    """Inputs of small sizes, and of a length along one rank; scalars and choices are ones."""
    random = np.random.default_rng(seed)
    split = dict.fromkeys(cascade.parts.values(), TILE)
    inputs = {}
    for name, ranks in cascade.inputs.items():
        shape = []
        for axis in given_axes(cascade, ranks):
            whole = cascade.whole(axis)
            size = length if whole == rank else SMALL.get(whole, OTHERS)
            shape.append(size // split[whole] if axis in cascade.parts else size)
        inputs[name] = random.normal(size=shape) if len(shape) > 1 else np.ones(shape)
    return inputs


def points(einsum: Einsum, sizes: Mapping[str, int]) -> int:
    """The coordinates that an einsum iterates over."""
    return math.prod(sizes[rank] for rank in einsum.ranks())


def operations(einsum: Einsum, sizes: Mapping[str, int]) -> int:
    """Operators of the map that compute, and reductions, at every coordinate."""
    own = sum(isinstance(part, Apply) and part.operator not in COST_FREE for part in walk(einsum.expression))
    return points(einsum, sizes) * (own + int(einsum.reduction is not None))
