"""What a mask looks like: three orthogonal views through it, over the intensities, as PNG files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from regard.tasks.volumes.grids import Array, Grid, carry
from regard.tasks.volumes.regions import Region

COLOURS = ((230, 159, 0), (86, 180, 233), (204, 121, 167), (0, 158, 115), (240, 228, 66), (213, 94, 0))
"""By region, told apart by people who see colours differently."""
TRUTH = (255, 255, 255)
SHARE = 0.45
"""How much of the colour covers the intensities."""
STRIP = 16
"""From how many times as long as wide on a view is not worth showing."""
SIDE = 320
"""Pixels of the longer side of a view."""
CONTRAST = (0.5, 99.5)
PLANES = ("sagittal", "coronal", "axial")
LETTERS = ("x", "y", "z")


def legend_of(regions: Sequence[Region]) -> tuple[tuple[str, tuple[int, int, int]], ...]:
    """The colour of every region."""
    return tuple((region.name, COLOURS[index % len(COLOURS)]) for index, region in enumerate(regions))


@dataclass(frozen=True)
class Scene:
    """A volume with what is drawn over it, its axes to the right, to the front and up.

    Args:
        values: `(x, y, z)` intensities.
        labels: `(x, y, z)` predicted labels.
        regions: what is coloured, the largest first.
        grid: where the voxels are.
        truth: `(x, y, z)` true labels, drawn as an outline; None = not known.
        flat: whether it is an image, whose rows run down.
    """

    values: Array
    labels: Array
    regions: Sequence[Region]
    grid: Grid
    truth: Array | None = None
    flat: bool = False

    def focus(self) -> tuple[int, int, int]:
        """The voxel that the views go through: of the slices along each axis those with most of the lesion.

        What is true decides where it is known, else what is predicted; without either it is the middle.
        """
        for labels in (self.truth, self.labels):
            if labels is not None and labels.any():
                mask = labels > 0
                x, y, z = (
                    int(mask.sum(axis=tuple(other for other in range(3) if other != axis)).argmax())
                    for axis in range(3)
                )
                return x, y, z
        x, y, z = (size // 2 for size in self.grid.shape)
        return x, y, z

    def views(self) -> list[tuple[str, bytes]]:
        """Titles and PNG files; one view of an image, three of a volume, without those in which it is but a strip."""
        if self.flat:
            return [("", self._drawn(2, 0))]
        focus = self.focus()
        made = []
        extents = [size * step for size, step in zip(self.grid.shape, self.grid.spacing, strict=True)]
        for axis in (2, 1, 0):
            sides = [extent for other, extent in enumerate(extents) if other != axis]
            # a volume that is a rod has no other views than strips
            if max(sides) > STRIP * min(sides) and sorted(extents)[1] > STRIP * min(extents):
                continue
            place = (self.grid.affine @ np.array([*focus, 1.0]))[axis]
            title = (
                f"{PLANES[axis]}, slice {focus[axis] + 1} of {self.grid.shape[axis]}, {LETTERS[axis]} = {place:.1f} mm"
            )
            made.append((title, self._drawn(axis, focus[axis])))
        return made

    def _drawn(self, axis: int, number: int) -> bytes:
        rest = [other for other in range(3) if other != axis]
        plane = self._upright(self.values.take(number, axis=axis))
        low, high = np.percentile(self.values[:: max(1, self.values.shape[0] // 64)], CONTRAST)
        grey = np.clip((plane - low) / (high - low if high > low else 1.0), 0, 1)
        picture = np.repeat(255 * grey[..., None], 3, axis=2)
        labels = self._upright(self.labels.take(number, axis=axis))
        for index, region in enumerate(self.regions):
            mask = np.isin(labels, region.labels)
            colour = np.array(COLOURS[index % len(COLOURS)])
            picture[mask] = (1 - SHARE) * picture[mask] + SHARE * colour
        steps = [self.grid.spacing[other] for other in rest]
        columns, rows = plane.shape[1] * steps[0], plane.shape[0] * steps[1]
        zoom = SIDE / max(columns, rows)
        size = (max(1, round(columns * zoom)), max(1, round(rows * zoom)))
        drawn = np.asarray(Image.fromarray(picture.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)).copy()
        if self.truth is not None:
            outline = self._upright(self.truth.take(number, axis=axis)) > 0
            drawn[_edge(outline, size)] = TRUTH
        stream = io.BytesIO()
        Image.fromarray(drawn).save(stream, format="PNG", optimize=True)
        return stream.getvalue()

    def _upright(self, plane: Array) -> Array:
        """`(first, second)` axis as rows and columns, up and front at the top, the patient's right at the left."""
        rows = plane.T
        return rows if self.flat else rows[::-1, ::-1]


def _edge(mask: Array, size: tuple[int, int]) -> Array:
    """The outline of a mask, one pixel wide, at the size of a picture `(width, height)`."""
    large = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)) > 0
    inner = large.copy()
    inner[1:] &= large[:-1]
    inner[:-1] &= large[1:]
    inner[:, 1:] &= large[:, :-1]
    inner[:, :-1] &= large[:, 1:]
    return large & ~inner


def scene(
    values: Array,
    read: Grid,
    labels: Array,
    native: Grid,
    regions: Sequence[Region],
    *,
    truth: Array | None = None,
    flat: bool = False,
) -> Scene:
    """A scene from intensities and labels on grids of their own.

    Args:
        values: `(x, y, z)` intensities.
        read: where they are.
        labels: `(x, y, z)` predicted labels.
        native: where they are.
        regions: what is coloured, the largest first.
        truth: `(x, y, z)` true labels on the same grid.
        flat: whether it is an image.
    """
    target = read if flat else read.canonical()

    def placed(mask: Array) -> Array:
        return carry(mask[None], native, target, order=0, outside="zero")[0]

    return Scene(
        values=carry(values[None], read, target)[0],
        labels=placed(labels),
        regions=regions,
        grid=target,
        truth=None if truth is None else placed(truth),
        flat=flat,
    )
