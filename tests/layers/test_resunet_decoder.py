"""A decoder step: order of the concatenation, both ways up, and the layouts that it loads."""

from __future__ import annotations

import pytest
import torch

from regard.layers.residual_blocks import recomputed
from regard.layers.resunet_decoder import ResUNetDecoderBlock


def doubled(x: torch.Tensor) -> torch.Tensor:
    """Bilinear, pixels as areas: three quarters of the nearer and one quarter of the further neighbour."""
    for axis in (2, 3):
        last = x.shape[axis] - 1
        before = x.index_select(axis, torch.arange(-1, last).clamp(min=0))
        behind = x.index_select(axis, torch.arange(1, last + 2).clamp(max=last))
        x = torch.stack((0.75 * x + 0.25 * before, 0.75 * x + 0.25 * behind), dim=axis + 1).flatten(axis, axis + 1)
    return x


def test_enlarges_concatenates_and_mixes() -> None:
    block = ResUNetDecoderBlock(3, 2, 5).double().eval()
    x, skip = torch.randn(2, 3, 5, 7, dtype=torch.float64), torch.randn(2, 2, 10, 14, dtype=torch.float64)
    torch.testing.assert_close(block(x, skip), block.unit(torch.cat((doubled(x), skip), dim=1)))


def test_transposed_convolutions_learn_to_enlarge() -> None:
    block = ResUNetDecoderBlock(3, 0, 5, upsampling="transposed")
    x = torch.randn(2, 3, 5, 7)
    assert block(x).shape == (2, 5, 10, 14)
    block(x).sum().backward()
    assert block.up.weight.grad is not None
    assert ResUNetDecoderBlock(3, 0, 5)(x).shape == (2, 5, 10, 14)


def test_runs_the_unit_through_what_it_is_given() -> None:
    block = ResUNetDecoderBlock(3, 2, 5)
    x, skip = torch.randn(2, 3, 5, 7), torch.randn(2, 2, 10, 14)
    torch.testing.assert_close(block(x, skip, recomputed), block(x, skip))


def test_loads_both_layouts_strictly() -> None:
    block, other = ResUNetDecoderBlock(3, 2, 5), ResUNetDecoderBlock(3, 2, 5)
    layout = {name.removeprefix("unit."): tensor for name, tensor in other.state_dict().items()}
    block.load_reference(layout)
    assert torch.equal(block.unit.conv2.weight, other.unit.conv2.weight)
    block.load_reference(other.state_dict())
    with pytest.raises(KeyError, match=r"missing keys: unit\.conv1\.weight"):
        block.load_reference({name: tensor for name, tensor in layout.items() if name != "conv1.weight"})


def test_ill_options_are_named() -> None:
    with pytest.raises(ValueError, match="upsampling must be one of bilinear, transposed, got 'nearest'"):
        ResUNetDecoderBlock(3, 2, 5, upsampling="nearest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="skip_channels must not be negative, got -1"):
        ResUNetDecoderBlock(3, -1, 5)
