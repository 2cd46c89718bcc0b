"""What a cascade must be before it is run or analysed; every fault is told with its place."""

from __future__ import annotations

from collections.abc import Mapping

from regard.hardware.einsum import (
    Cascade,
    CascadeError,
    Coordinate,
    Einsum,
    Place,
    Reference,
    walk,
)


def check(cascade: Cascade, outputs: Mapping[str, Place]) -> None:
    """Refuse a cascade that cannot be computed.

    Args:
        cascade: as it was read.
        outputs: where each output was named.

    Raises:
        CascadeError: an undefined or twice defined tensor, a wrong or unbound rank, or a cyclic definition.
    """
    axes = axes_of(cascade)
    for einsum in cascade.einsums:
        _check_reads(cascade, einsum, axes)
        _check_ranks(einsum)
    _check_starts(cascade)
    _check_cycles(cascade)
    for name, place in outputs.items():
        if name not in axes:
            raise CascadeError(f"the output {name} is not defined", place)
    if not outputs:
        raise CascadeError("there is no output: name one with 'output'")


def axes_of(cascade: Cascade) -> dict[str, tuple[str, ...]]:
    """The ranks of every tensor.

    Raises:
        CascadeError: a tensor is written with other ranks, or as a whole twice.
    """
    axes = dict(cascade.inputs)
    general: set[str] = set()
    for einsum in cascade.einsums:
        result = einsum.result
        if result.tensor in cascade.inputs:
            raise CascadeError(f"{result.tensor} is an input and cannot be written", result.place)
        if any(index.rank is None for index in result.indices):
            continue
        if result.tensor in general:
            raise CascadeError(f"{result.tensor} is written twice", result.place)
        general.add(result.tensor)
        axes[result.tensor] = tuple(str(index.rank) for index in result.indices)
    for einsum in cascade.einsums:
        _check_shape(einsum.result, axes)
    return axes


def _check_shape(reference: Reference, axes: Mapping[str, tuple[str, ...]]) -> None:
    if reference.tensor not in axes:
        raise CascadeError(f"{reference.tensor} is not defined", reference.place)
    own = axes[reference.tensor]
    if len(own) != len(reference.indices):
        raise CascadeError(
            f"{reference.tensor} has the ranks {', '.join(own) or 'none'}, got {len(reference.indices)} coordinates",
            reference.place,
        )
    for rank, index in zip(own, reference.indices, strict=True):
        if index.rank is not None and index.rank != rank:
            raise CascadeError(
                f"{reference.tensor} has the rank {rank} here, got {index.rank}: a rank cannot have two sizes",
                reference.place,
            )


def iterative_ranks(cascade: Cascade) -> dict[str, str]:
    """The rank on which each iterative tensor is defined at one coordinate further."""
    found = {}
    for einsum in cascade.einsums:
        for index in einsum.result.indices:
            if index.rank is not None and index.shift:
                found[einsum.name] = index.rank
    return found


def _check_reads(cascade: Cascade, einsum: Einsum, axes: Mapping[str, tuple[str, ...]]) -> None:
    iterative = iterative_ranks(cascade)
    for reference in einsum.reads():
        _check_shape(reference, axes)
        own = axes[reference.tensor]
        for rank, index in zip(own, reference.indices, strict=True):
            shifted = index.at_end or index.shift != 0 or index.rank is None
            if shifted and iterative.get(reference.tensor) != rank:
                raise CascadeError(
                    f"{reference.tensor} is no running quantity over {rank}: only such have shifted, fixed or last "
                    "coordinates",
                    reference.place,
                )
            if index.rank is not None and index.shift not in (0, 1):
                raise CascadeError(f"a running quantity is read at {rank} or {rank}+1", reference.place)
    for index in einsum.result.indices:
        if index.at_end or (index.rank is not None and index.shift not in (0, 1)):
            raise CascadeError("a tensor is written at a coordinate, or one further", einsum.result.place)


def _check_ranks(einsum: Einsum) -> None:
    """Every rank of the map is in the result or reduced, and every reduced one is in the map."""
    result = {index.rank for index in einsum.result.indices if index.rank is not None}
    reduced = set(einsum.reduction.ranks) if einsum.reduction is not None else set()
    used: set[str] = set()
    for part in walk(einsum.expression):
        ranks: list[str | None] = []
        if isinstance(part, Reference):
            ranks = [index.rank for index in part.indices]
        elif isinstance(part, Coordinate):
            ranks = [part.rank]
        else:
            continue
        for rank in ranks:
            if rank is not None and rank not in result | reduced:
                raise CascadeError(
                    f"the rank {rank} is unbound: {einsum.name} neither has it nor reduces over it", part.place
                )
            if rank is not None:
                used.add(rank)
    for rank in reduced & result:
        raise CascadeError(f"{einsum.name} has the rank {rank} and reduces over it", einsum.result.place)
    for rank in sorted(reduced - used):
        raise CascadeError(f"{einsum.name} reduces over {rank}, which its map does not have", einsum.result.place)


def _check_starts(cascade: Cascade) -> None:
    started = {
        einsum.name
        for einsum in cascade.einsums
        if any(index.rank is None and index.shift == 0 and not index.at_end for index in einsum.result.indices)
    }
    iterative = iterative_ranks(cascade)
    for einsum in cascade.einsums:
        if einsum.name in iterative and einsum.name not in started:
            rank = iterative[einsum.name]
            raise CascadeError(f"{einsum.name} runs over {rank} and has no value at {rank} = 0", einsum.result.place)


def dependencies(cascade: Cascade) -> dict[int, set[int]]:
    """For every einsum, by number, those that must come before it at the same coordinates."""
    writers: dict[str, list[int]] = {}
    for number, einsum in enumerate(cascade.einsums):
        writers.setdefault(einsum.name, []).append(number)
    found: dict[int, set[int]] = {}
    for number, einsum in enumerate(cascade.einsums):
        needed: set[int] = set()
        for read in einsum.reads():
            for writer in writers.get(read.tensor, ()):
                result = cascade.einsums[writer].result
                # a running quantity at this coordinate was written one earlier
                if not _is_running_read(read, result) or _is_start(result):
                    needed.add(writer)
        found[number] = needed - {number} if _is_running_only(cascade, einsum) else needed
    return found


def _is_start(result: Reference) -> bool:
    return any(index.rank is None for index in result.indices)


def _is_running_read(read: Reference, written: Reference) -> bool:
    for own, other in zip(read.indices, written.indices, strict=True):
        if other.rank is not None and other.shift == 1 and own.rank == other.rank and own.shift == 0:
            return True
    return False


def _is_running_only(cascade: Cascade, einsum: Einsum) -> bool:
    return all(_is_running_read(read, einsum.result) for read in einsum.reads() if read.tensor == einsum.name)


def in_order(cascade: Cascade) -> list[int]:
    """Numbers of the einsums, each behind those that it needs at the same coordinates.

    Raises:
        CascadeError: a cycle, told where it closes.
    """
    needed = dependencies(cascade)
    state: dict[int, int] = {}
    order: list[int] = []

    def visit(number: int) -> None:
        if state.get(number) == 2:
            return
        if state.get(number) == 1:
            einsum = cascade.einsums[number]
            raise CascadeError(
                f"{einsum.name} depends on itself, and not on an earlier coordinate of it", einsum.result.place
            )
        state[number] = 1
        for other in sorted(needed[number]):
            visit(other)
        state[number] = 2
        order.append(number)

    for number in range(len(cascade.einsums)):
        visit(number)
    return order


def _check_cycles(cascade: Cascade) -> None:
    in_order(cascade)
