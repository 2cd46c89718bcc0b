"""One image file as pixels: any mode, depth and orientation, the first frame of several; what is none says why.

Only formats that Pillow decodes by itself are tried, so that no file starts another program, whatever its name says.
"""

from __future__ import annotations

import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from regard.wording import shown

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "ICO")
DRAFT = 2
"""A JPEG is decoded at the smallest of its scales that is at least so many times as large as what is wanted."""

Pixels = NDArray[np.uint8]


class BadImageError(Exception):
    """A file that is no image, or a damaged one; the message says why, to follow the file's name."""


@contextmanager
def tolerant() -> Iterator[None]:
    """While many files are decoded: what decodes in spite of a warning of Pillow's is used, and nothing is printed.

    Python keeps one list of filters for all threads, so it is set around them and not within.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def open_image(path: Path, *, at_least: int = 0) -> Image.Image:
    """The image in a file, upright, in mode L or RGB.

    Args:
        path: the file.
        at_least: pixels per side that are wanted; 0 = all that there are.

    Raises:
        BadImageError: it is no image, damaged, or so large that decoding it would exhaust the memory.
    """
    try:
        described = path.stat()
        if not stat.S_ISREG(described.st_mode):
            raise BadImageError("is not a file")
        if described.st_size == 0:
            raise BadImageError("is empty")
        with Image.open(path, formats=_formats()) as opened:
            _check_size(opened)
            if at_least and opened.format == "JPEG":
                opened.draft(None, (DRAFT * at_least, DRAFT * at_least))
            return _eight_bits(_upright(opened))
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError("is not an image") from None
    except Image.DecompressionBombError:
        raise BadImageError("has too many pixels to decode") from None
    except OSError as error:
        why = error.strerror or str(error) or "it is damaged"
        raise BadImageError(f"does not decode: {shown(why, 120)}") from None
    except Exception as error:
        # a damaged file can raise anything in a decoder: no type of error is a promise of Pillow's
        raise BadImageError(f"does not decode: {shown(str(error) or type(error).__name__, 120)}") from None


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_size(image: Image.Image) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise BadImageError(f"has {image.width:,} by {image.height:,} pixels, too many to decode")


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        # metadata that cannot be read are no reason to lose the picture
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """Mode L for grey images of any depth, RGB for all others; transparency is dropped."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_scaled(image))
    if image.mode in ("1", "L", "LA", "La"):
        return image.convert("L")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _scaled(image: Image.Image) -> Pixels:
    """Grey of 16 or 32 bits, or of floating point, as bytes; the scale is told from the mode and the largest value."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    largest = float(values.max(initial=0.0))
    if image.mode.startswith("I;16") or 255 < largest <= 65_535:
        values = values / 257
    elif image.mode == "F" and largest <= 1:
        values = values * 255
    elif largest > 65_535:
        values = values * (255 / largest)
    return np.rint(values).clip(0, 255).astype(np.uint8)


def limited(image: Image.Image, side: int) -> Image.Image:
    """The image, made smaller where its shorter side is longer than `side`."""
    shorter = min(image.size)
    if shorter <= side:
        return image
    width, height = (max(1, round(length * side / shorter)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def squared(image: Image.Image, size: int, crop_share: float | None = None) -> Image.Image:
    """The image as a square of `size` pixels per side.

    Args:
        image: of any size.
        size: pixels per side.
        crop_share: None = the whole image, squeezed; else the square in its middle with this share of the shorter side.
    """
    if image.size == (size, size) and crop_share in (None, 1.0):
        return image
    if crop_share is None:
        return image.resize((size, size), Image.Resampling.BILINEAR)
    side = min(image.size) * crop_share
    left, top = ((length - side) / 2 for length in image.size)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """The image in grey (1) or in colour (3)."""
    return image.convert("L" if channels == 1 else "RGB")


def pixels_of(image: Image.Image) -> Pixels:
    """`(channels, y, x)` bytes of an image in mode L or RGB."""
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def decode(path: Path, size: int) -> Pixels | None:
    """A file as `(channels, size, size)`, or None for what is not an image or too large to decode."""
    with tolerant():
        try:
            return pixels_of(squared(open_image(path, at_least=size), size))
        except BadImageError:
            return None
