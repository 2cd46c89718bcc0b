"""Parts of light networks: shapes, order of operations, starts, and what they refuse."""

from __future__ import annotations

import backbones
import pytest
import torch
from torch import nn

from regard.layers.conv_norm import fold_norms
from regard.layers.light_backbone import (
    ConvFeedForward,
    ConvStem,
    DepthwiseFeedForward,
    DistilledHead,
    PatchMerging,
    StageTransition,
    gate_width,
)
from regard.mixers.channel.squeeze_excitation import SqueezeExcitation


@pytest.mark.parametrize(("patch_size", "widths"), [(16, [2, 4, 8, 16]), (4, [8, 16]), (2, [16])])
def test_stem_halves_and_doubles(patch_size: int, widths: list[int]) -> None:
    stem = backbones.randomised(ConvStem(3, 16, patch_size=patch_size)).eval()
    assert [layer.conv.out_channels for layer in stem.layers] == widths
    x = torch.randn(2, 3, 37, 19)
    expected = x
    for number, layer in enumerate(stem.layers):
        expected = layer.norm(layer.conv(expected))
        expected = expected if number == len(widths) - 1 else expected.clamp(min=0)
    y = stem(x)
    assert tuple(y.shape) == (2, 16, -(-37 // patch_size), -(-19 // patch_size))
    torch.testing.assert_close(y, expected)
    assert (y < 0).any()


@pytest.mark.parametrize(
    ("channels", "patch_size", "message"),
    [
        (20, 16, "multiple of 8, got 20"),
        (0, 16, "multiple of 8, got 0"),
        (16, 12, "power of two from 2 on, got 12"),
        (16, 1, "power of two from 2 on, got 1"),
    ],
)
def test_stem_refuses(channels: int, patch_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvStem(3, channels, patch_size=patch_size)


def test_perceptron_sees_positions_alone_and_starts_from_zero() -> None:
    layer = ConvFeedForward(5, 11)
    assert (layer(torch.randn(2, 5, 3, 4)) == 0).all()
    layer = backbones.randomised(layer).eval()
    x = torch.randn(2, 5, 3, 4)
    inner = layer.up_proj(x).clamp(min=0)
    torch.testing.assert_close(layer(x), layer.down_proj(inner))
    torch.testing.assert_close(layer(x)[..., 1:2, 2:3], layer(x[..., 1:2, 2:3]))


@pytest.mark.parametrize(("initial_scale", "same"), [(0.0, True), (1.0, False)])
def test_block_adds_neighbours_then_channels(initial_scale: float, same: bool) -> None:
    block = DepthwiseFeedForward(5, hidden=10, initial_scale=initial_scale).eval()
    x = torch.randn(2, 5, 4, 7)
    assert torch.equal(block(x), x) is same
    block = backbones.randomised(block)
    inner = x + block.position.branch(x)
    torch.testing.assert_close(block(x), inner + block.mlp(inner))


def test_branches_are_dropped_together_per_sample() -> None:
    block = backbones.randomised(DepthwiseFeedForward(5, hidden=10, initial_scale=1.0, drop_path=0.5)).train()
    x = torch.randn(64, 5, 2, 3)
    same = (block(x) == x).flatten(1).all(dim=1).float().mean()
    assert 0.1 < float(same) < 0.45


def test_merging_widens_halves_gates_and_narrows() -> None:
    gate = SqueezeExcitation(20, hidden=gate_width(5), bias=True)
    merging = backbones.randomised(PatchMerging(5, 9, gate=gate)).eval()
    x = torch.randn(2, 5, 7, 4)
    inner = merging.depthwise(merging.up_proj(x).clamp(min=0)).clamp(min=0)
    pooled = inner.mean(dim=(2, 3))
    squeezed = (pooled @ gate.down_proj.weight.T + gate.down_proj.bias).clamp(min=0)
    opened = torch.sigmoid(squeezed @ gate.up_proj.weight.T + gate.up_proj.bias)
    y = merging(x)
    assert y.shape == (2, 9, 4, 2)
    torch.testing.assert_close(y, merging.down_proj(inner * opened[:, :, None, None]))


@pytest.mark.parametrize(("channels", "width"), [(1, 8), (11, 8), (12, 16), (16, 16), (224, 224), (308, 312)])
def test_gates_are_multiples_of_eight_wide(channels: int, width: int) -> None:
    assert gate_width(channels) == width


def test_transition_is_a_block_a_merging_and_a_block() -> None:
    gate = SqueezeExcitation(20, hidden=8, bias=True)
    transition = backbones.randomised(StageTransition(5, 9, mlp_ratio=2.0, gate=gate)).eval()
    x = torch.randn(2, 5, 7, 4)
    expected = transition.after(transition.merging(transition.before(x)))
    torch.testing.assert_close(transition(x), expected)
    assert transition.before.mlp.up_proj.conv.out_channels == 10
    assert transition.after.mlp.up_proj.conv.out_channels == 18
    fold_norms(transition)
    torch.testing.assert_close(transition(x), expected, rtol=1e-4, atol=1e-5)


def test_two_heads_are_averaged_in_evaluation_alone() -> None:
    head = backbones.randomised(DistilledHead(7, 3))
    x = torch.randn(5, 7)
    labels, teacher = head.train()(x)
    assert labels.shape == teacher.shape == (5, 3)
    y = head.eval()(x)
    torch.testing.assert_close(y, (head.labels(x) + head.teacher(x)) / 2)
    folded = head.folded()
    assert isinstance(folded, nn.Linear)
    torch.testing.assert_close(folded(x), y, rtol=1e-4, atol=1e-5)
