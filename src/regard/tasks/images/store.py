"""Images ready to be trained on: decoded once to see what they are, kept up to a budget, decoded again beyond it.

What an image looks like never depends on where it is kept: it is made smaller to a side a little above the wanted size
(a copy), and every view is made of the copy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regard.errors import UserError
from regard.tasks.images.decoding import (
    BadImageError,
    Pixels,
    limited,
    open_image,
    pixels_of,
    squared,
    tolerant,
    with_channels,
)
from regard.wording import shown

COPY = 1.5
"""Shorter side of a copy over the side of a view, so that a crop does not have to be enlarged much."""
LUMINANCE = np.array([0.299, 0.587, 0.114])
AT_ONCE = 256
THREADS = 8


@dataclass(frozen=True)
class View:
    """What every image is made into.

    Args:
        size: pixels per side.
        crop_share: as in `decoding.squared`.
        crop_top: share of an image's rows that are cut off at the top before anything else.
        opened: how a file is opened, as `decoding.open_image` does it.
    """

    size: int
    crop_share: float | None = None
    crop_top: float = 0.0
    opened: Callable[..., Image.Image] = open_image

    @property
    def copy_side(self) -> int:
        """The longest shorter side of a copy."""
        return int(np.ceil(self.size * max(COPY, 1 / (self.crop_share or 1.0))))

    def copy(self, path: Path) -> Image.Image:
        """The copy of a file.

        Raises:
            BadImageError: it does not decode.
        """
        image = self.opened(path, at_least=self.copy_side)
        top = round(self.crop_top * image.height)
        return limited(image.crop((0, top, *image.size)) if top else image, self.copy_side)

    def square(self, copy: Image.Image, channels: int) -> Pixels:
        """`(channels, size, size)` bytes."""
        return pixels_of(squared(with_channels(copy, channels), self.size, self.crop_share))


class ImageStore:
    """The images of a data set.

    Args:
        images: files, or `(images, channels, y, x)` bytes.
        view: what they are made into.
        memory_bytes: of copies that are kept; those of further files are made anew whenever they are asked for.
    """

    def __init__(self, images: Sequence[Path] | Pixels, view: View, *, memory_bytes: int) -> None:
        self.images, self.view = images, view
        self.bad: dict[int, str] = {}
        """By number, why an image does not decode."""
        self._kept: list[Pixels | None] = [None] * len(images)
        self._channels = np.full(len(images), 0 if not isinstance(images, np.ndarray) else images.shape[1], np.int8)
        self._sums = np.zeros((len(images), 2, 4))
        self._read(memory_bytes)

    def _read(self, memory_bytes: int) -> None:
        """See every image once, several at a time."""
        make = partial(_made, self.images, self.view)
        left = memory_bytes
        with tolerant(), ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
            for first in range(0, len(self.images), AT_ONCE):
                numbers = range(first, min(first + AT_ONCE, len(self.images)))
                for number, made in zip(numbers, pool.map(make, numbers), strict=True):
                    if isinstance(made, str):
                        self.bad[number] = made
                        continue
                    copy, sums = made
                    self._channels[number] = copy.shape[0]
                    self._sums[number] = sums
                    if copy.nbytes <= left or isinstance(self.images, np.ndarray):
                        self._kept[number] = copy
                        left -= copy.nbytes

    def __len__(self) -> int:
        return len(self.images)

    @property
    def is_colour(self) -> bool:
        """Whether any image has colour."""
        return bool((self._channels > 1).any())

    @property
    def kept(self) -> int:
        """How many copies are in memory."""
        return sum(copy is not None for copy in self._kept)

    def statistics(self, numbers: NDArray[np.int64], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel over the views of some images, where bytes are 0 to 1."""
        columns = slice(0, 3) if channels == 3 else slice(3, 4)
        first, second = self._sums[numbers].sum(axis=0)[:, columns] / (len(numbers) * self.view.size**2)
        spread = np.sqrt((second - first**2).clip(min=0))
        return tuple((first / 255).tolist()), tuple((spread / 255).clip(min=1e-3).tolist())

    def copy(self, number: int) -> Image.Image:
        """The copy of an image.

        Raises:
            UserError: its file has changed since it was seen first.
        """
        kept = self._kept[number]
        if kept is not None:
            return Image.fromarray(kept[0] if kept.shape[0] == 1 else np.ascontiguousarray(kept.transpose(1, 2, 0)))
        path = self.images[number]
        assert isinstance(path, Path)
        try:
            with tolerant():
                return self.view.copy(path)
        except BadImageError as error:
            raise UserError(f"{shown(path)} {error}, and it did decode when training began") from None

    def squares(self, numbers: NDArray[np.int64], channels: int) -> Pixels:
        """`(images, channels, size, size)` bytes: the views of some images."""
        found = np.empty((len(numbers), channels, self.view.size, self.view.size), dtype=np.uint8)
        for place, number in enumerate(numbers.tolist()):
            kept = self._kept[number]
            if kept is not None and kept.shape == found.shape[1:] and self.view.crop_share in (None, 1.0):
                found[place] = kept
            else:
                found[place] = self.view.square(self.copy(number), channels)
        return found


def _made(images: Sequence[Path] | Pixels, view: View, number: int) -> tuple[Pixels, NDArray[np.float64]] | str:
    """The copy of an image with the sums of its view and of its view's squares, or why there is none."""
    image = images[number]
    try:
        if isinstance(image, Path):
            copy = view.copy(image)
        else:
            array = image[0] if image.shape[0] == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
            copy = limited(Image.fromarray(array), view.copy_side)
    except BadImageError as error:
        return str(error)
    pixels = pixels_of(copy)
    return pixels, _sums(view.square(copy, pixels.shape[0]))


def _sums(square: Pixels) -> NDArray[np.float64]:
    """Sums of the values and of their squares: of red, green and blue, and of grey."""
    flat = square.reshape(square.shape[0], -1).astype(np.float64)
    columns = np.stack([*flat, LUMINANCE @ flat]) if len(flat) == 3 else np.broadcast_to(flat, (4, flat.shape[1]))
    return np.stack([columns.sum(axis=1), (columns**2).sum(axis=1)])
