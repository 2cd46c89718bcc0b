"""Linear maps and layer norms in float32, whatever their parameters and autocast say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regard.layers.wide_precision import wide_layer_norm, wide_linear


@pytest.mark.parametrize("bias", [False, True])
def test_they_are_the_modules_in_float32(bias: bool) -> None:
    linear, norm = nn.Linear(7, 5, bias=bias).bfloat16(), nn.LayerNorm(7, bias=bias).bfloat16()
    x = torch.randn(3, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = wide_linear(x, linear), wide_layer_norm(x, norm)
    torch.testing.assert_close(found[0], linear.float()(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(found[1], norm.float()(x), rtol=0, atol=1e-6)


def test_float64_stays() -> None:
    assert wide_linear(torch.randn(2, 7, dtype=torch.float64), nn.Linear(7, 5)).dtype == torch.float64
