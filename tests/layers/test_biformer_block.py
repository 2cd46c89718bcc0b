"""BiFormer's block: its order of norms, additions and factors, and the convolution inside its perceptron."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, gelu

from regard.layers.biformer_block import BiFormerBlock, ConvolutionalFeedForward


class Tripled(nn.Module):
    """A mixer whose output is easily told."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * x


def over_channels(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return norm(x.movedim(1, -1)).movedim(-1, 1)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("position", [True, False])
def test_branches_are_added_in_order(norm_first: bool, scale: float | None, position: bool) -> None:
    options = {"conditional_position": position, "norm_first": norm_first, "layer_scale": scale}
    block = BiFormerBlock(Tripled(), channels=4, hidden=7, **options).double()
    x = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    factor = 1 if scale is None else scale
    y = x
    if block.position is not None:
        y = y + conv2d(x, block.position.conv.weight, block.position.conv.bias, padding=1, groups=4)
    if norm_first:
        y = y + factor * 3 * over_channels(block.mixer_norm, y)
        y = y + factor * over_channels(block.mlp, over_channels(block.mlp_norm, y))
    else:
        y = over_channels(block.mixer_norm, y + factor * 3 * y)
        y = over_channels(block.mlp_norm, y + factor * over_channels(block.mlp, y))
    torch.testing.assert_close(block(x), y)
    assert (block.position is None) is not position
    assert {name for name, _ in block.named_parameters() if name.endswith("_scale")} == (
        set() if scale is None else {"mixer_scale", "mlp_scale"}
    )


def test_perceptron_sees_neighbours_inside() -> None:
    mlp = ConvolutionalFeedForward(3, 5).double()
    x = torch.randn(1, 4, 6, 3, dtype=torch.float64)
    inner = (x @ mlp.up_proj.weight.T + mlp.up_proj.bias).permute(0, 3, 1, 2)
    inner = gelu(conv2d(inner, mlp.conv.weight, mlp.conv.bias, padding=1, groups=5)).permute(0, 2, 3, 1)
    torch.testing.assert_close(mlp(x), inner @ mlp.down_proj.weight.T + mlp.down_proj.bias)
    block = BiFormerBlock(Tripled(), channels=3, hidden=5, mlp_conv=True)
    assert isinstance(block.mlp, ConvolutionalFeedForward)
    assert block(torch.randn(2, 3, 1, 1)).shape == (2, 3, 1, 1)
