"""MaxViT's block attention against a loop over contiguous windows, and where its map ends."""

from __future__ import annotations

import pytest
import torch
from relative_loops import by_loop, check_gradients, check_map_ends_at_windows

from regard.mixers.spatial.maxvit_block import MaxViTBlockAttention

SPACES = [(6, 9), (4, 4), (1, 1), (3, 17)]


def members(height: int, width: int, side: int) -> list[list[tuple[int, int]]]:
    """The positions of every one of the contiguous windows, row by row; those beyond the map are padding."""
    return [
        [(top + row, left + column) for row in range(side) for column in range(side)]
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]


@pytest.mark.parametrize(("channels", "heads", "side"), [(15, 3, 4), (7, 1, 5), (6, 6, 1)])
@pytest.mark.parametrize("space", SPACES)
def test_is_a_loop_over_windows(channels: int, heads: int, side: int, space: tuple[int, int]) -> None:
    mixer = MaxViTBlockAttention(channels, num_heads=heads, window_size=side).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(2, channels, *space, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), by_loop(mixer, x, members(*space, side)))


def test_gradients_are_those_of_the_loop() -> None:
    check_gradients(MaxViTBlockAttention(6, num_heads=2, window_size=3), members(5, 7, 3))


def test_the_map_ends_at_the_window() -> None:
    check_map_ends_at_windows(MaxViTBlockAttention(6, num_heads=2, window_size=3), members(5, 7, 3))
