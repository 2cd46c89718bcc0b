"""From the files of a case to what a network sees, and from what it says back to the voxels of the files."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from regard.errors import UserError
from regard.tasks.volumes.cases import Case
from regard.tasks.volumes.grids import Array, Grid, Size, axis_aligned, carry, cut_out, exact_move
from regard.tasks.volumes.normalising import Normalisation, normalise, scales
from regard.tasks.volumes.reading import Stored, check_grids, named, open_channels, open_file
from regard.tasks.volumes.settings import SegmentationSettings
from regard.wording import listed, shown

CHUNK_VOXELS = 1 << 24
MARGIN = 0.2
"""Share of the range of intensities below which a margin counts as dark."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A case as the network sees it.

    Args:
        image: `(channels, x, y, z)` float32, normalised.
        grid: where its voxels are.
        native: the grid of its files.
        constant: numbers of channels without any contrast, which have become 0.
    """

    image: Array
    grid: Grid
    native: Grid
    constant: tuple[int, ...] = ()

    @property
    def moves_only(self) -> bool:
        """Whether the files' voxels are the network's, in another order."""
        return exact_move(self.grid, self.native) is not None


@dataclass(frozen=True)
class Preparation:
    """What is done to every case.

    Args:
        settings: what the user chose.
        channels: number of channels that a case must have.
        kind: how intensities are normalised.
    """

    settings: SegmentationSettings
    channels: int
    kind: Normalisation

    def image(self, paths: Sequence[Path], *, scratch: Path | None = None) -> Prepared:
        """Read and prepare the images of a case.

        Args:
            paths: one file with all channels, or one for each.
            scratch: a folder for what would not fit into the budget of memory; None = a temporary one.

        Raises:
            UserError: a file that cannot be used, which is named.
        """
        files = self._opened(paths)
        native = files[0].grid
        if self.settings.view == "whole" and min(native.shape) < 2:
            raise UserError(f"{shown(files[0].path)} has a single slice, and the network takes whole volumes")
        factors = self._factors(native)
        values, grid = _read(files, self.channels, factors, self.settings.memory_mb, scratch)
        target = self.grid(native, values if self.settings.crop else None, grid)
        edge = exact_move(grid, target) is not None or _axes_agree(grid, target)
        values = carry(values, grid, target, outside="edge" if edge else "zero")
        try:
            made = scales(values, self.kind, low=self.settings.low, high=self.settings.high)
        except ValueError as error:
            raise UserError(f"{shown(files[0].path)}: {error}") from None
        normalise(values, made, out=values)
        constant = tuple(number for number, scale in enumerate(made) if scale.spread == 0)
        return Prepared(values, target, native, constant)

    def _opened(self, paths: Sequence[Path]) -> list[Stored]:
        if self.settings.channels_axis == "channels":
            return open_channels(paths, channels=self.channels)
        opened = open_channels(paths)
        return [opened[0]] if self.channels == 1 else opened

    def grid(self, native: Grid, values: Array | None, read: Grid) -> Grid:
        """The grid that the network sees of a volume.

        Args:
            native: of the files.
            values: `(channels, x, y, z)`, where the dark margin is to be left out.
            read: where the values are.
        """
        settings = self.settings
        if settings.view == "whole":
            covered = native if values is None else bright_part(values, read)
            return axis_aligned(covered, spacing=settings.spacing, size=settings.window)
        if settings.view == "windows" and settings.spacing:
            return axis_aligned(native, spacing=settings.spacing, size=None)
        return native.canonical()

    def _factors(self, native: Grid) -> Size:
        """By how much a volume is made coarser as it is read: little of it is in memory, and nothing aliased."""
        if self.settings.view != "whole":
            return 1, 1, 1
        target = axis_aligned(native, spacing=self.settings.spacing, size=self.settings.window)
        between = np.abs(np.linalg.solve(native.affine, target.affine)[:3, :3])
        # without its margin a volume is brought to the same size at smaller steps
        finer = 2 if self.settings.crop else 1
        x, y, z = (
            max(1, min(int(step / finer), size // 2))
            for step, size in zip(between.max(axis=1), native.shape, strict=True)
        )
        return x, y, z

    def coarse(self, path: Path, side: int) -> tuple[Array, Grid]:
        """`(x, y, z)` intensities of a file's last channel for looking at, with at most about `side` voxels per side.

        Raises:
            UserError: a file that cannot be used.
        """
        opened = open_channels([path])
        native = opened[0].grid
        x, y, z = (max(1, size // side) for size in native.shape)
        values, grid = _read(opened, opened[0].channels, (x, y, z), self.settings.memory_mb, None)
        return values[-1], grid

    def on_grid(self, labels: Array, case: Prepared) -> Array:
        """`(x, y, z)` labels of a mask on the network's grid."""
        return carry(labels[None], case.native, case.grid, order=0, outside="zero")[0]


def read_mask(case: Case, image: Stored, allowed: frozenset[int] | None) -> Array:
    """`(x, y, z)` labels of a case.

    Args:
        case: its files.
        image: the first of its images.
        allowed: labels that may occur; None = any, but of an image file 0 and 255 (or 0 and 1) alone.

    Raises:
        UserError: a mask that cannot be used, or that does not fit its image.
    """
    assert case.mask is not None
    stored = named(case.mask, partial(open_file, case.mask))
    check_grids(stored, image)
    if stored.pixels is not None and stored.channels == 3:
        stored = _grey(stored)
    labels = named(case.mask, stored.labels)
    found = np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist()
    if stored.pixels is not None and set(found) <= {0, 255}:
        return (labels > 0).astype(np.uint8)
    if allowed is None and stored.pixels is not None:
        allowed = frozenset((0, 1))
    outside = sorted(set(found) - allowed) if allowed is not None else []
    if allowed is not None and outside:
        known = listed([str(label) for label in sorted(allowed)], 10)
        raise UserError(f"{shown(case.mask)} has the label {outside[0]}, and the labels are {known}")
    return labels


def _grey(stored: Stored) -> Stored:
    """A mask whose three colours are equal, as one channel; another is left to be refused."""
    assert stored.pixels is not None
    equal = (stored.pixels == stored.pixels[:1]).all()
    return Stored(stored.path, stored.grid, 1, pixels=stored.pixels[:1]) if equal else stored


def bright_part(values: Array, grid: Grid) -> Grid:
    """The part of a grid inside the box around what is brighter than a fifth of the range of its first channel."""
    from scipy.ndimage import binary_fill_holes

    first = values[0]
    low, high = float(first.min()), float(first.max())
    bright: Any = binary_fill_holes(first > low + MARGIN * (high - low))
    if not bright.any():
        return grid
    sides = [np.flatnonzero(bright.any(axis=tuple(other for other in range(3) if other != axis))) for axis in range(3)]
    (x, y, z), (i, j, k) = zip(*((int(side[0]), int(side[-1]) + 1) for side in sides), strict=True)
    return cut_out(grid, (x, y, z), (i, j, k))


def room(shape: tuple[int, ...], dtype: Any, *, memory_mb: int, scratch: Path | None) -> Array:
    """An array in memory, or mapped from a file where it would exceed the budget; a temporary file is gone with it.

    Args:
        shape: of the array.
        dtype: of its values.
        memory_mb: the budget.
        scratch: a folder for the file; None = the system's for temporary files.
    """
    if math.prod(shape) * np.dtype(dtype).itemsize <= memory_mb * 10**6:
        return np.empty(shape, dtype=dtype)
    with tempfile.TemporaryFile(dir=scratch, prefix="volume-") as stream:
        return np.memmap(stream, dtype=dtype, mode="w+", shape=shape)


def _read(
    files: Sequence[Stored], channels: int, factors: Size, memory_mb: int, scratch: Path | None
) -> tuple[Array, Grid]:
    """All channels as float32, made coarser by averaging neighbours as they are read along z."""
    native = files[0].grid
    grid = native.coarser(factors)
    values = room((channels, *grid.shape), np.float32, memory_mb=memory_mb, scratch=scratch)
    number = 0
    for file in files:
        count = min(file.channels, channels)
        deep = max(1, CHUNK_VOXELS // (native.shape[0] * native.shape[1] * file.channels * factors[2]))
        for start in range(0, grid.shape[2], deep):
            stop = min(grid.shape[2], start + deep)
            part = named(file.path, partial(file.part, start * factors[2], stop * factors[2]))[:count]
            values[number : number + count, :, :, start:stop] = _averaged(part, factors, grid)
        number += count
    return values, grid


def _averaged(part: Array, factors: Size, grid: Grid) -> Array:
    if factors == (1, 1, 1):
        return part
    x, y = grid.shape[0], grid.shape[1]
    whole = part[:, : x * factors[0], : y * factors[1]]
    return whole.reshape(len(part), x, factors[0], y, factors[1], -1, factors[2]).mean(axis=(2, 4, 6))


def _axes_agree(one: Grid, other: Grid) -> bool:
    """Whether the axes of two grids are parallel, so that beyond the one's edge there is nothing of the other's."""
    between = np.abs(np.linalg.solve(one.affine, other.affine)[:3, :3])
    return bool((between > 1e-6 * between.max()).sum() == 3)
