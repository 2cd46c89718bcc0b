"""GEGLU against its formula, its dropout, and ill arguments."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from regard.layers.geglu import GEGLU


@pytest.mark.parametrize("bias", [False, True])
def test_is_the_formula(bias: bool) -> None:
    module = GEGLU(5, 7, bias=bias).double()
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    a, b = module.gate_proj(x), module.up_proj(x)
    gate = 0.5 * a * (1 + torch.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))
    torch.testing.assert_close(module(x), module.down_proj(gate * b))
    assert (module.down_proj.bias is not None) == bias


def test_dropout_is_off_in_evaluation() -> None:
    module, plain = GEGLU(5, 70, dropout=0.5), GEGLU(5, 70)
    plain.load_state_dict(module.state_dict())
    x = torch.randn(4, 5)
    assert torch.equal(module.eval()(x), plain(x))
    assert not torch.equal(module.train()(x), plain(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0, "hidden": 3}, r"widths of a gated unit must be positive, got 0 and 3 inside"),
        ({"dim": 3, "hidden": -1}, r"widths of a gated unit must be positive, got 3 and -1 inside"),
        ({"dim": 3, "hidden": 3, "dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_ill_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GEGLU(**options)
