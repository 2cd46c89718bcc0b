"""Learned positions of a grid, resized to another grid."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

Size = tuple[int, int]


def resized_positions(
    table: Float[Tensor, "1 positions dim"],
    size: Size,
    space: Size,
    *,
    mode: Literal["bilinear", "bicubic"] = "bilinear",
) -> Float[Tensor, "1 y x dim"]:
    """A row-major table as a map of `space` positions, whose cells' centres are aligned with the table's.

    Args:
        table: one row per position.
        size: rows and columns of the grid that the table was learned for.
        space: rows and columns that are wanted; `size` itself leaves the table as it is.
        mode: how to interpolate.
    """
    grid = table.unflatten(1, size)
    if size == space:
        return grid
    return interpolate(grid.permute(0, 3, 1, 2), size=space, mode=mode).permute(0, 2, 3, 1)
