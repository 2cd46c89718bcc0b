"""IDX files, as MNIST is distributed: a file of images and one of labels, gzipped or not."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from regard.errors import UserError
from regard.tasks.images.labelled import Labelled
from regard.wording import shown

IMAGES, LABELS = 2051, 2049
"""The first number in a file of each kind."""

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Pair = tuple[Path, Path]


def idx_pairs(folder: Path) -> dict[str, Pair]:
    """The pairs of a folder by part: "train" and "test" where both are there, else the one pair that is."""
    images = sorted(folder.glob("*images*idx3*ubyte*"))
    labels = sorted(folder.glob("*labels*idx1*ubyte*"))
    found: dict[str, Pair] = {}
    for path in images:
        part = "train" if path.name.startswith("train") else "test"
        partners = [other for other in labels if other.name.startswith("train") == (part == "train")]
        if partners:
            found.setdefault(part, (path, partners[0]))
    if len(found) == 1:
        return {"": next(iter(found.values()))}
    if found:
        return {part: found[part] for part in ("train", "test")}
    return {"": (images[0], labels[0])} if images and labels else {}


def read_idx(pairs: dict[str, Pair]) -> Labelled:
    """The images of one pair, or of one for training and one for the test.

    Raises:
        UserError: a damaged file, files that do not belong together, or too few images.
    """
    read = {part: _read_pair(*pair) for part, pair in pairs.items()}
    sizes = {pixels.shape[1:] for pixels, _ in read.values()}
    source = shown(next(iter(pairs.values()))[0])
    if len(sizes) > 1:
        raise UserError(f"{source} and the test images are of different sizes")
    labels = np.concatenate([numbers for _, numbers in read.values()])
    learned = next(iter(read.values()))[1]
    counts = np.bincount(learned)
    if np.count_nonzero(counts) < 2 or counts[counts > 0].min() < 2:
        raise UserError(
            f"{shown(next(iter(pairs.values()))[1])}: at least two classes are needed, each with two images (one to "
            "train, one to validate)"
        )
    parts = [part for part, (pixels, _) in read.items() for _ in range(len(pixels))]
    return Labelled(
        images=np.concatenate([pixels for pixels, _ in read.values()])[:, None],
        labels=labels,
        parts=parts if len(read) > 1 else (),
        classes=tuple(str(number) for number in range(int(labels.max()) + 1)),
        source=source,
    )


def _read_pair(images: Path, labels: Path) -> tuple[Bytes, np.ndarray[Any, np.dtype[np.int64]]]:
    pixels, numbers = _idx(images, IMAGES), _idx(labels, LABELS).astype(np.int64)
    if len(pixels) != len(numbers):
        raise UserError(f"{shown(images)} has {len(pixels):,} images and {shown(labels)} {len(numbers):,} labels")
    return pixels, numbers


def _idx(path: Path, magic: int) -> Bytes:
    """The array of an IDX file, gzipped or not.

    Raises:
        UserError: it is truncated or something else.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        found, *shape = struct.unpack_from(f">{1 + (magic & 255)}I", content)
        array = np.frombuffer(content, dtype=np.uint8, offset=4 * (1 + len(shape)))
        if found != magic or len(array) != np.prod(shape, dtype=np.int64):
            raise ValueError(f"its header says {found} with shape {tuple(shape)} and it has {len(array):,} bytes")
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise UserError(f"{shown(path)} is no IDX file: {shown(str(error))}") from None
    return array.reshape(shape)
