"""Depthwise causal convolution against loops."""

from __future__ import annotations

import pytest
import torch

from regard.ops.causal_convolution import causal_convolution


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("tokens", [1, 3, 11])
def test_is_the_loop_and_carries_on(width: int, tokens: int) -> None:
    x, weight = torch.randn(2, tokens, 5, dtype=torch.float64), torch.randn(width, 5, dtype=torch.float64)
    past = torch.randn(2, width - 1, 5, dtype=torch.float64)
    for before in (None, past):
        earlier = torch.zeros_like(past) if before is None else before
        padded = torch.cat((earlier, x), dim=1)
        expected = torch.zeros_like(x)
        for t in range(tokens):
            for place in range(width):
                expected[:, t] += weight[place] * padded[:, t + place]
        torch.testing.assert_close(causal_convolution(x, weight, before), expected)


def test_a_past_of_another_length_is_named() -> None:
    with pytest.raises(ValueError, match="2 tokens before the first, a filter of 4 needs 3"):
        causal_convolution(torch.randn(1, 5, 3), torch.randn(4, 3), torch.randn(1, 2, 3))
