"""Residual blocks: where the mixer stands, the authors' names, and recomputation that leaves training as it is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from regard.layers.residual_blocks import BasicBlock, Bottleneck, InvertedResidual, add_mixed, recomputed
from regard.mixers.channel.eca import ECA


class Doubled(nn.Module):
    """A mixer that is no gate."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def test_mixer_stands_before_the_addition() -> None:
    block = BasicBlock(6, 6, mixer=ECA(6)).eval()
    x = torch.randn(2, 6, 7, 5)
    inner = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
    assert isinstance(block.mixer, ECA)
    torch.testing.assert_close(block(x), (block.mixer(inner) + x).relu())


def test_bottleneck_with_projection() -> None:
    block = Bottleneck(6, 5, stride=2, mixer=ECA(20)).eval()
    x = torch.randn(2, 6, 7, 5)
    inner = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu())).relu()
    inner = block.bn3(block.conv3(inner))
    assert block.conv2.stride == (2, 2)
    assert isinstance(block.mixer, ECA)
    assert block.downsample is not None
    torch.testing.assert_close(block(x), (block.mixer(inner) + block.downsample(x)).relu())


@pytest.mark.parametrize(("stride", "out_channels", "has_shortcut"), [(1, 6, True), (2, 6, False), (1, 10, False)])
def test_inverted_residual(stride: int, out_channels: int, has_shortcut: bool) -> None:
    mixer = ECA(out_channels, kernel_size=3)
    block = InvertedResidual(6, out_channels, stride=stride, expand_ratio=4, mixer=mixer).eval()
    x = torch.randn(2, 6, 7, 5)
    expected = mixer(block.conv(x)) + (x if has_shortcut else 0)
    torch.testing.assert_close(block(x), expected)
    assert block.has_shortcut is has_shortcut


def test_addition_for_every_kind_of_mixer() -> None:
    x, shortcut = torch.randn(2, 2, 5, 3, 3).unbind()
    gate = ECA(5)
    torch.testing.assert_close(add_mixed(None, x, shortcut), x + shortcut)
    torch.testing.assert_close(add_mixed(Doubled(), x, shortcut), 2 * x + shortcut)
    torch.testing.assert_close(add_mixed(gate, x, shortcut), gate(x) + shortcut)


def test_blocks_load_the_authors_names() -> None:
    block = BasicBlock(4, 7, mixer=ECA(7, kernel_size=3))
    reference = {name: torch.randn_like(tensor.float()) for name, tensor in block.state_dict().items()}
    taps = reference.pop("mixer.taps")
    block.load_reference({**reference, "eca.conv.weight": taps.view(1, 1, 3)})
    assert isinstance(block.mixer, ECA)
    assert torch.equal(block.mixer.taps, taps)
    assert torch.equal(block.conv1.weight, reference["conv1.weight"])
    with pytest.raises(KeyError, match=r"stands for mixer\.taps"):
        block.load_reference({**reference, "mixer.taps": taps, "eca.conv.weight": taps.view(1, 1, 3)})
    with pytest.raises(KeyError, match=r"unknown keys: xeca\.conv\.weight; missing keys: mixer\.taps"):
        block.load_reference({**reference, "xeca.conv.weight": taps.view(1, 1, 3)})
    with pytest.raises(KeyError, match=r"unknown keys: mixer\.taps"):
        BasicBlock(4, 7).load_reference({**reference, "eca.conv.weight": taps.view(1, 1, 3)})


def test_recomputation_leaves_training_as_it_is() -> None:
    block = Bottleneck(6, 5, stride=2, mixer=ECA(20)).train()
    twin = copy.deepcopy(block)
    x = torch.randn(3, 6, 7, 5, requires_grad=True)
    kept, again = block(x), recomputed(twin, x)
    torch.testing.assert_close(again, kept)
    weights = torch.randn_like(kept)
    expected = torch.autograd.grad((kept * weights).sum(), (x, *block.parameters()))
    actual = torch.autograd.grad((again * weights).sum(), (x, *twin.parameters()))
    torch.testing.assert_close(actual, expected)
    for (name, ours), theirs in zip(twin.named_buffers(), block.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")
    assert int(twin.bn1.num_batches_tracked) == 1
    assert twin.bn1.momentum == block.bn1.momentum == 0.1
