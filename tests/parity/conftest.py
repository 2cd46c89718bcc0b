"""A tiny case of a tiny system, and its adapter: a linear layer, with gradients worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from regard.contract import load_strictly
from regard.parity import adapters
from regard.parity.adapters import Case, Outcome, adapter

ENTRY = "toy/layers.py:Linear"

WriteCase = Callable[..., Path]


def _tensors() -> dict[str, Tensor]:
    """`y = x W' + b`; the gradients of `sum(y * loss_weight)` and of the loss `square`, `sum(y^2)`."""
    x, weight, bias = torch.randn(2, 7, 3), torch.randn(5, 3), torch.randn(5)
    loss_weight = torch.randn(2, 7, 5)
    y = torch.einsum("bni,oi->bno", x, weight) + bias
    return {
        "state.weight": weight,
        "state.bias": bias,
        "in.x": x,
        "in.loss_weight": loss_weight,
        "out.y": y,
        "out.tokens": torch.tensor([7, 7]),
        "grad.weight": torch.einsum("bno,bni->oi", loss_weight, x),
        "grad.bias": loss_weight.sum(dim=(0, 1)),
        "grad.in.x": torch.einsum("bno,oi->bni", loss_weight, weight),
        "grad.square.weight": 2 * torch.einsum("bno,bni->oi", y, x),
    }


def _description() -> dict[str, Any]:
    return {
        "system": "toy",
        "case": "linear",
        "reference": {"repo": "example.org/toy", "commit": "abc", "entry": ENTRY},
        "config": {"inputs": 3, "outputs": 5},
        "call": {"inputs": ["x"], "kwargs": {}},
        "outputs": ["y", "tokens"],
        "mode": "eval",
        "tolerance": {"rtol": 1e-4, "atol": 1e-5},
        "notes": "grad.square.* is for sum(y^2)",
        "gradients_of": "weighted",
    }


@pytest.fixture
def write_case(tmp_path: Path) -> WriteCase:
    """Write the toy case, with changes; a field or tensor given as None is left out. Returns the JSON's path."""

    def write(*, tensors: Mapping[str, Tensor | None] | None = None, case: str = "linear", **fields: Any) -> Path:
        described = {**_description(), "case": case, **fields}
        held = {**_tensors(), **(tensors or {})}
        path = tmp_path / "cases" / f"{case}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({name: value for name, value in described.items() if value is not None}))
        kept = {name: tensor.contiguous() for name, tensor in held.items() if tensor is not None}
        save_file(kept, path.with_suffix(".safetensors"))
        return path

    return write


def _outcome(case: Case) -> Outcome:
    layer = nn.Linear(case.config["inputs"], case.config["outputs"])
    load_strictly(layer, case.state)
    y = layer(case.inputs["x"])
    return Outcome(
        outputs={"y": y, "tokens": torch.full((y.shape[0],), y.shape[1])},
        leaves={"weight": layer.weight, "bias": layer.bias, **case.input_leaves},
        losses={"square": y.square().sum()},
    )


@pytest.fixture
def use_adapter(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Case], Outcome]], None]:
    """Register an adapter for the toy system, for one test."""
    monkeypatch.setattr(adapters, "_adapters", {})

    def use(function: Callable[[Case], Outcome]) -> None:
        adapter(ENTRY, system="toy")(function)

    return use


@pytest.fixture
def toy_adapter(use_adapter: Callable[[Callable[[Case], Outcome]], None]) -> None:
    use_adapter(_outcome)


@pytest.fixture
def toy_outcome() -> Callable[[Case], Outcome]:
    return _outcome


@pytest.fixture
def toy_tensors() -> dict[str, Tensor]:
    return _tensors()
