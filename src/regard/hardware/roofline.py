"""Roofs of chips that exist: the least time that a kernel's operations and bytes take.

Source: "Roofline: an insightful visual performance model for multicore architectures", Williams et al., CACM 2009,
https://doi.org/10.1145/1498765.1498785; here with a roof for each kind of operation and the time that a call takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """What one call, or one kind of calls, computes and moves.

    Args:
        name: what it is.
        flops: of products of large matrices; a multiply-accumulate is two.
        tile_flops: of products of tiles that stay in the cache.
        exps: exponentials.
        element_ops: other operations on single elements.
        moved_bytes: to and from memory.
        calls: how often it is called.
    """

    name: str
    flops: float = 0.0
    tile_flops: float = 0.0
    exps: float = 0.0
    element_ops: float = 0.0
    moved_bytes: float = 0.0
    calls: int = 1

    @property
    def operations(self) -> float:
        """Of all kinds."""
        return self.flops + self.tile_flops + self.exps + self.element_ops


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A chip.

    Args:
        name: of the chip.
        flops_per_s: of products of large matrices.
        bytes_per_s: to and from its memory.
        tile_flops_per_s: of products of small tiles; 0 = as of large ones.
        exps_per_s: exponentials; 0 = not known, as many as products.
        element_ops_per_s: other operations on elements that are in the cache; 0 = not known, as many as products.
        call_s: seconds that a call takes beside its work.
        source: of the figures.

    Raises:
        ValueError: a rate that is not positive and finite, or a negative one.
    """

    name: str
    flops_per_s: float
    bytes_per_s: float
    tile_flops_per_s: float = 0.0
    exps_per_s: float = 0.0
    element_ops_per_s: float = 0.0
    call_s: float = 0.0
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("flops_per_s", "bytes_per_s"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        for name in ("tile_flops_per_s", "exps_per_s", "element_ops_per_s", "call_s"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be 0 or positive, and finite, got {getattr(self, name)}")

    @property
    def ridge(self) -> float:
        """Operations per byte from which products, not memory, take the time."""
        return self.flops_per_s / self.bytes_per_s

    def seconds(self, kernel: Kernel) -> float:
        """The least time of a kernel: its operations one after the other, or memory, whichever takes longer."""
        compute = kernel.flops / self.flops_per_s
        compute += kernel.tile_flops / (self.tile_flops_per_s or self.flops_per_s)
        for count, rate in ((kernel.exps, self.exps_per_s), (kernel.element_ops, self.element_ops_per_s)):
            compute += count / (rate or self.flops_per_s)
        return max(compute, kernel.moved_bytes / self.bytes_per_s) + kernel.calls * self.call_s

    def total(self, kernels: Iterable[Kernel]) -> float:
        """The least time of kernels one after the other."""
        return sum(self.seconds(kernel) for kernel in kernels)

    def attainable(self, intensity: float) -> float:
        """Operations per second at some operations per byte."""
        return min(self.flops_per_s, intensity * self.bytes_per_s)


H200 = Machine(
    name="H200",
    flops_per_s=989e12,
    bytes_per_s=4.8e12,
    source="NVIDIA's data sheet of the H200 SXM: 1,979 TFLOPS in bfloat16 with sparsity, half of it without; 4.8 TB/s",
)
CPU_2_CORES = Machine(
    name="2-core AVX-512 CPU",
    flops_per_s=2 * 2 * 16 * 2 * 2.5e9,
    bytes_per_s=2 * 25.6e9,
    source="2 cores with 2 fused multiply-adds of 16 float32 per cycle at 2.5 GHz; 2 channels of DDR4-3200 (25.6 GB/s)",
)
MACHINES = {"h200": H200, "cpu": CPU_2_CORES}
