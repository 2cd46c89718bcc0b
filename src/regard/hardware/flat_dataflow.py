"""How FLAT keeps tensors on the chip at each length: its simulator's choices, as the artifact of FuseMax has them.

Source: FPSG-UIUC/micro24-fusemax-artifact@f543beb9. Lengths between those that were simulated take the choice of the
next longer one; longer ones that of the longest.
"""

from __future__ import annotations

from dataclasses import dataclass

from regard.hardware.workloads import Workload


@dataclass(frozen=True, kw_only=True)
class Dataflow:
    """What stays on the chip.

    Args:
        up_to: the longest sequence that it is for.
        rows: queries that are worked on at a time, P1; 0 = all of a head.
        stationary_weights: scores and weights leave the chip, keys and values stay in the array.
        q: queries stay.
        k: keys stay.
        v: values stay.
        spilled: share of the tiles that do not fit.
    """

    up_to: int
    rows: int = 0
    stationary_weights: bool = False
    q: bool = False
    k: bool = False
    v: bool = False
    spilled: float = 0.0


_LONGEST = 1 << 62
_SMALL_SPILL = 1 / 129
_NARROW = (
    Dataflow(up_to=1 << 10),
    Dataflow(up_to=1 << 12, spilled=_SMALL_SPILL),
    Dataflow(up_to=1 << 14, rows=1024, spilled=_SMALL_SPILL),
    Dataflow(up_to=1 << 16, rows=256, spilled=_SMALL_SPILL),
    Dataflow(up_to=_LONGEST, rows=1024, stationary_weights=True, q=True),
)
_WIDE = (
    Dataflow(up_to=1 << 10, v=True),
    Dataflow(up_to=1 << 12, v=True, spilled=38 / 550),
    Dataflow(up_to=1 << 14, rows=1024, q=True, spilled=7 / 263),
    Dataflow(up_to=1 << 16, rows=256, q=True, spilled=1 / 65),
    Dataflow(up_to=_LONGEST, rows=1024, stationary_weights=True, q=True),
)
WIDE_FROM = 128
"""Width of a head from which XLM's choices are taken."""


def dataflow(work: Workload) -> Dataflow:
    """FLAT's choice for a workload."""
    table = _WIDE if work.head_dim >= WIDE_FROM else _NARROW
    return next(choice for choice in table if max(work.keys, work.queries) <= choice.up_to)
