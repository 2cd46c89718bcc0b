"""Roofs, what the library's kernels are counted as, and cascades on chips."""

from __future__ import annotations

import math

import pytest

from regard.hardware.chips import AGENTS, as_kernel, chip_cost, is_contraction, sizes_for
from regard.hardware.einsum import CascadeError
from regard.hardware.kernels import KERNELS, Layer, lightning_kernels, softmax_kernels
from regard.hardware.library import cascade, names
from regard.hardware.reader import read_text
from regard.hardware.roofline import CPU_2_CORES, H200, MACHINES, Kernel, Machine
from regard.hardware.workloads import workload
from regard.registry import get_class

TOY = Machine(
    name="toy",
    flops_per_s=100.0,
    bytes_per_s=10.0,
    tile_flops_per_s=50.0,
    exps_per_s=20.0,
    element_ops_per_s=40.0,
    call_s=0.5,
)


def test_operations_take_turns_and_memory_runs_beside_them() -> None:
    kernel = Kernel(name="k", flops=100, tile_flops=100, exps=20, element_ops=40, moved_bytes=1, calls=2)
    assert TOY.seconds(kernel) == pytest.approx(1 + 2 + 1 + 1 + 2 * 0.5)
    far = Kernel(name="far", flops=100, moved_bytes=70)
    assert TOY.seconds(far) == pytest.approx(7 + 0.5)
    assert TOY.total([kernel, far]) == pytest.approx(6 + 7.5)
    assert kernel.operations == 260


def test_roofs_meet_at_the_ridge() -> None:
    assert TOY.ridge == 10
    assert TOY.attainable(5) == 50
    assert TOY.attainable(10) == TOY.attainable(1000) == 100


def test_unknown_rates_are_those_of_large_products() -> None:
    plain = Machine(name="plain", flops_per_s=100.0, bytes_per_s=10.0)
    assert plain.seconds(Kernel(name="k", tile_flops=50, exps=100, element_ops=200)) == 3.5


@pytest.mark.parametrize("rate", [0.0, -1.0, math.inf, math.nan])
def test_a_machine_has_positive_finite_peaks(rate: float) -> None:
    with pytest.raises(ValueError, match="bytes_per_s must be positive and finite"):
        Machine(name="no", flops_per_s=1.0, bytes_per_s=rate)
    with pytest.raises(ValueError, match="call_s must be 0 or positive"):
        Machine(name="no", flops_per_s=1.0, bytes_per_s=1.0, call_s=-1.0)


def test_published_machines_name_their_sources() -> None:
    assert all(machine.source for machine in MACHINES.values())
    assert H200.ridge == pytest.approx(989 / 4.8)
    assert CPU_2_CORES.flops_per_s == 320e9


@pytest.mark.parametrize("name", list(KERNELS))
@pytest.mark.parametrize(("tokens", "dim", "heads", "batch"), [(128, 32, 4, 1), (192, 48, 3, 2)])
def test_products_are_the_mechanisms_own(name: str, tokens: int, dim: int, heads: int, batch: int) -> None:
    """Multiply-accumulates as the mechanism counts them, twice; causal attention skips the future here."""
    kernels = KERNELS[name](Layer(tokens=tokens, dim=dim, num_heads=heads, batch=batch))
    counted = sum(kernel.flops + kernel.tile_flops for kernel in kernels) / 2
    macs = get_class(name).macs(batch=batch, tokens=tokens, dim=dim, num_heads=heads, causal=True)
    hidden = batch * dim * tokens * (tokens - 1) if name == "softmax" else 0
    assert counted == macs - hidden


def test_only_softmax_grows_quadratically() -> None:
    def growth(kernels) -> float:
        short, long = (
            sum(kernel.operations for kernel in kernels(Layer(tokens=tokens, dim=64, num_heads=1)))
            for tokens in (8192, 16384)
        )
        return long / short

    assert growth(softmax_kernels) > 3.9
    assert growth(lightning_kernels) == pytest.approx(2, rel=0.01)


def test_a_layer_with_ill_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match="num_heads must divide dim, got dim=10 and num_heads=3"):
        Layer(tokens=1, dim=10, num_heads=3)
    with pytest.raises(ValueError, match="tokens must be positive, got 0"):
        Layer(tokens=0, dim=8, num_heads=2)


# --------------------------------------------------------------------------------------------------- chips


def test_softmax_on_a_chip_by_hand() -> None:
    work = workload("bert", 1024)
    kernel = as_kernel(cascade("softmax"), work)
    scores = 64 * 12 * 1024**2
    assert kernel.flops == 2 * scores * 128
    assert kernel.exps == scores
    # maximum, subtraction, sum, division
    assert kernel.element_ops == 4 * scores
    assert kernel.moved_bytes == 2 * 64 * 12 * 1024 * 64 * 4
    cost = chip_cost(cascade("softmax"), work, H200)
    assert cost.latency_s == pytest.approx(kernel.operations / 989e12)
    assert (cost.bound, cost.operations) == ("compute", kernel.operations)


def test_every_shipped_cascade_has_a_cost_on_a_chip() -> None:
    work = workload("bert", 65536)
    costs = {name: chip_cost(cascade(name), work, H200) for name in names()}
    assert costs["lightning"].bound == "memory"
    assert costs["attention_one_pass"].bound == "compute"
    assert costs["agent"].latency_s < costs["attention_one_pass"].latency_s / 10
    assert costs["window"].operations < costs["attention_one_pass"].operations / 10


def test_keys_seen_and_agents_are_the_sizes_of_ranks() -> None:
    work = workload("t5", 4096)
    assert sizes_for(cascade("window"), work, keys_seen=100)["m"] == 100
    assert sizes_for(cascade("window"), work, keys_seen=10**6)["m"] == 4096
    assert sizes_for(cascade("hip"), work, keys_seen=64) | {} == {"e": 64, "f": 64, "p": 4096, "m1": 2, "m0": 32}
    assert sizes_for(cascade("agent"), work)["a"] == AGENTS
    once = as_kernel(cascade("window"), work, keys_seen=64)
    twice = as_kernel(cascade("window"), work, keys_seen=128)
    assert twice.flops == 2 * once.flops
    # all keys come from memory whatever is seen of them
    assert twice.moved_bytes == once.moved_bytes


def test_a_rank_without_a_size_is_refused() -> None:
    odd = read_text("rank z\ninput A[z]\noutput B\nB[] = sum(z) A[z]")
    with pytest.raises(CascadeError, match="no size for the rank z"):
        sizes_for(odd, workload("bert", 1024))


def test_contractions_are_sums_of_products_of_two_tensors() -> None:
    found = {einsum.name: is_contraction(einsum) for einsum in cascade("attention_three_pass").einsums}
    assert found == {"QK": True, "GM": False, "SN": False, "SD": False, "A": False, "AV": True}
