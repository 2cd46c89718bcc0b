"""Energy of one attention layer: calibrated, not reproduced.

Operations and bytes are counted; the energy of an access to the global buffer is one constant per design that was
fitted to the published energies, so that agreement with them is a check of consistency.
"""

from __future__ import annotations

from regard.hardware.designs import LINE_WORDS, Design
from regard.hardware.flat_dataflow import Dataflow, dataflow
from regard.hardware.workloads import Workload


def energy_pj(work: Workload, design: Design, traffic_bytes: float, *, flow: Dataflow | None = None) -> float:
    """Picojoules of operations, of the memory outside the chip and of the global buffer."""
    lines = buffer_words(work, design, traffic_bytes, flow=flow) / LINE_WORDS
    return independent_pj(work, design, traffic_bytes) + design.energies.line_pj * lines


def independent_pj(work: Workload, design: Design, traffic_bytes: float) -> float:
    """The part that no constant was fitted for: operations, and the memory outside the chip."""
    return _operations_pj(work, design) + design.energies.dram_pj * traffic_bytes / 8


def _operations_pj(work: Workload, design: Design) -> float:
    e, scores = design.energies, float(work.scores)
    products = scores * (work.head_dim + work.value_dim) * e.mac_pj
    if design.name in ("unfused", "flat"):
        softmax = e.max_pj + e.add_pj + e.exp_pj + e.add_pj + e.divide_pj
        return products + scores * softmax
    own_exp = e.exp_pj + e.add_pj if design.name == "cascade" else 6 * e.mac_pj + e.add_pj
    per_score = e.max_pj + own_exp + e.add_pj
    per_tile = e.max_pj + own_exp + e.mac_pj + work.value_dim * e.mac_pj + e.add_pj + work.value_dim * e.add_pj
    divisions = float(work.rows * work.queries * work.value_dim) * e.divide_pj
    return products + scores * per_score + scores / design.array * per_tile + divisions


def buffer_words(work: Workload, design: Design, traffic_bytes: float, *, flow: Dataflow | None = None) -> float:
    """Words that are read from and written to the global buffer."""
    scores, n = float(work.scores), design.array
    if design.name == "unfused":
        return 4 * scores
    if design.name == "flat":
        flow = flow or dataflow(work)
        if flow.stationary_weights:
            return 4 * scores
        return 7 * scores + (scores * work.head_dim / n if flow.q else 0.0)
    tiles, depth, width = scores / n, work.head_dim, work.value_dim
    fetched = work.rows * (work.keys / n) * (depth + width) * n * (work.queries / n)
    reads = tiles * depth + fetched + tiles * width + work.rows * work.queries * width + 2 * tiles
    writes = tiles * width + 2 * tiles + traffic_bytes / 2
    return reads + writes + (4 * scores if design.name == "cascade" else 0.0)
