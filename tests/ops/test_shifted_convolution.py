"""The convolution as shifted products, against loops and against the grouped convolution."""

from __future__ import annotations

import pytest
import torch

from regard.ops.causal_convolution import causal_convolution
from regard.ops.shifted_convolution import shifted_convolution


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("width", "tokens"), [(3, 7), (3, 1), (1, 5), (4, 2)])
def test_it_is_the_formula(shared: bool, width: int, tokens: int) -> None:
    x = torch.randn(2, tokens, 3, 5, dtype=torch.float64)
    weight = torch.randn(width, 1 if shared else 3, 5, dtype=torch.float64)
    bias = torch.randn(1 if shared else 3, 5, dtype=torch.float64)
    found = shifted_convolution(x, weight, bias)
    for t in range(tokens):
        wanted = bias.expand(2, 3, 5).clone()
        for j in range(width):
            if t - width + 1 + j >= 0:
                wanted = wanted + weight[j] * x[:, t - width + 1 + j]
        torch.testing.assert_close(found[:, t], wanted)


def test_it_is_the_grouped_convolution() -> None:
    x, weight = torch.randn(2, 11, 3, 5), torch.randn(3, 3, 5)
    before = torch.randn(2, 2, 3, 5)
    for past in (None, before):
        flat = None if past is None else past.flatten(2)
        expected = causal_convolution(x.flatten(2), weight.flatten(1), flat)
        torch.testing.assert_close(shifted_convolution(x, weight, before=past).flatten(2), expected)


def test_pieces_that_know_their_past_are_the_whole() -> None:
    x, weight, bias = torch.randn(2, 11, 3, 5), torch.randn(3, 1, 5), torch.randn(1, 5)
    whole = shifted_convolution(x, weight, bias)
    later = shifted_convolution(x[:, 4:], weight, bias, before=x[:, 2:4])
    torch.testing.assert_close(later, whole[:, 4:])


def test_gradients_and_bfloat16() -> None:
    leaves = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 5, 2, 3), (3, 1, 3), (1, 3))
    ]
    assert torch.autograd.gradcheck(shifted_convolution, leaves)
    x, weight, bias = (leaf.detach().bfloat16() for leaf in leaves)
    found = shifted_convolution(x, weight, bias)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, shifted_convolution(x.float(), weight.float(), bias.float()).bfloat16())


def test_a_past_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="3 tokens before the first, a filter of 3 needs 2"):
        shifted_convolution(torch.zeros(1, 4, 1, 2), torch.zeros(3, 1, 2), before=torch.zeros(1, 3, 1, 2))
