"""The runner compares every tensor; each planted fault makes the case fail with a message that names it."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from regard.errors import UserError
from regard.parity import verify
from regard.parity.adapters import Case, Outcome
from regard.parity.runner import compare_tensors, run_file


@pytest.fixture
def faulty(use_adapter, toy_outcome):
    """Register the toy adapter with a fault: a function from the right outcome to a wrong one."""

    def plant(fault) -> None:
        use_adapter(lambda case: fault(toy_outcome(case)))

    return plant


def change(part: str, name: str, value):
    """A fault: replace (or, with None, leave out) one output, leaf or loss."""

    def fault(outcome: Outcome) -> Outcome:
        held = dict(getattr(outcome, part))
        held[name] = value(held[name]) if callable(value) else value
        return replace(outcome, **{part: {key: each for key, each in held.items() if each is not None}})

    return fault


def problems_of(path: Path) -> str:
    result = run_file(path)
    assert not result.passed
    return "\n".join(result.problems)


def test_a_right_adapter_passes_and_everything_is_compared(write_case, toy_adapter) -> None:
    result = run_file(write_case())
    assert result.problems == ()
    assert result.passed
    assert result.compared == 6
    assert 0 <= result.worst <= 1
    assert result.as_json()["passed"] is True


@pytest.mark.parametrize(
    ("part", "name", "value", "named"),
    [
        ("outputs", "y", lambda y: y + 1e-3, r"out\.y is off by \d"),
        ("outputs", "y", None, r"the adapter left out out\.y"),
        ("outputs", "z", torch.zeros(1), r"gave out\.z, which the file does not have"),
        ("outputs", "y", lambda y: y.where(y > 0, math.nan), r"out\.y has \d+ NaN"),
        ("outputs", "y", lambda y: y.where(y > 0, math.inf), r"out\.y is off by inf"),
        ("outputs", "y", lambda y: y.transpose(1, 2), r"out\.y has shape \(2, 5, 7\), the reference's is \(2, 7, 5\)"),
        ("outputs", "y", lambda y: y.detach().round().long(), r"out\.y is of type torch\.int64"),
        ("outputs", "y", lambda y: y.detach(), "does not depend on anything that requires gradients"),
        ("outputs", "tokens", lambda tokens: tokens + 1, r"out\.tokens differs in 2 of 2 elements"),
        ("outputs", "tokens", lambda tokens: tokens.int(), r"out\.tokens is of type torch\.int32"),
        ("outputs", "tokens", lambda tokens: tokens.float(), r"out\.tokens is of type torch\.float32"),
        ("outputs", "tokens", lambda tokens: tokens.tolist(), r"out\.tokens must be a tensor, got list"),
        ("leaves", "weight", None, r"no leaf was given for grad\.weight"),
        ("leaves", "in.x", None, r"no leaf was given for grad\.in\.x"),
        ("leaves", "weight", lambda weight: weight.detach(), r"the leaf of grad\.weight does not require gradients"),
        ("leaves", "weight", lambda weight: weight.clone(), r"grad\.weight is off"),
        ("leaves", "bias", lambda bias: [bias, bias], r"grad\.bias has shape \(10,\)"),
        ("losses", "square", None, "the adapter left out the loss 'square'"),
        ("losses", "square", lambda loss: loss / 2, r"grad\.square\.weight is off"),
        ("losses", "square", lambda loss: loss.expand(3), "the loss 'square' must be a scalar"),
        ("losses", "", torch.ones((), requires_grad=True), r"losses\[''\]"),
    ],
)
def test_a_fault_of_the_adapter_fails_the_case(write_case, faulty, part, name, value, named) -> None:
    faulty(change(part, name, value))
    result = run_file(write_case())
    assert not result.passed
    assert any(re.search(named, problem) for problem in result.problems), result.problems


def test_one_wrong_element_is_found_and_shown(write_case, toy_tensors, toy_adapter) -> None:
    y = toy_tensors["out.y"].clone()
    y[1, 6, 4] += 0.5
    path = write_case(tensors={**toy_tensors, "out.y": y})
    assert "out.y is off by" in problems_of(path)
    assert "at (1, 6, 4)" in problems_of(path)


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({"state.scale": torch.ones(5)}, "unknown keys: scale"),
        ({"state.bias": None, "grad.bias": None}, "missing keys: bias"),
        ({"in.mask": torch.ones(2, 7)}, "the adapter never used in.mask"),
        ({"out.extra": torch.ones(2)}, "'out.extra' is not among the outputs"),
        ({"other": torch.ones(2)}, "'other'"),
        ({"out.y": torch.full((2, 7, 5), math.nan)}, "out.y is NaN in the file"),
        ({"grad.in.x": torch.full((2, 7, 3), math.nan)}, "grad.in.x is NaN in the file"),
        ({"grad.square.bias": torch.zeros(5)}, "grad.square.bias is off"),
        ({"grad.extra.bias": torch.zeros(5)}, "the adapter left out the loss 'extra'"),
    ],
)
def test_a_fault_of_the_file_fails_the_case(write_case, toy_adapter, tensors, named) -> None:
    assert named in problems_of(write_case(tensors=tensors))


def test_an_unknown_entry_fails_and_the_nearest_is_named(write_case, toy_adapter) -> None:
    path = write_case(reference={"repo": "r", "commit": "c", "entry": "toy/layers.py:Linaer"})
    shown = problems_of(path)
    assert "no adapter" in shown
    assert "'toy/layers.py:Linaer'" in shown
    assert "nearest is 'toy/layers.py:Linear'" in shown


@pytest.mark.parametrize("system", ["nosuchsystem", "not a name", "../x"])
def test_a_system_without_adapters_fails(write_case, system) -> None:
    assert "no adapter" in problems_of(write_case(system=system))


def test_an_exception_fails_the_case_and_says_where(write_case, use_adapter) -> None:
    def raises(case: Case) -> Outcome:
        raise RuntimeError("two\nlines")

    use_adapter(raises)
    assert "RuntimeError: two lines (test_parity_runner.py:" in problems_of(write_case())


def test_gradients_of_out_loss(write_case, use_adapter, toy_outcome, toy_tensors) -> None:
    right = toy_tensors
    changed = {**right, "out.loss": right["out.y"].square().sum(), "grad.weight": right["grad.square.weight"]}
    changed |= dict.fromkeys(["grad.bias", "grad.in.x", "grad.square.weight"])
    path = write_case(tensors=changed, gradients_of="out.loss", outputs=["y", "tokens", "loss"])

    def with_loss(case: Case) -> Outcome:
        outcome = toy_outcome(case)
        return replace(outcome, outputs={**outcome.outputs, "loss": outcome.losses["square"]})

    use_adapter(with_loss)
    assert run_file(path).problems == ()


def test_gradients_of_the_notes_need_the_adapters_loss(write_case, use_adapter, toy_outcome, toy_tensors) -> None:
    gone = dict.fromkeys(["grad.bias", "grad.in.x", "grad.square.weight"])
    path = write_case(
        tensors={**toy_tensors, "grad.weight": toy_tensors["grad.square.weight"], **gone}, gradients_of="notes"
    )
    given = {"": True}

    def with_loss(case: Case) -> Outcome:
        outcome = toy_outcome(case)
        return replace(outcome, losses={"": outcome.losses["square"]} if given[""] else {})

    use_adapter(with_loss)
    assert run_file(path).problems == ()
    given[""] = False
    assert "losses['']" in problems_of(path)


# --------------------------------------------------------------------------------------------------- comparing


def test_error_over_tolerance_is_the_formula() -> None:
    ours, expected = torch.randn(5, 7), torch.randn(5, 7)
    error, problem = compare_tensors("out.y", ours, expected, rtol=0.1, atol=0.01)
    worst = max(
        abs(a - b) / (0.01 + 0.1 * abs(b))
        for a, b in zip(ours.flatten().tolist(), expected.flatten().tolist(), strict=True)
    )
    assert error == pytest.approx(worst, rel=1e-6)
    assert "off by" in problem


@pytest.mark.parametrize(
    ("ours", "expected", "passes"),
    [
        (torch.zeros(0, 3), torch.zeros(0, 3), True),
        (torch.zeros(2), torch.zeros(2), True),
        (torch.tensor([1e-9, 0.0]), torch.zeros(2), False),
        (torch.tensor([math.inf]), torch.tensor([math.inf]), True),
        (torch.tensor([1.0]), torch.tensor([math.inf]), False),
        (torch.tensor([-math.inf]), torch.tensor([math.inf]), False),
        (torch.tensor([math.inf]), torch.tensor([1.0]), False),
        (torch.tensor([True, False]), torch.tensor([True, False]), True),
        (torch.tensor([True, False]), torch.tensor([True, True]), False),
        (torch.tensor([1.0], dtype=torch.float64), torch.tensor([1.0]), True),
    ],
)
def test_edges_of_the_comparison_without_tolerance(ours, expected, passes) -> None:
    error, problem = compare_tensors("out.y", ours, expected, rtol=0.0, atol=0.0)
    assert (problem == "") is passes
    assert (error == 0.0) is passes


# --------------------------------------------------------------------------------------------------- verify


def test_verify_runs_all_cases_and_a_failing_one_stops_nothing(write_case, toy_adapter) -> None:
    folder = write_case(case="a").parent
    write_case(case="b", tensors={"out.y": torch.zeros(2, 7, 5)})
    write_case(case="c")
    (folder / "c.safetensors").unlink()
    write_case(case="d")
    seen = []
    report = verify(folder, on_result=lambda result, total: seen.append((result.name, total)))
    assert seen == [("a", 4), ("b", 4), ("c", 4), ("d", 4)]
    assert (report.passed, report.failed, report.ok) == (2, 2, False)
    assert [result.name for result in report.results if not result.passed] == ["b", "c"]
    assert {name: len(results) for name, results in report.by_system().items()} == {"toy": 4}


def test_verify_is_ok_only_with_at_least_one_case(tmp_path, write_case, toy_adapter) -> None:
    (tmp_path / "empty").mkdir()
    assert not verify(tmp_path / "empty").ok
    assert verify(write_case().parent).ok


def test_verify_keeps_to_the_systems_asked_for(write_case, toy_adapter) -> None:
    folder = write_case(case="a").parent
    write_case(case="b", system="other")
    assert [result.name for result in verify(folder, ["toy"]).results] == ["a"]
    with pytest.raises(UserError, match="no case of the system 'third'"):
        verify(folder, ["toy", "third"])


def test_verify_needs_a_folder(tmp_path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        verify(tmp_path / "nowhere")


def test_random_numbers_are_the_same_for_each_case(write_case, use_adapter, toy_outcome) -> None:
    drawn = []

    def draws(case: Case) -> Outcome:
        drawn.append(torch.rand(3).tolist())
        return toy_outcome(case)

    use_adapter(draws)
    path = write_case()
    run_file(path)
    torch.rand(11)
    run_file(path)
    assert drawn[0] == drawn[1]


# --------------------------------------------------------------------------------------------------- rules by name


def renamed(y_name: str, tolerance: dict) -> dict:
    """Fields of a case whose first output has another name, and whose gradients are left out."""
    return {"outputs": [y_name, "tokens"], "tolerance": {"rtol": 1e-6, "atol": 0.0, **tolerance}, "gradients_of": None}


@pytest.mark.parametrize(
    ("tolerance", "passes"),
    [
        ({}, False),
        ({"energy_rtol": 0.02}, True),
        ({"energy_rtol": 0.005}, False),
        ({"energy_flat_rtol": 0.02, "energy_rtol": 0.005}, True),
        ({"energy_rtol": 0.02, "flat_energy_rtol": 0.005}, False),
        ({"energy_unfused_rtol": 0.02}, False),
        ({"energies_rtol": 0.02}, False),
        ({"energy": "not checked"}, True),
        ({"energy_unfused": "not checked"}, False),
    ],
    ids=str,
)
def test_the_rule_with_the_most_words_of_the_name_holds(
    write_case, toy_tensors, use_adapter, tolerance: dict, passes: bool
) -> None:
    """The output is off by 1 %."""
    gradients = {name: None for name in toy_tensors if name.startswith("grad.")}
    tensors = {"out.y": None, "out.flat.energy": toy_tensors["out.y"], **gradients, "in.loss_weight": None}
    path = write_case(tensors=tensors, **renamed("flat.energy", tolerance))

    def adapter(case: Case) -> Outcome:
        assert len(case.state["weight"]) == len(case.state["bias"]) == 5
        assert case.inputs["x"].shape[-1] == 3
        return Outcome(outputs={"flat.energy": case.expected["flat.energy"] * 1.01, "tokens": torch.tensor([7, 7])})

    use_adapter(adapter)
    result = run_file(path)
    assert result.passed == passes, result.problems
    left_out = "not checked" in tolerance.values() and passes
    assert result.unchecked == (("out.flat.energy",) if left_out else ())
    assert result.as_json()["not_checked"] == list(result.unchecked)
    assert result.compared == (1 if left_out else 2)


def test_gradients_are_compared_even_where_outputs_are_left_out(write_case, toy_adapter) -> None:
    result = run_file(write_case(tolerance={"rtol": 1e-4, "atol": 1e-5, "y": "not checked", "tokens": "not checked"}))
    assert sorted(result.unchecked) == ["out.tokens", "out.y"]
    # gradients have no rules by name
    assert result.compared == 4
