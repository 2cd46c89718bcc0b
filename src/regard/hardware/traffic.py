"""Bytes that cross the chip's border for one attention layer, by design."""

from __future__ import annotations

from regard.hardware.designs import WORD_BYTES, Design
from regard.hardware.flat_dataflow import Dataflow, dataflow
from regard.hardware.workloads import Workload

REREAD_FROM = 1 << 18
"""Length from which the unfused design's mapper reads keys and values again."""


def traffic_bytes(work: Workload, design: Design, *, flow: Dataflow | None = None) -> float:
    """Bytes to and from the memory outside the chip.

    Args:
        work: the layer.
        design: the accelerator.
        flow: what FLAT keeps on the chip; None = its simulator's choice.

    Raises:
        ValueError: a length that the array does not divide, or a buffer that is too small for one tile.
    """
    check_lengths(work, design)
    if design.name == "unfused":
        return sum(unfused_phases(work))
    if design.name == "flat":
        return 2.0 * work.scores * _flat_words_per_score(work, design, flow or dataflow(work))
    repeats = (work.queries // design.array) / _tiles_at_a_time(work, design)
    once = work.queries * (work.head_dim + work.value_dim)
    again = work.keys * (work.head_dim + work.value_dim)
    return float(WORD_BYTES * work.rows * (once + repeats * again))


def check_lengths(work: Workload, design: Design) -> None:
    """Refuse a length that the array does not divide.

    Raises:
        ValueError: both numbers are named.
    """
    for name, length in (("keys", work.keys), ("queries", work.queries)):
        if length % design.array:
            raise ValueError(
                f"the number of {name} must be a multiple of the array's {design.array}, got {length}: tiles are whole"
            )


def _tiles_at_a_time(work: Workload, design: Design) -> int:
    """Tiles of n queries that share one fetch of the keys: the largest divisor of all of them that fits the buffer."""
    n, depth, width = design.array, work.head_dim, work.value_dim
    words = depth + width + 2 + (2 * n if design.name == "cascade" else 0)
    room = (design.buffer_bytes - 2 * n * depth - 2 * n * width) // (2 * n * words)
    tiles = work.queries // n
    if room < 1:
        raise ValueError(
            f"global buffer too small for one tile: {design.buffer_bytes:,} bytes, and a tile of {n} queries needs "
            f"{2 * n * (words + depth + width):,}"
        )
    return max(divisor for divisor in range(1, min(tiles, room) + 1) if tiles % divisor == 0)


def unfused_phases(work: Workload) -> tuple[float, float, float]:
    """Bytes of the scores, of the softmax and of the weighted values, one after the other."""
    rows = work.rows
    # keys and values are read again by the mapper: a constant read off the published figures
    extra = 0.0
    if max(work.keys, work.queries) >= REREAD_FROM:
        extra = (14 if work.head_dim < 128 else 30) * rows * work.queries * work.head_dim * WORD_BYTES / 2
    scores = 2.0 * (work.scores + rows * work.queries * work.head_dim + rows * work.keys * work.head_dim) + extra
    values = 2.0 * (work.scores + rows * work.queries * work.value_dim + rows * work.keys * work.value_dim) + extra
    return scores, 4.0 * work.scores, values


def _flat_words_per_score(work: Workload, design: Design, flow: Dataflow) -> float:
    n, depth, width = design.array, work.head_dim, work.value_dim
    rows = flow.rows or work.queries
    output = width / work.keys
    if flow.stationary_weights:
        return 4 + depth / work.keys + depth / rows + width / rows + output
    spill = flow.spilled
    q = depth / work.keys * (1 - spill) + spill * depth / n if flow.q else depth / n
    k = depth / rows * (1 - spill) + spill * depth / n if flow.k else depth / n
    v = width / rows * (1 - spill) + spill * width / n if flow.v else width / n
    return q + k + v + output + 7 * spill
