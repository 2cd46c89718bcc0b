"""Patch merging: four positions in the published order, and odd sizes."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import layer_norm, pad

from regard.layers.patch_merging import PatchMerging


@pytest.mark.parametrize("space", [(4, 6), (5, 3), (1, 1)])
def test_four_positions_become_one(space: tuple[int, int]) -> None:
    layer = PatchMerging(3, 5).double()
    x = torch.randn(2, *space, 3, dtype=torch.float64)
    padded = pad(x, (0, 0, 0, space[1] % 2, 0, space[0] % 2))
    parts = [padded[:, dy::2, dx::2] for dx in (0, 1) for dy in (0, 1)]
    expected = layer_norm(torch.cat(parts, dim=-1), (12,)) @ layer.reduction.weight.T
    torch.testing.assert_close(layer(x), expected)
