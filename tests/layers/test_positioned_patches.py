"""Patches as products with their pixels; positions, resized ones, and what is refused."""

from __future__ import annotations

import pytest
import torch

from regard.layers.positioned_patches import PositionedPatches


def patches(**options: object) -> PositionedPatches:
    return PositionedPatches(image_size=6, patch_size=2, in_channels=3, dim=5, **options).double()


def test_a_token_is_a_product_with_its_pixels_and_its_position() -> None:
    layer, images = patches(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    tokens = layer(images)
    assert tokens.shape == (2, 9, 5)
    pixels = images[1, :, 2:4, 4:6].flatten()
    expected = layer.proj.weight.flatten(1) @ pixels + layer.proj.bias + layer.positions[0, 5]
    torch.testing.assert_close(tokens[1, 5], expected)


def test_other_sizes_are_padded_and_positions_resized() -> None:
    layer = patches(interpolate_positions=True)
    images = torch.randn(1, 3, 7, 11, dtype=torch.float64)
    assert layer.grid(images) == (4, 6)
    padded = torch.nn.functional.pad(images, (0, 1, 0, 1))
    torch.testing.assert_close(layer(images), layer(padded))
    assert layer(images).shape == (1, 24, 5)
    with torch.no_grad():
        # a constant table stays what it is at every size
        layer.positions.copy_(torch.arange(5.0).expand_as(layer.positions))
        layer.proj.weight.zero_()
        layer.proj.bias.zero_()
    torch.testing.assert_close(layer(images), torch.arange(5.0, dtype=torch.float64).expand(1, 24, 5))


def test_its_own_size_needs_no_interpolation() -> None:
    plain, flexible = patches(), patches(interpolate_positions=True)
    flexible.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    assert torch.equal(plain(images), flexible(images))


def test_other_sizes_are_refused_in_one_line() -> None:
    with pytest.raises(
        ValueError, match=r"images must be 6 x 6 pixels, got 6 x 8; interpolate_positions=True"
    ) as found:
        patches()(torch.zeros(1, 3, 6, 8, dtype=torch.float64))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((6, 4, 3, 5), "patch_size must divide image_size=6, got 4"),
        ((6, 2, 0, 5), "must be positive, got 6, 2, 0 and 5"),
        ((0, 2, 3, 5), "must be positive, got 0"),
    ],
)
def test_ill_sizes_are_named(sizes: tuple[int, int, int, int], message: str) -> None:
    image_size, patch_size, in_channels, dim = sizes
    with pytest.raises(ValueError, match=message):
        PositionedPatches(image_size=image_size, patch_size=patch_size, in_channels=in_channels, dim=dim)
