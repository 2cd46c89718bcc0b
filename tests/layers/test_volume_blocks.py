"""Blocks and encoders of volumes against PyTorch's layers one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from regard.layers.volume_blocks import NormedConv, VolumeBlock, VolumeEncoder, initialise_as_keras


def layer_by_layer(part: NormedConv, x: Tensor) -> Tensor:
    y = F.conv3d(x, part.conv.weight, part.conv.bias, padding="same")
    if part.norm is not None:
        norm = part.norm
        shape = (1, -1, 1, 1, 1)
        y = (y - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + 1e-3).sqrt()
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    return y.clamp(min=0) if part.activation else y


def block_by_layers(block: VolumeBlock, x: Tensor) -> Tensor:
    return layer_by_layer(block.second, layer_by_layer(block.first, x))


def scattered(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(0.2 * torch.rand_like(tensor) if name.endswith("var") else 0.2 * torch.randn_like(tensor))
    return module


@pytest.mark.parametrize("norm", [0.01, None])
@pytest.mark.parametrize("pyramid", [True, False])
def test_levels_are_blocks_with_poolings_between(norm: float | None, pyramid: bool) -> None:
    encoder = VolumeEncoder(2, (3, 5, 7, 4), pyramid=pyramid, norm=norm, dropout=0.0, checkpointing=False)
    encoder = scattered(encoder).double().eval()
    x = torch.randn(2, 2, 24, 16, 8, dtype=torch.float64)
    expected, current = [], x
    for level, block in enumerate(encoder.blocks):
        if level:
            current = F.max_pool3d(current, 2)
        if pyramid and level in (1, 2):
            shrunken = F.avg_pool3d(x, 2**level)
            current = torch.cat([layer_by_layer(encoder.pyramid[level - 1], shrunken), current], dim=1)
        current = block_by_layers(block, current)
        expected.append(current)
    torch.testing.assert_close(encoder(x), expected)
    assert (encoder.pyramid is None) != pyramid


def test_dropout_takes_whole_channels_in_training_alone() -> None:
    block = VolumeBlock(2, 64, norm=None, dropout=0.5).train()
    x = torch.rand(1, 2, 3, 5, 4)
    torch.nn.init.ones_(block.second.conv.bias)
    y = block(x)
    gone = (y == 0).flatten(2).all(dim=2)
    assert 5 < int(gone.sum()) < 60
    block.eval()
    assert torch.equal(block(x), block(x))
    assert isinstance(VolumeBlock(2, 3, norm=None).dropout, torch.nn.Identity)


def test_begins_as_keras_does() -> None:
    block = VolumeBlock(3, 64, norm=0.01)
    initialise_as_keras(block)
    bound = (6 / (27 * (3 + 64))) ** 0.5
    largest = float(block.first.conv.weight.detach().abs().max())
    assert 0.99 * bound < largest <= bound
    assert not block.first.conv.bias.any()
    assert (block.first.norm.eps, block.first.norm.momentum) == (1e-3, 0.01)
