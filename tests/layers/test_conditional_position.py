"""Positions from a depth-wise convolution."""

from __future__ import annotations

import pytest
import torch

from regard.layers.conditional_position import ConditionalPosition


def test_adds_a_weighted_neighbourhood_of_each_channel() -> None:
    layer = ConditionalPosition(2).double()
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64)
    y = layer(x)
    weight, bias = layer.conv.weight, layer.conv.bias
    inner = (weight[1, 0] * x[0, 1, 1:4, 0:3]).sum()
    torch.testing.assert_close(y[0, 1, 2, 1], x[0, 1, 2, 1] + inner + bias[1])
    corner = (weight[0, 0, 1:, 1:] * x[0, 0, :2, :2]).sum()
    torch.testing.assert_close(y[0, 0, 0, 0], x[0, 0, 0, 0] + corner + bias[0])


def test_the_kernel_is_odd() -> None:
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
        ConditionalPosition(2, kernel_size=4)
