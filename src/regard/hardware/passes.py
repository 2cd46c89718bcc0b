"""How often a cascade must go over an input along a rank, told from its einsums alone.

The rule: an einsum that iterates the whole rank is in the pass of what it reads; where it reads a complete reduction
over the rank it is in the pass after that. A running quantity at the coordinate itself is no complete reduction, and an
einsum that iterates the outer part of a split rank alone goes over summaries, not over the input. With more than one
pass either a whole fiber stays on the chip, or it is fetched that often.
Source: "FuseMax: Leveraging Extended Einsums to Optimize Attention Accelerator Design", Nayak et al., MICRO 2024,
https://arxiv.org/abs/2406.10491; the wording of the rule is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from regard.hardware.checking import in_order
from regard.hardware.einsum import Cascade, CascadeError, Einsum, Reference

TAXONOMY = {
    3: ("eager softmax attention", "FLAT", "E.T."),
    2: ("TileFlow", "Choi et al."),
    1: ("Rabe and Staats", "FlashAttention", "FlashAttention-2", "FuseMax"),
}
"""Published attention by number of passes over the keys."""


@dataclass(frozen=True)
class Step:
    """Where an einsum falls.

    Args:
        tensor: that it writes.
        number: of its pass; 0 = it has nothing to do with the rank.
        iterates: whether it iterates the whole rank.
        forced_by: the complete reduction whose reading begins the pass; empty where none does.
    """

    tensor: str
    number: int
    iterates: bool
    forced_by: str = ""


@dataclass(frozen=True)
class Passes:
    """The passes of a cascade over one rank.

    Args:
        rank: the rank.
        count: the lower bound.
        steps: of all einsums, in the order in which they can be computed.
    """

    rank: str
    count: int
    steps: tuple[Step, ...]


def parts_of(cascade: Cascade, rank: str) -> tuple[str, ...]:
    """The ranks that are iterated in order to go over a rank: its two parts, or itself.

    Raises:
        CascadeError: no such rank.
    """
    split = tuple(part for part, whole in cascade.parts.items() if whole == rank)
    if not split and rank not in cascade.ranks:
        known = [own for own in cascade.ranks if own not in cascade.parts] + sorted(set(cascade.parts.values()))
        raise CascadeError(f"{cascade.name} has no rank {rank}: it has {', '.join(known)}")
    return split or (rank,)


def carries(reference: Reference, parts: tuple[str, ...]) -> bool:
    """Whether what is read varies along a rank."""
    return any(index.rank in parts for index in reference.indices)


def count_passes(cascade: Cascade, rank: str) -> Passes:
    """The passes over a rank.

    Args:
        cascade: what is analysed.
        rank: a rank; where it is split, the whole of it.

    Raises:
        CascadeError: no such rank.
    """
    parts = parts_of(cascade, rank)
    # original inputs along the rank belong to the first pass, everything else to none yet
    number = {name: int(any(own in parts for own in ranks)) for name, ranks in cascade.inputs.items()}
    steps = []
    for index in in_order(cascade):
        einsum = cascade.einsums[index]
        step = _step(einsum, number, parts)
        number[einsum.name] = max(number.get(einsum.name, 0), step.number)
        steps.append(step)
    count = max((step.number for step in steps if step.iterates), default=0)
    return Passes(rank, count, tuple(steps))


def _step(einsum: Einsum, number: dict[str, int], parts: tuple[str, ...]) -> Step:
    iterates = all(part in einsum.ranks() for part in parts)
    found, forced = 0, ""
    for read in einsum.reads():
        if read.tensor == einsum.name:
            continue
        # a running quantity that is read before it is written in this order is in the pass of its writer
        own = number.get(read.tensor, 0)
        complete = own > 0 and not carries(read, parts) and not _is_start(read)
        if iterates and complete:
            own += 1
        if own > found:
            found, forced = own, read.tensor if iterates and complete else ""
    return Step(einsum.name, found, iterates, forced)


def _is_start(reference: Reference) -> bool:
    return any(index.rank is None and not index.at_end for index in reference.indices)
