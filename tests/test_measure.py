"""Races alternate and give ratios; peak memory sees what a call needs; exponents are fitted in logarithms."""

from __future__ import annotations

import gc
import math
from pathlib import Path

import pytest
import torch

from regard import measure
from regard.measure import (
    MeasurementError,
    Race,
    available_memory_bytes,
    contraction_macs,
    growth_exponent,
    peak_bytes,
    race,
)

MEBIBYTE = 2**20
needs_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no /proc/self/clear_refs")


class FakeClock:
    """Advances only by what the contestants take."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def contestant(clock: FakeClock, name: str, times: list[float], calls: list[str]):
    queue = list(times)

    def run() -> None:
        calls.append(name)
        clock.now += queue.pop(0)

    return run


def test_a_race_warms_up_alternates_and_rotates_the_order() -> None:
    clock, calls = FakeClock(), []
    fields = {name: contestant(clock, name, [50.0, *times], calls) for name, times in TIMES.items()}
    result = race(fields, rounds=4, clock=clock)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert {name: list(times) for name, times in result.seconds.items()} == TIMES


# fractions of two, so that a clock that adds them up stays exact
TIMES = {"a": [1.0, 3.0, 2.0, 8.0], "b": [5.0, 7.0, 6.0, 6.0], "c": [0.5, 0.25, 4.0, 0.25]}


def test_ratios_are_of_medians_and_of_minima() -> None:
    result = Race({name: tuple(times) for name, times in TIMES.items()})
    assert result.median_s == {"a": 2.5, "b": 6.0, "c": 0.375}
    assert result.minimum_s == {"a": 1.0, "b": 5.0, "c": 0.25}
    assert result.ratio("b", "a") == pytest.approx(6.0 / 2.5)
    assert result.ratio("a", "b") == pytest.approx(2.5 / 6.0)
    assert result.minimum_ratio("b", "a") == pytest.approx(5.0)


def test_garbage_collection_is_off_in_the_race_and_on_after_it() -> None:
    seen = []
    race({"a": lambda: seen.append(gc.isenabled())}, rounds=2, warmup=0)
    assert seen == [False, False]
    assert gc.isenabled()

    def fails() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        race({"a": fails}, rounds=1, warmup=0)
    assert gc.isenabled()


def test_a_race_needs_contestants_and_rounds() -> None:
    with pytest.raises(ValueError, match="at least one contestant"):
        race({})
    with pytest.raises(ValueError, match="rounds=0"):
        race({"a": lambda: None}, rounds=0)
    with pytest.raises(ValueError, match="warmup=-1"):
        race({"a": lambda: None}, warmup=-1)


# --------------------------------------------------------------------------------------------------- memory


def ones(mebibytes: int) -> torch.Tensor:
    return torch.ones(mebibytes * MEBIBYTE // 4)


@needs_proc
@pytest.mark.parametrize("mebibytes", [64, 160])
def test_peak_memory_sees_a_temporary(mebibytes) -> None:
    peak = peak_bytes(lambda: ones(mebibytes).sum().item(), warmup=1)
    assert 0.8 * mebibytes < peak / MEBIBYTE < 1.5 * mebibytes + 16


@needs_proc
def test_peak_memory_counts_only_what_is_held_at_the_same_time() -> None:
    def one_after_the_other() -> None:
        for _ in range(4):
            ones(48).sum()

    def together() -> list[torch.Tensor]:
        return [ones(48) for _ in range(4)]

    assert peak_bytes(one_after_the_other, warmup=1) / MEBIBYTE < 100
    assert peak_bytes(together) / MEBIBYTE > 170


@needs_proc
def test_memory_that_is_held_before_and_an_earlier_peak_do_not_count() -> None:
    held = ones(96)
    ones(200)
    assert peak_bytes(lambda: ones(8).sum().item(), warmup=1) / MEBIBYTE < 60
    assert held[0] == 1


@needs_proc
def test_many_small_blocks_that_the_heap_has_kept_are_seen() -> None:
    def small_blocks() -> int:
        return len([bytearray(20_000) for _ in range(3000)])

    small_blocks()
    assert peak_bytes(small_blocks) / MEBIBYTE > 40


def test_a_system_without_reset_of_the_peak_is_told(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(measure, "_PROCESS", tmp_path / "nowhere")
    with pytest.raises(MeasurementError, match=r"clear_refs, which cannot be written: No such file"):
        peak_bytes(lambda: None)


def test_other_devices_are_refused() -> None:
    with pytest.raises(MeasurementError, match="not on meta"):
        peak_bytes(lambda: None, device="meta")
    if not torch.cuda.is_available():
        with pytest.raises(MeasurementError, match="no CUDA device"):
            peak_bytes(lambda: None, device="cuda")


@pytest.mark.gpu
def test_peak_memory_on_cuda_sees_a_temporary() -> None:
    def temporary() -> float:
        return torch.ones(16 * MEBIBYTE, device="cuda").sum().item()

    assert 60 < peak_bytes(temporary, device="cuda", warmup=1) / MEBIBYTE < 80


@pytest.mark.parametrize(
    ("groups", "expected_kib"),
    [
        ({}, 9000),
        ({"memory.max": "max\n", "memory.current": "5\n"}, 9000),
        ({"memory.max": f"{5000 * 1024}\n", "memory.current": f"{1000 * 1024}\n"}, 4000),
        ({"memory.max": "1024\n", "memory.current": "4096\n"}, 0),
        ({"memory/memory.limit_in_bytes": f"{3000 * 1024}", "memory/memory.usage_in_bytes": f"{1000 * 1024}"}, 2000),
    ],
)
def test_available_memory_is_what_system_and_control_group_leave(monkeypatch, tmp_path, groups, expected_kib) -> None:
    info = tmp_path / "meminfo"
    info.write_text("MemTotal:       20000 kB\nMemAvailable:    9000 kB\nSwapFree:  1 kB\n")
    for name, text in groups.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text)
    monkeypatch.setattr(measure, "_MEMORY_INFO", info)
    monkeypatch.setattr(measure, "_CONTROL_GROUPS", tmp_path / "cgroup")
    assert available_memory_bytes() == expected_kib * 1024


def test_available_memory_needs_a_system_that_tells(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(measure, "_MEMORY_INFO", tmp_path / "meminfo")
    with pytest.raises(MeasurementError, match="cannot read"):
        available_memory_bytes()
    (tmp_path / "meminfo").write_text("MemTotal: 3 kB\n")
    with pytest.raises(MeasurementError, match="no field MemAvailable"):
        available_memory_bytes()


# --------------------------------------------------------------------------------------------------- growth


@pytest.mark.parametrize("power", [0.0, 1.0, 1.5, 2.0])
def test_the_exponent_of_a_power_is_found_exactly(power) -> None:
    lengths = [7, 13, 101, 1009]
    assert growth_exponent(lengths, [3.7 * length**power for length in lengths]) == pytest.approx(power, abs=1e-12)


def test_the_exponent_is_the_least_squares_slope() -> None:
    lengths, values = [3, 5, 11, 17, 23], [2.0, 9.0, 30.0, 41.0, 95.0]
    design = torch.tensor([[math.log(length), 1.0] for length in lengths], dtype=torch.float64)
    wanted = torch.linalg.lstsq(design, torch.tensor(values, dtype=torch.float64).log()[:, None]).solution[0].item()
    assert growth_exponent(lengths, values) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(
    ("lengths", "values", "named"),
    [
        ([1, 2], [1.0], "2 lengths and 1 values"),
        ([4], [1.0], "two different lengths"),
        ([4, 4], [1.0, 2.0], "two different lengths"),
        ([0, 4], [1.0, 2.0], "positive and finite, got 0"),
        ([2, 4], [1.0, -2.0], r"got -2\.0"),
        ([2, 4], [1.0, math.nan], "got nan"),
        ([2, 4], [1.0, math.inf], "got inf"),
    ],
)
def test_an_exponent_needs_positive_numbers(lengths, values, named) -> None:
    with pytest.raises(ValueError, match=named):
        growth_exponent(lengths, values)


# --------------------------------------------------------------------------------------------------- arithmetic


@pytest.mark.parametrize("causal", [True, False])
def test_fused_attention_counts_in_full(causal) -> None:
    q, k, v = torch.randn(2, 3, 11, 5), torch.randn(2, 3, 11, 5), torch.randn(2, 3, 11, 5)
    counted = contraction_macs(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal))
    assert counted == 2 * 3 * 11 * 11 * (5 + 5)


def test_products_count_and_elementwise_work_does_not() -> None:
    a, b = torch.randn(7, 3, requires_grad=True), torch.randn(3, 5)
    assert contraction_macs(lambda: (a @ b).relu() + 1) == 7 * 3 * 5
    convolution = torch.nn.Conv2d(2, 3, 3)
    assert contraction_macs(lambda: convolution(torch.randn(1, 2, 9, 7))) == 7 * 5 * 3 * 2 * 9
