from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from regard.parity.adapters import Outcome, adapter
from regard.parity.cases import load_case
from regard.parity.rounding import is_rounding, rounding_allowance
from regard.parity.runner import run_case


def write_case(folder, tensors, *, entry, rtol=1e-5, atol=1e-6):
    described = {
        "system": "rounding_test",
        "case": entry,
        "reference": {"repo": "nobody/nothing", "commit": "0" * 40, "entry": entry},
        "config": {},
        "call": {"inputs": ["a", "b"], "kwargs": {}},
        "outputs": ["y"],
        "mode": "eval",
        "tolerance": {"rtol": rtol, "atol": atol},
        "notes": "",
    }
    save_file(tensors, folder / f"{entry}.safetensors")
    (folder / f"{entry}.json").write_text(json.dumps(described))
    return load_case(folder / f"{entry}.json")


def cancelling():
    """Sums of large terms that nearly cancel: y is about 1e-4, its terms about 1e3."""
    generator = torch.Generator().manual_seed(0)
    a = 1e3 * torch.randn(5, 64, generator=generator)
    b = -a * (1 + 1e-7 * torch.randn(5, 64, generator=generator))
    return a, b


@pytest.mark.parametrize("factor", [1.0, 1.05])
def test_cancellation_is_rounding_and_an_error_beside_it_is_not(tmp_path, factor):
    entry = f"cancel_{str(factor).replace('.', '_')}"
    a, b = cancelling()
    # the reference adds in another order
    stored = a.flip(1).sum(1) + b.sum(1)

    @adapter(entry, system="rounding_test")
    def ours(case):
        return Outcome(outputs={"y": factor * (case.inputs["a"] + case.inputs["b"]).sum(1) + (factor - 1)})

    result = run_case(write_case(tmp_path, {"in.a": a, "in.b": b, "out.y": stored}, entry=entry))
    if factor == 1.0:
        assert result.passed
        assert result.settled == ("out.y",)
        assert result.worst > 1
    else:
        assert not result.passed
        assert result.settled == ()
        assert "out.y is off by" in result.problems[0]


def test_a_small_error_of_a_well_conditioned_tensor_stays_a_failure(tmp_path):
    a, b = (torch.randn(5, 64, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))

    @adapter("product", system="rounding_test")
    def ours(case):
        return Outcome(outputs={"y": (1 + 1e-4) * case.inputs["a"] * case.inputs["b"]})

    result = run_case(write_case(tmp_path, {"in.a": a, "in.b": b, "out.y": a * b}, entry="product"))
    assert not result.passed
    assert result.settled == ()


def test_the_allowance_is_the_move_of_one_rounding(tmp_path):
    a, b = cancelling()

    @adapter("sum", system="rounding_test")
    def ours(case):
        return Outcome(outputs={"y": (case.inputs["a"] + case.inputs["b"]).sum(1)})

    case = write_case(tmp_path, {"in.a": a, "in.b": b, "out.y": a.sum(1)}, entry="sum")
    exact, allowance = rounding_allowance(case, lambda given: ours(given).outputs)
    assert exact["y"].dtype == torch.float64
    torch.testing.assert_close(exact["y"], (a.double() + b.double()).sum(1))
    bound = 2.0**-24 * float((a.double().abs() + b.double().abs()).sum(1).max())
    assert 0.01 * bound < allowance["y"] <= bound
    assert torch.get_default_dtype() == torch.float32


def test_shapes_and_integers_are_never_rounding():
    one = torch.ones(3)
    assert not is_rounding(one, torch.ones(4), one.double(), 1.0, rtol=0, atol=0)
    whole = torch.ones(3, dtype=torch.int64)
    assert not is_rounding(whole, whole + 1, whole, 5.0, rtol=0, atol=0)
    assert is_rounding(one, one + 0.5, one.double() + 0.25, 0.3, rtol=0, atol=0)
    assert not is_rounding(one, one + 0.7, one.double() + 0.25, 0.3, rtol=0, atol=0)
