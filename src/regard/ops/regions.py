"""Regions of a feature map: how it is cut, what stands for a region as a whole, and fewer keys inside each.

A map is `(batch, y, x, channels)`; its regions are `(batch, regions, positions, channels)`, regions in row-major order
and positions in row-major order inside each.
Paper: "BiFormer: Vision Transformer with Bi-Level Routing Attention", Zhu et al., CVPR 2023,
https://arxiv.org/abs/2303.08810, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d, avg_pool2d, max_pool2d, pad

from regard.ops.precision import compute_dtype, without_autocast
from regard.ops.windows import Size, merge_windows, split_windows

Downsampling = Literal["identity", "ada_avgpool", "ada_maxpool", "avgpool", "maxpool"]
DOWNSAMPLINGS: tuple[Downsampling, ...] = get_args(Downsampling)
Maps = Float[Tensor, "batch y x channels"]
Regions = Float[Tensor, "batch regions positions channels"]


@dataclass(frozen=True)
class RegionGrid:
    """How a map is cut.

    Args:
        count: rows and columns of regions.
        size: rows and columns of positions in a region.
    """

    count: Size
    size: Size

    @property
    def regions(self) -> int:
        """Number of regions."""
        return self.count[0] * self.count[1]

    @property
    def positions(self) -> int:
        """Number of positions in a region."""
        return self.size[0] * self.size[1]

    @property
    def space(self) -> Size:
        """The map that the regions fill."""
        return (self.count[0] * self.size[0], self.count[1] * self.size[1])


def grid_of_count(space: Size, per_side: int) -> RegionGrid:
    """`per_side` regions per side, just large enough to cover the map."""
    return RegionGrid((per_side, per_side), (-(-space[0] // per_side), -(-space[1] // per_side)))


def grid_of_size(space: Size, per_side: int) -> RegionGrid:
    """Regions of a `per_side`-th of the map per side, rounded down, and as many as cover it: at least `per_side`."""
    size = (max(1, space[0] // per_side), max(1, space[1] // per_side))
    return RegionGrid((-(-space[0] // size[0]), -(-space[1] // size[1])), size)


def split_regions(x: Maps, grid: RegionGrid) -> Regions:
    """The regions of a map that is padded at the bottom and at the right with zeros."""
    missing = (grid.space[0] - x.shape[1], grid.space[1] - x.shape[2])
    if missing != (0, 0):
        x = pad(x, (0, 0, 0, missing[1], 0, missing[0]))
    return split_windows(x, grid.size).unflatten(0, (x.shape[0], grid.regions))


def merge_regions(regions: Regions, grid: RegionGrid) -> Maps:
    """The padded map whose regions these are."""
    return merge_windows(regions.flatten(0, 1), grid.size, grid.space)


def region_numbers(space: Size, grid: RegionGrid, *, device: torch.device) -> Int[Tensor, "regions positions"]:
    """The row-major numbers of the map's positions in every region; -1 = padding."""
    numbers = torch.arange(space[0] * space[1], device=device).view(1, *space, 1)
    missing = (grid.space[0] - space[0], grid.space[1] - space[1])
    numbers = pad(numbers, (0, 0, 0, missing[1], 0, missing[0]), value=-1)
    return split_windows(numbers, grid.size)[..., 0]


@without_autocast
def region_means(
    x: Regions, real: Bool[Tensor, "regions positions"] | None = None
) -> Float[Tensor, "batch regions channels"]:
    """The mean of every region in at least float32, over all positions or over the `real` ones, of which each has one.

    Args:
        x: zero where a position is not real.
        real: which positions count; None = all.
    """
    if real is None:
        return x.mean(dim=2, dtype=compute_dtype(x))
    return x.sum(dim=2, dtype=compute_dtype(x)) / real.sum(dim=1)[:, None]


def pool_regions(
    x: Regions, size: Size, *, mode: Downsampling, per_side: int, ratio: int
) -> Float[Tensor, "batch regions pooled channels"]:
    """Fewer positions in every region: means or maxima over parts of it.

    Args:
        x: the regions.
        size: rows and columns of positions in a region.
        mode: "ada_avgpool" and "ada_maxpool" to `per_side` positions per side, "avgpool" and "maxpool" over squares
            of `ratio` positions per side, "identity" not at all.
        per_side: positions per side that adaptive pooling leaves.
        ratio: positions per side that become one; a region smaller than that becomes one position.
    """
    if mode == "identity":
        return x
    maps = rearrange(x, "b r (sy sx) c -> (b r) c sy sx", sy=size[0])
    if mode in ("ada_avgpool", "ada_maxpool"):
        pooled = adaptive_avg_pool2d(maps, per_side) if mode == "ada_avgpool" else adaptive_max_pool2d(maps, per_side)
    else:
        square = (min(ratio, size[0]), min(ratio, size[1]))
        pooled = avg_pool2d(maps, square) if mode == "avgpool" else max_pool2d(maps, square)
    return rearrange(pooled, "(b r) c sy sx -> b r (sy sx) c", b=x.shape[0])


def pooled_positions(size: Size, *, mode: Downsampling, per_side: int, ratio: int) -> int:
    """How many positions `pool_regions` leaves in a region."""
    if mode == "identity":
        return size[0] * size[1]
    if mode in ("ada_avgpool", "ada_maxpool"):
        return per_side**2
    return (size[0] // min(ratio, size[0])) * (size[1] // min(ratio, size[1]))
