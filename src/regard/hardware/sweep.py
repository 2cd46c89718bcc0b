"""FuseMax at other sizes: time, traffic and area for arrays of 16 to 512 elements per side.

The global buffer of each begins at what eight fibers of a tile take and is doubled until fetching the keys no longer
holds up the arrays, as in FPSG-UIUC/micro24-fusemax-artifact@f543beb9. Areas are the published ones: they come from
tools for circuits that are not modelled here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from regard.hardware.cost import attention_cost, useful_work
from regard.hardware.designs import ARRAYS, DESIGNS, WORD_BYTES, Design
from regard.hardware.traffic import traffic_bytes
from regard.hardware.workloads import Workload

AREAS_MM2: dict[int, dict[int, tuple[float, float]]] = {
    64: {
        16: (4.71261737472, 5.44123048908),
        32: (18.85043749888, 20.315554014039997),
        64: (75.40168599552, 78.36959631228),
        128: (301.79724120064, 307.90761238012),
        256: (1207.9512096768, 1220.8944418412402),
        512: (4834.85433020416, 4885.0810089724),
    },
    128: {
        16: (4.71261737472, 5.490895623919999),
        32: (18.85043749888, 20.422069648879997),
        64: (75.40168599552, 78.53897094712),
        128: (301.60661598208, 308.04723353687996),
        256: (1207.1887088025600, 1220.7854140828004),
        512: (4831.8043267072, 4876.0558475922),
    },
}
"""By width of a head and size of the array: mm^2 of the two-dimensional array, and of the whole chip."""
FIBERS = 8


@dataclass(frozen=True, kw_only=True)
class Point:
    """FuseMax at one size.

    Args:
        array: elements per side, n.
        buffer_bytes: of the global buffer.
        traffic_bytes: to and from the memory outside the chip.
        memory_s: seconds that the traffic takes.
        square_s: seconds of work on the two-dimensional array.
        line_s: seconds of work on the one-dimensional array.
        latency_s: seconds of the layer.
        array_mm2: area of the two-dimensional array; None = not published.
        area_mm2: area of the whole; None = not published.
    """

    array: int
    buffer_bytes: int
    traffic_bytes: float
    memory_s: float
    square_s: float
    line_s: float
    latency_s: float
    array_mm2: float | None
    area_mm2: float | None


def sized(work: Workload, array: int) -> Design:
    """FuseMax with an array of some size and the smallest buffer with which memory does not hold it up."""
    tiles = work.queries // array
    least = max(1, array // work.head_dim) * 2
    at_once = max(1, least // max(1, tiles))
    buffer = array * at_once * work.head_dim * FIBERS * WORD_BYTES
    while True:
        design = replace(DESIGNS["fusemax"], array=array, buffer_bytes=buffer)
        unit_s = work.scores / array**2 / design.frequency_hz
        memory_s = traffic_bytes(work, design) / design.bandwidth_bytes_per_s
        whole = array * work.queries * work.head_dim * FIBERS * WORD_BYTES
        if memory_s <= useful_work(work, design)[1] * unit_s or buffer >= whole:
            return design
        buffer *= 2


def point(work: Workload, array: int) -> Point:
    """One size.

    Raises:
        ValueError: a length that the array does not divide.
    """
    design = sized(work, array)
    unit_s = work.scores / array**2 / design.frequency_hz
    square, line = (own * unit_s for own in useful_work(work, design))
    moved = traffic_bytes(work, design)
    memory = moved / design.bandwidth_bytes_per_s
    areas = AREAS_MM2.get(work.head_dim, {}).get(array)
    return Point(
        array=array,
        buffer_bytes=design.buffer_bytes,
        traffic_bytes=moved,
        memory_s=memory,
        square_s=square,
        line_s=line,
        latency_s=max(square, line, memory),
        array_mm2=None if areas is None else areas[0],
        area_mm2=None if areas is None else areas[1],
    )


def sweep(work: Workload) -> list[Point]:
    """All published sizes.

    Raises:
        ValueError: a length that an array does not divide.
    """
    return [point(work, array) for array in ARRAYS]


@dataclass(frozen=True, kw_only=True)
class DesignPoint:
    """A design with arrays of some size on a workload.

    Args:
        model: of the workload.
        seq: its number of queries and keys.
        arch: name of the design.
        array: elements per side.
        latency_s: seconds of attention.
        traffic_bytes: to and from the memory outside the chip.
        energy_pj: picojoules; calibrated at 256 elements per side.
        util_2d: share of the time in which the two-dimensional array works.
        util_1d: the same of the one-dimensional array.
    """

    model: str
    seq: int
    arch: str
    array: int
    latency_s: float
    traffic_bytes: float
    energy_pj: float
    util_2d: float
    util_1d: float


def sweep_designs(works: Sequence[Workload], arrays: Sequence[int] = ARRAYS) -> list[DesignPoint]:
    """Every design on every workload with arrays of every size; bandwidth and buffers stay as they are.

    Args:
        works: workloads.
        arrays: elements per side.

    Raises:
        ValueError: a length that an array does not divide, or a buffer that is too small for one tile.
    """
    found = []
    for name, chip in DESIGNS.items():
        for array in arrays:
            sized_chip = chip.resized(array)
            for work in works:
                cost = attention_cost(work, sized_chip)
                found.append(
                    DesignPoint(
                        model=work.model,
                        seq=work.keys,
                        arch=name,
                        array=array,
                        latency_s=cost.latency_s,
                        traffic_bytes=cost.traffic_bytes,
                        energy_pj=cost.energy_pj,
                        util_2d=cost.util_2d,
                        util_1d=cost.util_1d,
                    )
                )
    return found


def pareto_front(points: list[Point]) -> list[Point]:
    """Those that no other point beats in both time and area, the smallest first."""
    known = sorted((own for own in points if own.area_mm2 is not None), key=lambda own: (own.area_mm2, own.latency_s))
    front: list[Point] = []
    for own in known:
        if not front or own.latency_s < front[-1].latency_s:
            front.append(own)
    return front
