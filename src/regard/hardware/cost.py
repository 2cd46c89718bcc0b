"""Time, utilisation and energy of one attention layer, by design.

Closed forms in units of u = B H M P / n^2 cycles: one operation per score on the two-dimensional array. On FuseMax's
array an exponential is six multiply-accumulates and a subtraction.
Source: "FuseMax: Leveraging Extended Einsums to Optimize Attention Accelerator Design", Nayak et al., MICRO 2024,
https://arxiv.org/abs/2406.10491, and the results in FPSG-UIUC/micro24-fusemax-artifact@f543beb9.
"""

from __future__ import annotations

from dataclasses import dataclass

from regard.hardware.designs import Design
from regard.hardware.energy import energy_pj
from regard.hardware.flat_dataflow import Dataflow, dataflow
from regard.hardware.traffic import traffic_bytes, unfused_phases
from regard.hardware.workloads import Workload

EXP = 7
"""Operations of an exponential with its subtraction on FuseMax's array: six multiply-accumulates and an addition."""
EXP_UNIT = 2
"""The same on FLAT's one-dimensional array, which has a unit for exponentials."""


@dataclass(frozen=True)
class Phase:
    """Work on both arrays that happens at the same time, in units of u.

    Args:
        name: what is done.
        square: on the two-dimensional array.
        line: on the one-dimensional array.
        stall: cycles in which neither works, in the same units.
    """

    name: str
    square: float
    line: float
    stall: float = 0.0

    @property
    def length(self) -> float:
        """How long it takes."""
        return max(self.square, self.line) + self.stall


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one layer costs.

    Args:
        latency_s: seconds.
        traffic_bytes: to and from the memory outside the chip.
        energy_pj: picojoules; calibrated.
        util_2d: share of the time in which the two-dimensional array does useful work.
        util_1d: the same of the one-dimensional array.
        bound: what the time is bound by: "memory" or "compute".
    """

    latency_s: float
    traffic_bytes: float
    energy_pj: float
    util_2d: float
    util_1d: float
    bound: str


def phases(work: Workload, design: Design, *, flow: Dataflow | None = None) -> tuple[Phase, ...]:
    """What both arrays do, phase by phase, for the designs that have one binding for the whole layer."""
    depth, width, n = work.head_dim, work.value_dim, design.array
    division = width * n / work.keys
    if design.name == "fusemax":
        return (
            Phase("scores, local maximum | last values, division", depth + 1, 1 + width + division),
            Phase("wait for the running maximum", 0, 1),
            Phase("exponentials, sums | running denominators", EXP + 1, EXP + 1),
            Phase("weighted values | corrected values", width, width),
        )
    if design.name == "arch":
        return (
            Phase("scores, local maximum | division", depth + 1, 1 + division, stall=float(n)),
            Phase("wait for the running maximum", 0, 1),
            Phase("exponentials, sums | running denominators", EXP + 1, EXP + 1),
            Phase("weighted values | corrected values", width, 2 * width),
        )
    if design.name == "cascade":
        on_scores = n * (1 + EXP_UNIT + 1)
        running = 1 + EXP_UNIT + 1 + width + 1 + width + division
        return (Phase("scores, weighted values | everything else", depth + width, on_scores + running),)
    if design.name == "flat":
        return (Phase("scores, weighted values | softmax", _flat_square(work, design, flow or dataflow(work)), 4 * n),)
    return (
        Phase("scores", depth, 0),
        Phase("softmax", 0, 4 * n),
        Phase("weighted values", width, 0),
    )


def _flat_square(work: Workload, design: Design, flow: Dataflow) -> float:
    n = design.array
    if flow.stationary_weights:
        return 2.0 * n
    return work.head_dim + max(work.value_dim / n, 1.0) * n


def attention_cost(work: Workload, design: Design, *, flow: Dataflow | None = None) -> Cost:
    """The cost of attention alone.

    Args:
        work: the layer.
        design: the accelerator.
        flow: what FLAT keeps on the chip; None = its simulator's choice.

    Raises:
        ValueError: a length that the array does not divide, or a buffer that is too small for one tile.
    """
    bytes_moved = traffic_bytes(work, design, flow=flow)
    unit_s = work.scores / design.array**2 / design.frequency_hz
    parts = phases(work, design, flow=flow)
    if design.name == "unfused":
        moved = unfused_phases(work)
        pairs = list(zip(moved, parts, strict=True))
        seconds = [max(own / design.bandwidth_bytes_per_s, part.length * unit_s) for own, part in pairs]
        latency = sum(seconds)
        slower = sum(second for second, (_, part) in zip(seconds, pairs, strict=True) if second > part.length * unit_s)
        bound = "memory" if slower > latency / 2 else "compute"
    else:
        memory, compute = bytes_moved / design.bandwidth_bytes_per_s, sum(part.length for part in parts) * unit_s
        latency, bound = max(memory, compute), "memory" if memory > compute else "compute"
    square, line = useful_work(work, design)
    return Cost(
        latency_s=latency,
        traffic_bytes=bytes_moved,
        energy_pj=energy_pj(work, design, bytes_moved, flow=flow),
        util_2d=square * unit_s / latency,
        util_1d=line * unit_s / latency,
        bound=bound,
    )


def useful_work(work: Workload, design: Design) -> tuple[float, float]:
    """Operations on both arrays, in units of u, without waiting and without idle columns."""
    depth, width, n = work.head_dim, work.value_dim, design.array
    division = width * n / work.keys
    if design.name in ("fusemax", "arch"):
        return depth + 1 + EXP + 1 + width, 1 + EXP + 1 + width + 1 + width + division
    if design.name == "cascade":
        return depth + width, phases(work, design)[0].line
    return depth + width, 4.0 * n
