"""Patches in row-major order, by loops; ill sizes and images."""

from __future__ import annotations

import re

import pytest
import torch

from regard.layers.patch_embedding import PatchEmbedding


def test_patches_come_row_by_row() -> None:
    layer = PatchEmbedding(image_size=9, patch_size=3, in_channels=2, dim=5).double()
    images = torch.randn(2, 2, 9, 9, dtype=torch.float64)
    tokens = layer(images)
    assert tokens.shape == (2, layer.seq_len, 5)
    weight = layer.proj.weight.flatten(1)
    for y in range(3):
        for x in range(3):
            pixels = images[:, :, 3 * y : 3 * y + 3, 3 * x : 3 * x + 3].flatten(1)
            torch.testing.assert_close(tokens[:, 3 * y + x], pixels @ weight.T + layer.proj.bias)


@pytest.mark.parametrize(
    ("image_size", "patch_size", "message"), [(10, 4, "image_size=10, got 4"), (0, 2, "must be positive, got 0, 2")]
)
def test_ill_sizes_are_named(image_size: int, patch_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchEmbedding(image_size=image_size, patch_size=patch_size, in_channels=1, dim=3)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 8, 10), (1, 8, 8)])
def test_ill_images_are_named(shape: tuple[int, ...]) -> None:
    layer = PatchEmbedding(image_size=8, patch_size=2, in_channels=1, dim=3)
    with pytest.raises(ValueError, match=re.escape(f"(batch, 1, 8, 8), got {shape}")):
        layer(torch.zeros(shape))
