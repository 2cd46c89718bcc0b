"""The linear layers around attention: four projections and a feed-forward network, the same on every design.

Source: "FuseMax: Leveraging Extended Einsums to Optimize Attention Accelerator Design", Nayak et al., MICRO 2024,
https://arxiv.org/abs/2406.10491, and the results in FPSG-UIUC/micro24-fusemax-artifact@f543beb9, whose latencies these
closed forms give. Its mapper moves more bytes for wide layers, which changes no latency; energy leaves the global
buffer out, since nothing was fitted for it here.
"""

from __future__ import annotations

from dataclasses import dataclass

from regard.hardware.designs import WORD_BYTES, Design
from regard.hardware.workloads import Workload


@dataclass(frozen=True)
class Linear:
    """A linear layer: inputs and outputs per token."""

    inputs: int
    outputs: int


@dataclass(frozen=True, kw_only=True)
class LinearCost:
    """What all linear layers of a block cost.

    Args:
        latency_s: seconds.
        traffic_bytes: to and from the memory outside the chip, every tensor once.
        energy_pj: picojoules of multiply-accumulates and of that memory.
    """

    latency_s: float
    traffic_bytes: float
    energy_pj: float


def linear_layers(work: Workload) -> tuple[Linear, ...]:
    """Four projections and two layers of the feed-forward network."""
    inner = work.num_heads * work.head_dim
    projection = Linear(work.dim, inner)
    return (
        projection,
        projection,
        projection,
        Linear(inner, work.dim),
        Linear(work.dim, work.hidden),
        Linear(work.hidden, work.dim),
    )


def linear_cost(work: Workload, design: Design) -> LinearCost:
    """The cost of the linear layers, each bound by products or by memory.

    Args:
        work: the block; its number of queries is that of the tokens.
        design: the accelerator.
    """
    tokens = work.batch * work.queries
    latency = moved = macs = 0.0
    for layer in linear_layers(work):
        own_macs = tokens * layer.inputs * layer.outputs
        words = tokens * layer.inputs + layer.inputs * layer.outputs + tokens * layer.outputs
        own_bytes = float(WORD_BYTES * words)
        compute = own_macs / design.array**2 / design.frequency_hz
        latency += max(compute, own_bytes / design.bandwidth_bytes_per_s)
        moved += own_bytes
        macs += own_macs
    energy = macs * design.energies.mac_pj + design.energies.dram_pj * moved / 8
    return LinearCost(latency_s=latency, traffic_bytes=moved, energy_pj=energy)
