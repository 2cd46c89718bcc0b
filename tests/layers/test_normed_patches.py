"""Normed patches: means by a loop, padding to the stride, and overlapping ones."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import layer_norm, pad

from regard.layers.normed_patches import NormedPatches


@pytest.mark.parametrize("space", [(6, 4), (5, 7), (1, 1)])
def test_patches_of_a_padded_map(space: tuple[int, int]) -> None:
    layer = NormedPatches(3, 5, stride=2).double()
    x = torch.randn(2, *space, 3, dtype=torch.float64)
    padded = pad(x, (0, 0, 0, space[1] % 2, 0, space[0] % 2))
    y = layer(x)
    assert y.shape == (2, -(-space[0] // 2), -(-space[1] // 2), 5)
    for row in range(y.shape[1]):
        for column in range(y.shape[2]):
            patch = padded[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            projected = torch.einsum("byxc,dcyx->bd", patch, layer.conv.weight) + layer.conv.bias
            torch.testing.assert_close(y[:, row, column], layer_norm(projected, (5,)))


@pytest.mark.parametrize(("stride", "kernel", "padding"), [(4, 7, 2), (2, 3, 1), (1, 1, 0)])
@pytest.mark.parametrize("space", [(8, 12), (9, 5), (1, 1)])
def test_overlapping_patches_round_up(stride: int, kernel: int, padding: int, space: tuple[int, int]) -> None:
    layer = NormedPatches(3, 5, stride=stride, kernel_size=kernel, padding=padding)
    y = layer(torch.randn(2, *space, 3))
    assert y.shape == (2, -(-space[0] // stride), -(-space[1] // stride), 5)
    torch.testing.assert_close(y.mean(dim=-1), torch.zeros(y.shape[:3]), atol=1e-5, rtol=0)


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ValueError, match="channels and stride must be positive, got 3, 5 and 0"):
        NormedPatches(3, 5, stride=0)
