"""SimpleRMSNorm against its formula."""

from __future__ import annotations

import math

import pytest
import torch

from regard.ops.norms import simple_rms_norm, simple_rms_norm_reference


def test_simple_rms_norm_is_the_formula() -> None:
    x = torch.randn(3, 11)
    for ours, row in zip(simple_rms_norm(x), x, strict=True):
        root = math.sqrt(sum(float(value) ** 2 for value in row) / 11 + 1e-6)
        torch.testing.assert_close(ours, row / root)
    assert simple_rms_norm(torch.zeros(2, 5)).abs().max() == 0
    assert simple_rms_norm(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("size", [1e-12, 1e-3, 1.0, 1e12])
def test_values_and_gradients_are_those_of_the_plain_form(size: float) -> None:
    x = (size * torch.randn(2, 3, 13, dtype=torch.float64)).requires_grad_()
    weight = torch.randn(2, 3, 13, dtype=torch.float64)
    results = [
        (y, torch.autograd.grad((y * weight).sum(), x)[0])
        for y in (simple_rms_norm(x, eps=1e-5), simple_rms_norm_reference(x, eps=1e-5))
    ]
    for ours, expected in zip(*results, strict=True):
        scale = float(expected.detach().abs().max())
        torch.testing.assert_close(ours / scale, expected / scale)
    assert torch.autograd.gradcheck(simple_rms_norm, (torch.randn(2, 7, dtype=torch.float64, requires_grad=True),))


def test_zero_rows_have_finite_gradients() -> None:
    x = torch.zeros(2, 5, requires_grad=True)
    weight = torch.randn(2, 5)
    (simple_rms_norm(x) * weight).sum().backward()
    torch.testing.assert_close(x.grad, weight / math.sqrt(1e-6))


def test_narrow_inputs_are_normalised_in_float32() -> None:
    x = (300 * torch.randn(3, 1031)).half()
    # squares of 300 leave the range of float16
    torch.testing.assert_close(simple_rms_norm(x).float(), simple_rms_norm_reference(x.float()), rtol=1e-3, atol=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(simple_rms_norm(x.float()), simple_rms_norm_reference(x.float()))
