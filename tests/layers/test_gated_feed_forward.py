"""SGLU against its formula, number by number."""

from __future__ import annotations

import math

import pytest
import torch

from regard.layers.gated_feed_forward import SGLU


@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("bias", [False, True])
def test_is_the_formula(activation: str, bias: bool) -> None:
    layer = SGLU(5, 7, activation=activation, bias=bias).double()  # type: ignore[arg-type]
    x = torch.randn(2, 3, 5, dtype=torch.float64)

    def project(linear: torch.nn.Linear, row: list[float]) -> list[float]:
        added = linear.bias.tolist() if bias else [0.0] * linear.out_features
        products = ([w * value for w, value in zip(ws, row, strict=True)] for ws in linear.weight.tolist())
        return [sum(each) + b for each, b in zip(products, added, strict=True)]

    y = layer(x)
    for b in range(2):
        for n in range(3):
            row = x[b, n].tolist()
            gate, up = project(layer.gate_proj, row), project(layer.up_proj, row)
            gate = [g / (1 + math.exp(-g)) for g in gate] if activation == "silu" else gate
            expected = project(layer.down_proj, [g * u for g, u in zip(gate, up, strict=True)])
            assert y[b, n].tolist() == pytest.approx(expected, abs=1e-12)


def test_gradients_and_types() -> None:
    layer = SGLU(3, 5).double()
    assert torch.autograd.gradcheck(layer, (torch.randn(2, 3, dtype=torch.float64, requires_grad=True),))
    low = SGLU(31, 47).bfloat16()
    x = torch.randn(2, 31).bfloat16()
    expected = low.float()(x.float())
    y = low.bfloat16()(x)
    assert y.dtype == torch.bfloat16
    assert (y.float() - expected).norm() / expected.norm() < 0.02
    assert sum(parameter.numel() for parameter in SGLU(31, 47).parameters()) == 3 * 31 * 47


def test_ill_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="must be positive, got 5 and 0 inside"):
        SGLU(5, 0)
    with pytest.raises(ValueError, match="one of none, silu, got 'gelu'"):
        SGLU(5, 7, activation="gelu")  # type: ignore[arg-type]
