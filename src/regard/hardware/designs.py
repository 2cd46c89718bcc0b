"""Accelerators as data: arrays of processing elements, buffers, bandwidth, energy per action, area.

Source of the figures: "FuseMax: Leveraging Extended Einsums to Optimize Attention Accelerator Design", Nayak et al.,
MICRO 2024, https://arxiv.org/abs/2406.10491, and its artifact, FPSG-UIUC/micro24-fusemax-artifact@f543beb9. "GB/s"
there is 2^30 bytes per second.
The energy per access of the global buffer is **calibrated**: one constant for each design, fitted to the published
energies at 1K to 64K; energies that the model tells are consistent with those, they do not reproduce them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from regard.wording import suggestion

DesignName = Literal["unfused", "flat", "cascade", "arch", "fusemax"]
MEBIBYTE = 2**20
LINE_BYTES = 512
LINE_WORDS = 256
WORD_BYTES = 2


@dataclass(frozen=True, kw_only=True)
class Energies:
    """Picojoules per action.

    Args:
        dram_pj: per 8 bytes that cross the chip's border.
        mac_pj: per multiply-accumulate.
        add_pj: per addition.
        max_pj: per maximum.
        divide_pj: per division.
        exp_pj: per exponential, of a unit for it; FuseMax makes one of six multiply-accumulates and an addition.
        line_pj: per line of the global buffer; calibrated.
    """

    dram_pj: float = 249.6
    mac_pj: float = 17.1645
    add_pj: float = 8.3395
    max_pj: float = 0.028036
    divide_pj: float = 36.251
    exp_pj: float = 94.6475
    line_pj: float


@dataclass(frozen=True, kw_only=True)
class Design:
    """An accelerator.

    Args:
        name: of the design.
        summary: what it adds, in one line.
        array: processing elements per side of the two-dimensional array, n; the one-dimensional one has n.
        frequency_hz: cycles per second.
        bandwidth_bytes_per_s: to and from the memory outside the chip.
        buffer_bytes: of the global buffer.
        energies: per action.

    Raises:
        ValueError: a number that is not positive.
    """

    name: DesignName
    summary: str
    array: int = 256
    frequency_hz: float = 940e6
    bandwidth_bytes_per_s: float = 400 * 2.0**30
    buffer_bytes: int
    energies: Energies

    def __post_init__(self) -> None:
        for name in ("array", "frequency_hz", "bandwidth_bytes_per_s", "buffer_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def resized(self, array: int) -> Design:
        """The same with arrays of another size."""
        return replace(self, array=array)


DESIGNS: dict[str, Design] = {
    "unfused": Design(
        name="unfused",
        summary="scores, softmax and values one after the other, through the memory outside the chip",
        buffer_bytes=32 * MEBIBYTE,
        energies=Energies(line_pj=40_212.0),
    ),
    "flat": Design(
        name="flat",
        summary="FLAT: the three fused row by row, 3-pass softmax on a one-dimensional array",
        buffer_bytes=32 * MEBIBYTE,
        energies=Energies(line_pj=26_169.0),
    ),
    "cascade": Design(
        name="cascade",
        summary="+Cascade: the 1-pass cascade on FLAT's arrays",
        buffer_bytes=16 * MEBIBYTE,
        energies=Energies(line_pj=20_763.0),
    ),
    "arch": Design(
        name="arch",
        summary="+Architecture: exponentials and maxima on the two-dimensional array, one tile after the other",
        buffer_bytes=16 * MEBIBYTE,
        energies=Energies(line_pj=13_267.0),
    ),
    "fusemax": Design(
        name="fusemax",
        summary="FuseMax (+Binding): tiles interleaved, so that both arrays work all the time",
        buffer_bytes=16 * MEBIBYTE,
        energies=Energies(line_pj=13_267.0),
    ),
}
"""The designs that the paper compares, each with what the one before has."""
ARRAYS = (16, 32, 64, 128, 256, 512)


def design(name: str) -> Design:
    """A design by name.

    Raises:
        ValueError: unknown; the nearest is suggested.
    """
    name = {"binding": "fusemax"}.get(name, name)
    if name not in DESIGNS:
        raise ValueError(f"unknown design {name!r}: {suggestion(name, DESIGNS)}")
    return DESIGNS[name]
