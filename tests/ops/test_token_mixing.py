"""The linear map along tokens against loops, the transposing form, and PyTorch's checks of gradients."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from regard.ops.token_mixing import token_linear, token_linear_reference


def test_is_the_sum_over_tokens() -> None:
    x, weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 7, 3), (5, 7), (5,)))
    expected = torch.zeros(2, 5, 3, dtype=torch.float64)
    for row in range(2):
        for out in range(5):
            for channel in range(3):
                total = sum(float(weight[out, token] * x[row, token, channel]) for token in range(7))
                expected[row, out, channel] = total + float(bias[out])
    torch.testing.assert_close(token_linear(x, weight, bias), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(token_linear_reference(x, weight, bias), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tokens", [1, 31, 131])
def test_values_and_gradients_equal_the_transposing_form(tokens: int) -> None:
    leaves = [torch.randn(*shape, requires_grad=True) for shape in ((3, tokens, 11), (17, tokens), (17,))]
    upstream = torch.randn(3, 17, 11)
    results = []
    for form in (token_linear, token_linear_reference):
        y = form(*leaves)
        results.append([y, *torch.autograd.grad(y, leaves, upstream)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_gradcheck() -> None:
    shapes = ((2, 5, 3), (4, 5), (4,))
    assert gradcheck(token_linear, tuple(torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in shapes))


@pytest.mark.parametrize("scale", [1e-20, 1e15])
def test_extreme_values_stay_in_range(scale: float) -> None:
    x, weight, bias = scale * torch.randn(2, 13, 5), torch.randn(7, 13), torch.randn(7)
    expected = token_linear_reference(x.double(), weight.double(), bias.double())
    error = (token_linear(x, weight, bias).double() - expected).norm() / expected.norm()
    assert float(error) < 1e-5


def test_bfloat16_and_autocast() -> None:
    x, weight, bias = torch.randn(2, 13, 5), torch.randn(7, 13), torch.randn(7)
    exact = token_linear(x, weight, bias)
    narrow = token_linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # what comes out of one map goes into the next
        cast = token_linear(token_linear(x, weight, bias), weight.T.contiguous(), torch.zeros(13))
    assert narrow.dtype == cast.dtype == torch.bfloat16
    for found, expected in ((narrow, exact), (cast, token_linear(exact, weight.T, torch.zeros(13)))):
        assert float((found.float() - expected).norm() / expected.norm()) < 0.02
