"""Regions of a map: how they cover it, that cutting and merging are inverse, means, and fewer keys."""

from __future__ import annotations

import pytest
import torch

from regard.ops.regions import (
    DOWNSAMPLINGS,
    Downsampling,
    RegionGrid,
    grid_of_count,
    grid_of_size,
    merge_regions,
    pool_regions,
    pooled_positions,
    region_means,
    region_numbers,
    split_regions,
)


@pytest.mark.parametrize(("space", "size"), [((9, 13), (3, 4)), ((8, 12), (2, 3)), ((1, 5), (1, 2)), ((1, 1), (1, 1))])
def test_a_count_of_regions_covers_the_map(space: tuple[int, int], size: tuple[int, int]) -> None:
    grid = grid_of_count(space, 4)
    assert grid == RegionGrid((4, 4), size)
    assert grid.regions == 16
    assert all(full >= own for full, own in zip(grid.space, space, strict=True))


@pytest.mark.parametrize(
    ("space", "count", "size"),
    [((9, 13), (5, 5), (2, 3)), ((8, 12), (4, 4), (2, 3)), ((3, 11), (3, 6), (1, 2)), ((1, 1), (1, 1), (1, 1))],
)
def test_a_size_of_regions_covers_the_map(
    space: tuple[int, int], count: tuple[int, int], size: tuple[int, int]
) -> None:
    assert grid_of_size(space, 4) == RegionGrid(count, size)


def test_merging_is_the_inverse_of_cutting() -> None:
    x = torch.randn(2, 6, 15, 7)
    grid = grid_of_count((6, 15), 3)
    regions = split_regions(x, grid)
    assert regions.shape == (2, 9, 10, 7)
    assert torch.equal(regions[1, 5], x[1, 2:4, 10:15].flatten(0, 1))
    assert torch.equal(merge_regions(regions, grid), x)


def test_padding_is_at_the_bottom_and_at_the_right() -> None:
    grid = grid_of_count((2, 3), 2)
    assert region_numbers((2, 3), grid, device=torch.device("cpu")).tolist() == [[0, 1], [2, -1], [3, 4], [5, -1]]
    padded = merge_regions(split_regions(torch.ones(1, 2, 3, 5), grid), grid)
    assert padded.shape == (1, 2, 4, 5)
    assert float(padded[:, :, 3].abs().sum()) == 0
    assert float(padded.sum()) == 30


def test_means_are_over_all_or_over_real_positions() -> None:
    x = torch.randn(2, 5, 7, 3, dtype=torch.float64)
    torch.testing.assert_close(region_means(x), x.mean(dim=2))
    real = torch.zeros(5, 7, dtype=torch.bool)
    for region in range(5):
        real[region, : region + 2] = True
    means = region_means(x * real[..., None], real)
    for region in range(5):
        torch.testing.assert_close(means[:, region], x[:, region, : region + 2].mean(dim=1))
    assert region_means(x.bfloat16()).dtype == torch.float32


def pooled_by_loop(region: torch.Tensor, mode: str, per_side: int, ratio: int) -> list[torch.Tensor]:
    """A region `(y, x, channels)` part by part."""
    height, width = region.shape[:2]
    if mode.startswith("ada"):
        rows = [(i * height // per_side, -(-(i + 1) * height // per_side)) for i in range(per_side)]
        columns = [(i * width // per_side, -(-(i + 1) * width // per_side)) for i in range(per_side)]
    else:
        tall, wide = min(ratio, height), min(ratio, width)
        rows = [(i * tall, (i + 1) * tall) for i in range(height // tall)]
        columns = [(i * wide, (i + 1) * wide) for i in range(width // wide)]
    parts = [region[top:bottom, left:right].flatten(0, 1) for top, bottom in rows for left, right in columns]
    return [part.amax(dim=0) if "max" in mode else part.mean(dim=0) for part in parts]


@pytest.mark.parametrize("mode", DOWNSAMPLINGS)
@pytest.mark.parametrize("size", [(5, 7), (4, 4), (1, 3), (1, 1)])
def test_pooling_is_a_loop_over_parts(mode: Downsampling, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, size[0] * size[1], 2, dtype=torch.float64)
    pooled = pool_regions(x, size, mode=mode, per_side=2, ratio=3)
    assert pooled.shape[2] == pooled_positions(size, mode=mode, per_side=2, ratio=3)
    if mode == "identity":
        assert pooled is x
        return
    expected = torch.stack(pooled_by_loop(x[1, 2].unflatten(0, size), mode, 2, 3))
    torch.testing.assert_close(pooled[1, 2], expected)
