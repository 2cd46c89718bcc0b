"""Volumes and slices from files: NIfTI with any orientation, PNG and TIFF slices; every fault names its file."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from regard.errors import UserError
from regard.tasks.data_kind import IMAGE_SUFFIXES
from regard.tasks.volumes.grids import Array, Grid
from regard.wording import count_in_words, shown

Result = TypeVar("Result")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
LARGEST_VOLUME = 1 << 33
"""Voxels beyond which a header is taken for a damaged one."""


class BadVolumeError(ValueError):
    """A file that cannot be used, with the reason; the file's name is told by who catches it."""


@dataclass(frozen=True, eq=False)
class Stored:
    """A file that has been opened and not yet read.

    Args:
        path: the file.
        grid: of its first three axes.
        channels: length of its fourth axis, 1 where it has none.
        image: nibabel's, whose data are read when they are asked for; None for a slice.
        pixels: `(channels, x, y, 1)` of a slice; None for a volume.
    """

    path: Path
    grid: Grid
    channels: int
    image: Any = None
    pixels: Array | None = None

    def part(self, start: int, stop: int) -> Array:
        """`(channels, x, y, z)` of the indices `start` to `stop` along z, as float32.

        Raises:
            BadVolumeError: truncated or damaged data, or voxels that are no numbers.
        """
        if self.pixels is not None:
            return self.pixels[..., start:stop].astype(np.float32)
        values = _floats(self._read((slice(None), slice(None), slice(start, stop))))
        values = values[None] if values.ndim == 3 else np.moveaxis(values, -1, 0)
        bad = int(values.size - np.isfinite(values).sum())
        if bad:
            raise BadVolumeError(f"has {count_in_words(bad, 'voxel')} that are no finite numbers")
        return values

    def labels(self) -> Array:
        """`(x, y, z)` whole numbers of a mask.

        Raises:
            BadVolumeError: truncated or damaged data, more than one channel, or values that are no labels.
        """
        if self.channels != 1:
            raise BadVolumeError(f"has {self.channels} channels, a mask has one")
        values = self.pixels[0] if self.pixels is not None else self._read((slice(None),) * 3)
        values = values.reshape(self.grid.shape)
        if values.dtype.kind == "f":
            with np.errstate(invalid="ignore"):
                whole = values.astype(np.int64)
            if not (whole == values).all():
                raise BadVolumeError("has values that are no whole numbers, a mask has labels")
            values = whole
        if values.size and (values.min() < 0 or values.max() > 255):
            raise BadVolumeError(f"has labels from {values.min()} to {values.max()}, they must be 0 to 255")
        return values.astype(np.uint8)

    def _read(self, index: tuple[slice, ...]) -> Array:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return np.asanyarray(self.image.dataobj[index])
        except (OSError, EOFError, ValueError, zlib.error, MemoryError, TypeError) as error:
            raise BadVolumeError(f"is truncated or damaged: {_reason(error)}") from None


def is_nifti(path: Path) -> bool:
    """Whether a name is a NIfTI file's."""
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def is_slice(path: Path) -> bool:
    """Whether a name is an image file's."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def stem(path: Path) -> str:
    """A file's name without the suffix of its format."""
    name = path.name
    for suffix in sorted(NIFTI_SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return path.stem


def open_file(path: Path) -> Stored:
    """Open a volume or a slice.

    Raises:
        BadVolumeError: it is missing, of another format, or damaged.
    """
    if not path.is_file():
        raise BadVolumeError("is not there" if not path.exists() else "is no file")
    if is_nifti(path):
        return _open_nifti(path)
    if is_slice(path):
        return _open_slice(path)
    raise BadVolumeError("is neither NIfTI (.nii, .nii.gz) nor an image (.png, .tif ...)")


def _open_nifti(path: Path) -> Stored:
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # an open file is read on from where it was, a compressed one too
            image: Any = nibabel.load(path, keep_file_open=True)
            shape, kind = tuple(int(size) for size in image.shape), image.get_data_dtype()
            affine = np.asarray(image.affine, dtype=np.float64)
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error, OverflowError) as error:
        raise BadVolumeError(f"is no NIfTI file, or a damaged one: {_reason(error)}") from None
    if kind.kind not in "iuf":
        raise BadVolumeError(f"has voxels of type {kind}, they must be numbers")
    while len(shape) > 4 and shape[-1] == 1:
        shape = shape[:-1]
    if len(image.shape) > 4 and len(shape) <= 4:
        image = image.slicer[(slice(None),) * 4 + (0,) * (len(image.shape) - 4)]
    if not 2 <= len(shape) <= 4 or min(shape) < 1 or np.prod(shape, dtype=float) > LARGEST_VOLUME:
        raise BadVolumeError(f"has shape {shape}, a volume has three axes, and a fourth for channels")
    if len(shape) == 2:
        raise BadVolumeError(f"has shape {shape}: a slice has a third axis of length 1")
    try:
        grid = Grid((shape[0], shape[1], shape[2]), affine)
    except ValueError as error:
        raise BadVolumeError(str(error)) from None
    return Stored(path, grid, shape[3] if len(shape) == 4 else 1, image)


def _open_slice(path: Path) -> Stored:
    from regard.tasks.images.decoding import BadImageError, open_image

    try:
        pixels = np.asarray(open_image(path))
    except BadImageError as error:
        raise BadVolumeError(str(error)) from None
    height, width, *channels = pixels.shape
    # rows of an image are y: axes in the order of a volume's
    turned = pixels.reshape(height, width, -1).transpose(2, 1, 0)[..., None]
    return Stored(path, Grid((width, height, 1), np.eye(4)), channels[0] if channels else 1, pixels=turned)


def open_channels(paths: Sequence[Path], *, channels: int | None = None) -> list[Stored]:
    """Open the files of one case.

    Args:
        paths: one file with all channels, or one file for each.
        channels: how many there must be; None = as there are.

    Raises:
        UserError: a file that cannot be used, that does not lie where the first does, or another number of channels;
            the file is named.
    """
    opened = [named(path, partial(open_file, path)) for path in paths]
    first = opened[0]
    for other in opened[1:]:
        if other.channels != 1 or first.channels != 1:
            many = other if other.channels != 1 else first
            raise UserError(f"{shown(many.path)} has {many.channels} channels, and each of several files has one")
        check_grids(other, first)
    found = sum(file.channels for file in opened)
    if channels is not None and found != channels:
        what = "a 4-D volume" if first.channels > 1 else count_in_words(found, "channel")
        raise UserError(f"{shown(first.path)} is {what} ({found}), and the network takes {channels}")
    return opened


def check_grids(file: Stored, like: Stored) -> None:
    """Refuse a file whose voxels are not where another's are.

    Raises:
        UserError: both are named.
    """
    if file.grid.shape != like.grid.shape:
        raise UserError(
            f"{shown(file.path)} has shape {file.grid.shape} and {shown(like.path)} {like.grid.shape}: they must agree"
        )
    if not file.grid.agrees_with(like.grid):
        raise UserError(
            f"{shown(file.path)} and {shown(like.path)} have different affines: their voxels are not at the same places"
        )


def named(path: Path, call: Callable[[], Result]) -> Result:
    """What a call gives; its complaint gets the file's name.

    Raises:
        UserError: what the call had to say of the file.
    """
    try:
        return call()
    except BadVolumeError as error:
        raise UserError(f"{shown(path)} {error}") from None


def _floats(values: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, dtype=np.float32)


def _reason(error: BaseException) -> str:
    return shown(str(error) or type(error).__name__, 160)
