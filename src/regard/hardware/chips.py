"""What a cascade costs at least on a chip that exists: its operations, and inputs and outputs once, under the roofs.

This is a bound for a kernel that keeps everything else on the chip. A cascade with several passes needs a buffer for
whole fibers to reach it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from regard.hardware.checking import axes_of
from regard.hardware.einsum import Apply, Cascade, CascadeError, Einsum, Reference, walk
from regard.hardware.growth import operations, points
from regard.hardware.roofline import Kernel, Machine
from regard.hardware.workloads import Workload

WORD_BYTES = 2
TILE = 256
BLOCK = 32
"""Keys in a block of those that are chosen."""
AGENTS = 49
SEEN = 512
"""Keys that a query attends to, where not all."""
SPARSE = frozenset(("window", "hip"))
_UNITS = frozenset(("exp", "log", "sqrt", "softplus", "pow"))
"""What takes a unit for special functions."""


@dataclass(frozen=True, kw_only=True)
class ChipCost:
    """What one layer costs at least.

    Args:
        latency_s: seconds.
        operations: of all kinds.
        traffic_bytes: inputs and outputs, once.
        bound: what the time is bound by: "memory" or "compute".
    """

    latency_s: float
    operations: float
    traffic_bytes: float
    bound: str

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.traffic_bytes


def sizes_for(cascade: Cascade, work: Workload, *, keys_seen: int = SEEN, agents: int = AGENTS) -> dict[str, int]:
    """The size of every rank for a workload; where a query does not attend to all keys, of the keys that it does.

    Raises:
        CascadeError: a rank that no workload has a size for.
    """
    seen = min(keys_seen, work.keys) if cascade.name in SPARSE else work.keys
    known = {"e": work.head_dim, "f": work.value_dim, "m": seen, "n": work.keys, "p": work.queries, "a": agents}
    found: dict[str, int] = {}
    for rank in cascade.ranks:
        whole = cascade.whole(rank)
        if whole not in known:
            raise CascadeError(f"no size for the rank {whole} of {cascade.name}: workloads have {', '.join(known)}")
        if rank == whole:
            found[rank] = known[whole]
            continue
        inner = min(BLOCK if cascade.name in SPARSE else TILE, known[whole])
        found[rank] = inner if rank == cascade.inner(whole) else -(-known[whole] // inner)
    return found


def as_kernel(cascade: Cascade, work: Workload, *, keys_seen: int = SEEN, agents: int = AGENTS) -> Kernel:
    """All operations of a layer, and the bytes of its inputs and outputs.

    Args:
        cascade: what is computed for each row and head.
        work: sizes.
        keys_seen: keys that a query attends to in `window` and `hip`.
        agents: number of agents.
    """
    sizes = sizes_for(cascade, work, keys_seen=keys_seen, agents=agents)
    flops = exps = others = 0
    for einsum in cascade.einsums:
        total = operations(einsum, sizes)
        if is_contraction(einsum):
            flops += total
            continue
        units = sum(isinstance(part, Apply) and part.operator in _UNITS for part in walk(einsum.expression))
        own = units * points(einsum, sizes)
        exps += own
        others += total - own
    whole = sizes | {rank: -(-work.keys // BLOCK) for rank in ("m1",) if cascade.name in SPARSE and rank in sizes}
    whole |= {"m": work.keys} if "m" in sizes else {}
    axes = axes_of(cascade)
    words = sum(math.prod(whole[rank] for rank in axes[name]) for name in (*cascade.inputs, *cascade.outputs))
    return Kernel(
        name=cascade.name,
        flops=float(work.rows * flops),
        exps=float(work.rows * exps),
        element_ops=float(work.rows * others),
        moved_bytes=float(WORD_BYTES * work.rows * words),
    )


def chip_cost(
    cascade: Cascade, work: Workload, machine: Machine, *, keys_seen: int = SEEN, agents: int = AGENTS
) -> ChipCost:
    """The least cost of a layer; arguments as for `as_kernel`."""
    kernel = as_kernel(cascade, work, keys_seen=keys_seen, agents=agents)
    latency, memory = machine.seconds(kernel), kernel.moved_bytes / machine.bytes_per_s
    return ChipCost(
        latency_s=latency,
        operations=kernel.operations,
        traffic_bytes=kernel.moved_bytes,
        bound="memory" if latency <= memory + machine.call_s else "compute",
    )


def is_contraction(einsum: Einsum) -> bool:
    """Whether it is a sum of products of two tensors, which matrix units compute."""
    product = einsum.expression
    return (
        einsum.reduction is not None
        and einsum.reduction.operator == "sum"
        and isinstance(product, Apply)
        and product.operator == "*"
        and all(isinstance(part, Reference) for part in product.arguments)
    )
