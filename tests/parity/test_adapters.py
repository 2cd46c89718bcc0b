"""Adapters are found by the reference's entry, and leaves may be laid out differently from the reference's."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from regard.parity import adapters
from regard.parity.adapters import (
    AdapterError,
    Outcome,
    Reshaped,
    Sliced,
    Stacked,
    adapter,
    assemble,
    entries,
    find_adapter,
    parts_of,
)
from regard.parity.runner import run_file


@pytest.fixture(autouse=True)
def _registry_of_its_own(monkeypatch) -> None:
    monkeypatch.setattr(adapters, "_adapters", {})


def test_the_system_is_the_modules_name_by_default() -> None:
    @adapter("a.py:f")
    def f(case) -> Outcome:
        return Outcome(outputs={})

    assert find_adapter("test_adapters", "a.py:f") is f


def test_an_entry_has_one_adapter_per_system() -> None:
    def f(case) -> Outcome:
        return Outcome(outputs={})

    def g(case) -> Outcome:
        return Outcome(outputs={})

    adapter("a.py:f", system="one")(f)
    adapter("a.py:f", system="two")(g)
    # importing a module anew is no second adapter
    adapter("a.py:f", system="one")(f)
    with pytest.raises(ValueError, match=r"one has two adapters for 'a\.py:f'"):
        adapter("a.py:f", system="one")(g)
    assert entries("one") == ["a.py:f"]


def test_a_missing_module_is_no_adapter() -> None:
    with pytest.raises(AdapterError, match=r"there is no module regard\.parity\.nosuchsystem"):
        entries("nosuchsystem")


def test_a_module_that_fails_to_import_is_not_taken_for_a_missing_one(monkeypatch, tmp_path) -> None:
    (tmp_path / "broken.py").write_text("import a_module_that_nobody_has\n")
    import regard.parity

    monkeypatch.setattr(regard.parity, "__path__", [*regard.parity.__path__, str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match="a_module_that_nobody_has"):
        find_adapter("broken", "x")
    assert "regard.parity.broken" not in sys.modules


# --------------------------------------------------------------------------------------------------- leaves


def test_stacked_reshaped_and_sliced_leaves_give_the_references_layout() -> None:
    q, k, v, big = (torch.randn(shape) for shape in [(3, 5), (2, 5), (7, 5), (11, 5)])
    assert [tensor.shape for tensor in parts_of(Stacked([q, Stacked([k, v])]))] == [q.shape, k.shape, v.shape]
    assert torch.equal(assemble(Stacked([q, Stacked([k, v])]), [q, k, v]), torch.cat([q, k, v]))
    assert torch.equal(assemble(Stacked([q.T, k.T], dim=1), [q.T, k.T]), torch.cat([q.T, k.T], dim=1))
    assert torch.equal(assemble(Reshaped(q, (5, 3)), [q]), q.reshape(5, 3))
    assert torch.equal(assemble(Sliced(big, slice(2, 7)), [big]), big[2:7])
    mixed = Stacked([Sliced(big, slice(0, 2)), Reshaped(v, (7, 5)), q])
    assert torch.equal(assemble(mixed, [big, v, q]), torch.cat([big[:2], v, q]))


def test_stacked_needs_a_leaf() -> None:
    with pytest.raises(ValueError, match="at least one leaf"):
        Stacked([])


@pytest.mark.parametrize("layout", ["stacked", "list", "sliced"])
def test_a_case_passes_with_parameters_laid_out_differently(write_case, layout) -> None:
    """The toy layer's (5, 3) weight as two layers of 2 and 3 rows, or as rows 1..6 of a larger one."""

    def outcome(case) -> Outcome:
        weight, bias, x = case.state["weight"], case.state["bias"], case.inputs["x"]
        if layout == "sliced":
            large = nn.Parameter(torch.cat([torch.zeros(1, 3), weight, torch.zeros(2, 3)]))
            y, leaf = x @ large[1:6].T + bias, Sliced(large, slice(1, 6))
        else:
            parts = [nn.Parameter(weight[:2].clone()), nn.Parameter(weight[2:].clone())]
            y = torch.cat([x @ part.T for part in parts], dim=-1) + bias
            leaf = Stacked(parts) if layout == "stacked" else parts
        outputs = {"y": y, "tokens": torch.tensor([7, 7])}
        return Outcome(outputs=outputs, leaves={"weight": leaf, "in.x": x}, losses={"square": y.square().sum()})

    adapter("toy/layers.py:Linear", system="toy")(outcome)
    result = run_file(write_case(tensors={"grad.bias": None}))
    assert result.problems == ()


def test_a_parameter_that_the_loss_does_not_reach_has_the_gradient_zero(write_case, toy_outcome) -> None:
    idle = torch.zeros(11)

    def passes(gradient) -> bool:
        return run_file(write_case(tensors={"in.idle": idle, "grad.in.idle": gradient})).passed

    def with_input(case) -> Outcome:
        right = toy_outcome(case)
        return Outcome(
            outputs=right.outputs, leaves={**right.leaves, "in.idle": case.inputs["idle"]}, losses=right.losses
        )

    adapter("toy/layers.py:Linear", system="toy")(with_input)
    assert passes(torch.zeros(11))
    assert not passes(torch.ones(11))
