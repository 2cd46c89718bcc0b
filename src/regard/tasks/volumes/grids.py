"""Where voxels are: the grid of a file, the grid that a network sees, and what is carried from one to the other.

A grid that differs from another by the order and direction of its axes alone is carried over exactly, by moving
voxels; every other way is trilinear (nearest for labels), slab by slab, so that a large volume needs no second copy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Size = tuple[int, int, int]
SLAB_VOXELS = 1 << 24
"""Voxels of a channel that are resampled at a time."""
ROUNDING = 1e-4
"""Shares of a voxel by which exact grids may differ: affines are stored as float32."""


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxels of a volume in space.

    Args:
        shape: number of voxels along each axis.
        affine: 4 by 4; from indices of voxels to mm, x to the right, y to the front, z up.

    Raises:
        ValueError: an axis without voxels, or an affine that is not finite or not invertible.
    """

    shape: Size
    affine: Array

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"a volume has three axes with voxels, got {self.shape}")
        if self.affine.shape != (4, 4) or not np.isfinite(self.affine).all():
            raise ValueError("its affine is not finite")
        if abs(np.linalg.det(self.affine[:3, :3])) < 1e-9 or not np.allclose(self.affine[3], (0, 0, 0, 1)):
            raise ValueError("its affine is singular: voxels have no volume")

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of neighbours along each axis, in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000

    def agrees_with(self, other: Grid) -> bool:
        """Whether both have the same voxels in the same places, up to a hundredth of a voxel."""
        if self.shape != other.shape:
            return False
        corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=float)
        corners[:, :3] *= np.array(self.shape) - 1
        apart = np.abs((corners @ (self.affine - other.affine).T)[:, :3]).max()
        return bool(apart <= 0.01 * min(self.spacing))

    def canonical(self) -> Grid:
        """The same voxels with their axes in the order and direction that is nearest to right, front, up."""
        import nibabel.orientations as orientations

        order = orientations.io_orientation(self.affine)
        shape = [0, 0, 0]
        for axis, (place, _) in enumerate(order):
            shape[int(place)] = self.shape[axis]
        affine = self.affine @ orientations.inv_ornt_aff(order, self.shape)
        return Grid((shape[0], shape[1], shape[2]), affine)

    def coarser(self, factors: Size) -> Grid:
        """Voxels that each take the place of some neighbours; incomplete ones at the end are left out."""
        steps = np.diag([*factors, 1.0])
        steps[:3, 3] = (np.array(factors) - 1) / 2
        x, y, z = (size // factor for size, factor in zip(self.shape, factors, strict=True))
        return Grid((x, y, z), self.affine @ steps)


def axis_aligned(native: Grid, *, spacing: float, size: Size | None) -> Grid:
    """A grid along right, front and up that covers a volume.

    Args:
        native: the volume.
        spacing: distance of neighbours in mm; 0 = the smallest of the volume, or what the size asks for.
        size: voxels along each axis; None = as many as the spacing needs.
    """
    edges = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=float)
    edges[:, :3] = edges[:, :3] * np.array(native.shape) - 0.5
    places = (edges @ native.affine.T)[:, :3]
    low, high = places.min(axis=0), places.max(axis=0)
    if size is None:
        step = spacing or min(native.spacing)
        x, y, z = (max(1, math.ceil(side / step - ROUNDING)) for side in high - low)
        size = (x, y, z)
        steps = np.full(3, step)
    else:
        steps = (high - low) / np.array(size)
    affine = np.diag([*steps, 1.0])
    affine[:3, 3] = low + steps / 2
    return Grid(size, affine)


def cut_out(grid: Grid, start: Size, stop: Size) -> Grid:
    """The part of a grid from some voxel to before another."""
    affine = grid.affine.copy()
    affine[:3, 3] += grid.affine[:3, :3] @ np.array(start)
    x, y, z = (end - begin for begin, end in zip(start, stop, strict=True))
    return Grid((x, y, z), affine)


def exact_move(source: Grid, target: Grid) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """How voxels move where grids differ in the order and direction of their axes alone.

    Returns:
        The source's axis for each of the target's, and those of the target that run the other way; None where voxels
        would have to be resampled.
    """
    between = np.linalg.solve(source.affine, target.affine)
    rounded = np.round(between[:3, :3])
    largest = max(source.shape)
    if np.abs(between[:3, :3] - rounded).max() * largest > ROUNDING * max(largest, 100):
        return None
    if not (np.abs(rounded).sum(axis=0) == 1).all() or not (np.abs(rounded).sum(axis=1) == 1).all():
        return None
    axes = tuple(int(np.abs(rounded[:, column]).argmax()) for column in range(3))
    turned = tuple(column for column, axis in enumerate(axes) if rounded[axis, column] < 0)
    if tuple(source.shape[axis] for axis in axes) != target.shape:
        return None
    start = np.zeros(3)
    for column in turned:
        start[axes[column]] = source.shape[axes[column]] - 1
    return (axes, turned) if np.abs(between[:3, 3] - start).max() < 0.01 else None


def carry(
    values: Array, source: Grid, target: Grid, *, order: Literal[0, 1] = 1, outside: Literal["edge", "zero"] = "edge"
) -> Array:
    """Values on one grid as values on another.

    Args:
        values: `(channels, x, y, z)` on the source.
        source: where they are.
        target: where they are wanted.
        order: 1 = trilinear, 0 = nearest.
        outside: what lies beyond the source: its edge, or zeros.

    Returns:
        `(channels, x, y, z)` on the target, of the same type; a view of `values` where voxels only move.
    """
    move = exact_move(source, target)
    if move is not None:
        axes, turned = move
        moved = values.transpose(0, *(1 + axis for axis in axes))
        return np.flip(moved, tuple(1 + axis for axis in turned)) if turned else moved
    made = np.empty((len(values), *target.shape), dtype=values.dtype)
    for start, stop in slabs(target.shape):
        part = cut_out(target, (start, 0, 0), (stop, *target.shape[1:]))
        made[:, start:stop] = _resampled(values, source, part, order, outside)
    return made


def slabs(shape: Size) -> Iterator[tuple[int, int]]:
    """Parts along the first axis of a size that is worked on at a time."""
    deep = max(1, SLAB_VOXELS // max(1, shape[1] * shape[2]))
    for start in range(0, shape[0], deep):
        yield start, min(shape[0], start + deep)


def _resampled(values: Array, source: Grid, target: Grid, order: int, outside: str) -> Array:
    from scipy.ndimage import affine_transform

    between = np.linalg.solve(source.affine, target.affine)
    matrix: Array = between[:3, :3]
    if np.abs(matrix - np.diag(np.diag(matrix))).max() < 1e-9:
        # scipy has a faster way for scaling alone
        matrix = np.diag(matrix)
    mode = "nearest" if outside == "edge" else "constant"
    made = np.empty((len(values), *target.shape), dtype=values.dtype)
    for channel, own in enumerate(values):
        affine_transform(
            own, matrix, between[:3, 3], output_shape=target.shape, output=made[channel], order=order, mode=mode
        )
    return made
