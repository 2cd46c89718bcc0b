"""Transformer-XL's biases against the formula, entry by entry."""

from __future__ import annotations

import math

import pytest
import torch

from regard.layers.sinusoid_bias import SinusoidBias
from regard.ops.absolute_positions import sinusoids


def test_products_are_the_formula() -> None:
    torch.manual_seed(3)
    bias = SinusoidBias(15, 3).double()
    with torch.no_grad():
        for parameter in bias.parameters():
            parameter.copy_(torch.randn_like(parameter))
    q, distance = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.arange(-5, 3)
    found = bias.products(q, distance)
    for h in range(3):
        for t, r in enumerate(distance.tolist()):
            wave = sinusoids(torch.tensor([[-r]]), 15)[0, 0].double()
            direction = (bias.r_proj.weight @ wave).view(3, 5)[h]
            wanted = (q[:, h] + bias.position_bias[h]) @ direction / math.sqrt(5)
            torch.testing.assert_close(found[:, h, :, t], wanted)
    torch.testing.assert_close(bias.content(q), q + bias.content_bias[None, :, None])


def test_heads_must_divide() -> None:
    with pytest.raises(ValueError, match="dim=10 and num_heads=3"):
        SinusoidBias(10, 3)
