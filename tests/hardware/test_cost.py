"""Designs, workloads, traffic, latencies and sweeps: formulas restated, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from regard.hardware.cost import attention_cost, phases, useful_work
from regard.hardware.designs import ARRAYS, DESIGNS, MEBIBYTE, design
from regard.hardware.energy import energy_pj, independent_pj
from regard.hardware.flat_dataflow import dataflow
from regard.hardware.linear import linear_cost, linear_layers
from regard.hardware.sweep import pareto_front, point, sweep, sweep_designs
from regard.hardware.traffic import traffic_bytes
from regard.hardware.workloads import LENGTHS, MODELS, all_workloads, length_in_words, workload

STORED = Path(__file__).parents[1] / "parity/cases/fusemax"


def test_the_workloads_are_those_of_the_paper() -> None:
    works = all_workloads()
    assert len(works) == 24
    assert [length_in_words(length) for length in LENGTHS] == ["1K", "4K", "16K", "64K", "256K", "1M"]
    bert = works[0]
    assert (bert.dim, bert.num_heads, bert.head_dim, bert.hidden, bert.batch) == (768, 12, 64, 3072, 64)
    assert bert.scores == 64 * 12 * 1024 * 1024


def test_fusemax_by_hand() -> None:
    """BERT at 1K: per score 65 or 66 + 64 / 4, then 1, 8 and 64 operations."""
    work = workload("bert", 1024)
    units = max(64 + 1, 1 + 64 + 64 * 256 / 1024) + 1 + 8 + 64
    seconds = units * 64 * 12 * 1024**2 / 256**2 / 940e6
    assert attention_cost(work, design("fusemax")).latency_s == pytest.approx(seconds, rel=1e-14)


def test_traffic_of_one_pass_by_hand() -> None:
    """Queries and outputs once; keys and values once for every group of tiles that fits the buffer."""
    work, chip = workload("xlm", 65536), design("fusemax")
    room = (16 * MEBIBYTE - 4 * 256 * 128) // (2 * 256 * (128 + 128 + 2))
    group = max(divisor for divisor in range(1, room + 1) if 256 % divisor == 0)
    words = 65536 * 256 * (1 + 256 / group)
    assert traffic_bytes(work, chip) == pytest.approx(2 * 64 * 16 * words, rel=1e-14)


def test_flats_choices_are_those_that_were_stored() -> None:
    described = json.loads((STORED / "attention_and_linear.json").read_text())
    inputs = load_file(STORED / "attention_and_linear.safetensors")
    units = {"K": 2**10, "M": 2**20}
    for row, (model, length) in enumerate(described["config"]["workloads"]):
        flow = dataflow(workload(model.lower(), int(length[:-1]) * units[length[-1]]))
        q, k, scores, _, v, _ = inputs["in.flat_onchip"][row]
        assert (flow.q, flow.k, flow.v) == (bool(q), bool(k), bool(v))
        assert flow.stationary_weights == bool(inputs["in.flat_weight_stationary"][row]) == (not scores)
        if inputs["in.flat_row_granularity"][row]:
            assert flow.rows == inputs["in.flat_P1"][row]
        else:
            assert flow.rows == 0
        assert flow.spilled == pytest.approx(inputs["in.flat_spilled"][row], rel=1e-5, abs=1e-12)


def test_phases_make_up_the_time() -> None:
    for name in ("cascade", "arch", "fusemax"):
        work = workload("t5", 2**16)
        cost = attention_cost(work, design(name))
        unit = work.scores / 256**2 / 940e6
        assert cost.latency_s == pytest.approx(sum(part.length for part in phases(work, design(name))) * unit)
        assert cost.bound == "compute"


def test_utilisation_is_useful_work_over_time_and_never_more_than_one() -> None:
    for work in all_workloads():
        for chip in DESIGNS.values():
            cost = attention_cost(work, chip)
            assert 0 < cost.util_2d <= 1 + 1e-12
            assert 0 < cost.util_1d <= 1 + 1e-12
    square, line = useful_work(workload("bert", 2**20), design("fusemax"))
    assert square == 64 + 1 + 7 + 1 + 64
    assert line == pytest.approx(1 + 7 + 1 + 64 + 1 + 64 + 64 * 256 / 2**20)


def test_a_slow_memory_bounds_the_time() -> None:
    work = workload("bert", 4096)
    slow = replace(design("fusemax"), bandwidth_bytes_per_s=1e9)
    cost = attention_cost(work, slow)
    assert cost.bound == "memory"
    assert cost.latency_s == pytest.approx(cost.traffic_bytes / 1e9)


def test_energy_has_a_part_that_was_fitted_and_one_that_was_not() -> None:
    work = workload("bert", 4096)
    for chip in DESIGNS.values():
        moved = traffic_bytes(work, chip)
        free = replace(chip, energies=replace(chip.energies, line_pj=0.0))
        assert energy_pj(work, free, moved) == independent_pj(work, chip, moved) < energy_pj(work, chip, moved)


def test_linear_layers_of_bert() -> None:
    work = workload("bert", 1024)
    layers = linear_layers(work)
    assert [(layer.inputs, layer.outputs) for layer in layers] == [(768, 768)] * 4 + [(768, 3072), (3072, 768)]
    macs = 64 * 1024 * (4 * 768**2 + 2 * 768 * 3072)
    cost = linear_cost(work, design("flat"))
    assert cost.latency_s == pytest.approx(macs / 256**2 / 940e6)
    assert cost.energy_pj == pytest.approx(macs * 17.1645 + cost.traffic_bytes / 8 * 249.6)


def test_a_sweep_gives_six_sizes_and_its_front() -> None:
    points = sweep(workload("bert", 2**18))
    assert [own.array for own in points] == list(ARRAYS)
    assert points[4].latency_s == pytest.approx(118.28, rel=1e-4)
    assert points[5].latency_s == pytest.approx(29.58, rel=1e-3)
    assert pareto_front(points) == points
    worse = replace(points[0], area_mm2=6.0, latency_s=points[0].latency_s * 2)
    assert pareto_front([worse, *points]) == points
    assert pareto_front([replace(points[0], area_mm2=None)]) == []


def test_the_whole_sweep_has_720_points() -> None:
    points = sweep_designs(all_workloads())
    assert len(points) == 24 * 5 * 6
    at_home = {(own.model, own.seq, own.arch): own for own in points if own.array == 256}
    cost = attention_cost(workload("xlm", 4096), design("arch"))
    assert at_home["xlm", 4096, "arch"].latency_s == cost.latency_s
    assert at_home["xlm", 4096, "arch"].energy_pj == cost.energy_pj


def test_an_area_that_was_not_published_is_none() -> None:
    odd = replace(workload("bert", 2**18), head_dim=32, value_dim=32)
    assert point(odd, 64).area_mm2 is None


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda: workload("brt", 1024), "unknown workload 'brt': did you mean bert"),
        (lambda: workload("bert", 0), "keys must be positive, got 0"),
        (lambda: design("fusemx"), "unknown design 'fusemx': did you mean fusemax"),
        (lambda: attention_cost(workload("bert", 1000), design("flat")), "multiple of the array's 256, got 1000"),
        (
            lambda: attention_cost(workload("bert", 1024), replace(design("fusemax"), buffer_bytes=100_000)),
            "global buffer too small for one tile: 100,000 bytes",
        ),
        (lambda: replace(design("flat"), frequency_hz=0.0), "frequency_hz must be positive, got 0.0"),
    ],
    ids=["workload", "length", "design", "tiles", "buffer", "frequency"],
)
def test_ill_arguments_are_refused(call, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        call()


def test_models_have_titles() -> None:
    from regard.hardware.workloads import TITLES

    assert set(TITLES) == set(MODELS)
