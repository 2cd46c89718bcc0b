"""The bottleneck around a spatial operator: its formula, its shortcut, its gate."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from regard.layers.spatial_bottleneck import SpatialBottleneck
from regard.mixers.channel.squeeze_excitation import SqueezeExcitation


def normed(norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    mean, scale = norm.running_mean, norm.weight / (norm.running_var + norm.eps).sqrt()
    return (x - mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]


def scattered(block: SpatialBottleneck) -> SpatialBottleneck:
    with torch.no_grad():
        for name, value in block.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5 if "var" in name else torch.randn_like(value))
    return block.eval()


@pytest.mark.parametrize(("activation", "act"), [("relu", F.relu), ("silu", F.silu)])
def test_is_the_formula(activation: str, act: nn.Module) -> None:
    block = SpatialBottleneck(
        5,
        width=4,
        spatial=nn.Conv2d(4, 8, 3, stride=2, padding=1),
        spatial_channels=8,
        out_channels=7,
        stride=2,
        gate=SqueezeExcitation(8, hidden=3, bias=True),
        activation=activation,
    )
    block = scattered(block.double())
    x = torch.randn(2, 5, 7, 3, dtype=torch.float64)
    inner = act(normed(block.reduce.norm, F.conv2d(x, block.reduce.conv.weight)))
    inner = act(normed(block.spatial_norm, block.spatial(inner)))
    hidden = F.relu(F.linear(inner.mean(dim=(2, 3)), block.gate.down_proj.weight, block.gate.down_proj.bias))
    gate = F.linear(hidden, block.gate.up_proj.weight, block.gate.up_proj.bias).sigmoid()[:, :, None, None]
    branch = normed(block.expand.norm, F.conv2d(inner * gate, block.expand.conv.weight))
    shortcut = normed(block.shortcut.norm, F.conv2d(x, block.shortcut.conv.weight, stride=2))
    torch.testing.assert_close(block(x), act(branch + shortcut))


def test_the_shortcut_is_the_input_where_shapes_are_equal() -> None:
    block = scattered(SpatialBottleneck(5, width=4, spatial=nn.Identity(), spatial_channels=4, out_channels=5))
    assert block.shortcut is None
    with torch.no_grad():
        block.expand.norm.weight.zero_()
        block.expand.norm.bias.zero_()
    x = torch.randn(2, 5, 3, 4)
    before = x.clone()
    torch.testing.assert_close(block(x), x.relu())
    assert torch.equal(x, before)


@pytest.mark.parametrize(("channels", "stride"), [(6, 1), (5, 2)])
def test_the_shortcut_is_projected_elsewhere(channels: int, stride: int) -> None:
    block = SpatialBottleneck(
        5, width=4, spatial=nn.Identity(), spatial_channels=4, out_channels=channels, stride=stride
    )
    assert block.shortcut.conv.weight.shape == (channels, 5, 1, 1)
    assert block.shortcut.conv.stride == (stride, stride)


def test_the_branch_is_dropped_in_training() -> None:
    block = SpatialBottleneck(
        5, width=4, spatial=nn.Identity(), spatial_channels=4, out_channels=5, drop_path=0.5
    ).train()
    x = torch.randn(64, 5, 3, 4)
    y = block(x)
    dropped = (y == x.relu()).flatten(1).all(dim=1)
    assert 10 < int(dropped.sum()) < 54


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "gelu"}, "activation must be one of relu, silu, got 'gelu'"),
        ({"drop_path": 1.0}, r"drop_path must be in \[0, 1\), got 1.0"),
    ],
)
def test_ill_options_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpatialBottleneck(5, width=4, spatial=nn.Identity(), spatial_channels=4, out_channels=5, **changes)
