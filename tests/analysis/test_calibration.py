"""Peaks of this machine are positive, and predicted times belong to the layers that were run."""

from __future__ import annotations

import pytest
import torch

from regard.analysis.calibration import Compared, calibrate, compare_times
from regard.hardware.kernels import KERNELS, Layer
from regard.hardware.roofline import Machine


@pytest.fixture(scope="module")
def machine() -> Machine:
    return calibrate(rounds=1, stream=1 << 16)


def test_peaks_are_plausible(machine: Machine) -> None:
    # no CPU is slower than 10 MFLOP/s or faster than 1 PFLOP/s
    for rate in (machine.flops_per_s, machine.tile_flops_per_s):
        assert 1e7 < rate < 1e15
    for rate in (machine.bytes_per_s, machine.exps_per_s, machine.element_ops_per_s):
        assert 1e6 < rate < 1e14
    assert 0 < machine.call_s < 1e-2
    assert torch.__version__ in machine.source


def test_times_are_compared_layer_by_layer(machine: Machine) -> None:
    told: list[Compared] = []
    found = compare_times(machine, lengths=(32, 64), rounds=1, dim=16, num_heads=2, on_result=told.append)
    assert found == told
    assert [(each.mechanism, each.tokens) for each in found] == [
        (name, tokens) for tokens in (32, 64) for name in KERNELS
    ]
    for each in found:
        kernels = KERNELS[each.mechanism](Layer(tokens=each.tokens, dim=16, num_heads=2))
        assert each.predicted_s == machine.total(kernels)
        assert each.operations == sum(kernel.operations for kernel in kernels)
        assert each.ratio == pytest.approx(each.measured_s / each.predicted_s)
        assert each.measured_s > 0
