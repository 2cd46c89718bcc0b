"""SimpleRMSNorm against its formula."""

from __future__ import annotations

import math

import torch

from regard.ops.norms import simple_rms_norm


def test_simple_rms_norm_is_the_formula() -> None:
    x = torch.randn(3, 11)
    for ours, row in zip(simple_rms_norm(x), x, strict=True):
        root = math.sqrt(sum(float(value) ** 2 for value in row) / 11 + 1e-6)
        torch.testing.assert_close(ours, row / root)
    assert simple_rms_norm(torch.zeros(2, 5)).abs().max() == 0
    assert simple_rms_norm(x.bfloat16()).dtype == torch.bfloat16
