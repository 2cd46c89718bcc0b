"""RMSNorm with a weight against its formula."""

from __future__ import annotations

import pytest
import torch

from regard.layers.head_norm import HeadNorm


def test_is_the_formula() -> None:
    norm, x = HeadNorm(7).double(), torch.randn(2, 3, 7, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(7))
    for row in x.flatten(0, 1):
        mean_square = sum(float(value) ** 2 for value in row) / 7
        torch.testing.assert_close(norm(row), row / (mean_square + 1e-6) ** 0.5 * norm.weight)


def test_keeps_narrow_types_narrow() -> None:
    assert HeadNorm(4).bfloat16()(torch.randn(2, 4).bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert HeadNorm(4)(torch.randn(2, 4).bfloat16()).dtype == torch.bfloat16


def test_an_ill_width_is_named() -> None:
    with pytest.raises(ValueError, match="width must be positive, got 0"):
        HeadNorm(0)
