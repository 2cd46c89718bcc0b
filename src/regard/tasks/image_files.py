"""Labelled images as users have them: a folder of class sub-folders, or scikit-learn's digits; resized and split."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regard.errors import UserError
from regard.wording import count_in_words, listed, shown

DEFAULT_SIZE = 32
MAX_IMAGES = 10_000
VALIDATION_SHARE = 5
_SPLIT_SEED = 0

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class ImageSet:
    """Labelled images of one size, in two parts.

    Args:
        train: `(images, channels, size, size)` bytes.
        train_labels: `(images,)` numbers of classes.
        validation: as `train`.
        validation_labels: as `train_labels`.
        classes: names by number.
        source: where they come from.
        description: one line for the report.
        notes: what the user should know.
    """

    train: Pixels
    train_labels: Labels
    validation: Pixels
    validation_labels: Labels
    classes: tuple[str, ...]
    source: str
    description: str
    notes: tuple[str, ...] = ()

    def chance(self) -> float:
        """Accuracy of always answering the most frequent class of the training part."""
        most = int(np.bincount(self.train_labels).argmax())
        return float((self.validation_labels == most).mean())


def load_images(path: str | None, *, size: int | None) -> ImageSet:
    """Read the user's images, or scikit-learn's digits.

    Args:
        path: a folder with one sub-folder per class; None = the digits.
        size: pixels per side to which all are resized; None = 32, or 8 for the digits.

    Raises:
        UserError: missing or unreadable data, fewer than two classes, or a class without two images that decode.
    """
    return _digits(size) if path is None else _folder(Path(path), size or DEFAULT_SIZE)


def _digits(size: int | None) -> ImageSet:
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    scaled = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    size = size or scaled.shape[1]
    if size != scaled.shape[1]:
        resized = [Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR) for image in scaled]
        scaled = np.stack([np.asarray(image) for image in resized])
    classes = tuple(str(name) for name in digits.target_names)
    described = f"{len(scaled):,} handwritten digits of {size} by {size} pixels"
    labels = digits.target.astype(np.int64)
    return split(scaled[:, None], labels, classes, "scikit-learn's digits", described, ())


# --------------------------------------------------------------------------------------------------- a user's folder


def _folder(folder: Path, size: int) -> ImageSet:
    files = _files_by_class(folder)
    notes = []
    total = sum(map(len, files.values()))
    if total > MAX_IMAGES:
        keep = MAX_IMAGES / total
        files = {name: _evenly(paths, max(2, int(len(paths) * keep))) for name, paths in files.items()}
        notes.append(f"{sum(map(len, files.values())):,} of {total:,} images are used")
    images: list[Pixels] = []
    labels: list[int] = []
    undecodable: list[str] = []
    for number, (name, paths) in enumerate(files.items()):
        decoded = [(path, decode(path, size)) for path in paths]
        bad = [shown(path.relative_to(folder), 80) for path, image in decoded if image is None]
        good = [image for _, image in decoded if image is not None]
        if len(good) < 2:
            why = f"; these do not decode: {listed(bad)}" if bad else ""
            raise UserError(
                f"class {shown(name, 80)!r} in {shown(folder)} has {count_in_words(len(good), 'image')}, "
                f"and at least 2 are needed (one to train, one to validate){why}"
            )
        images += good
        labels += [number] * len(good)
        undecodable += bad
    if undecodable:
        notes.append(f"{count_in_words(len(undecodable), 'file')} skipped, not images: {listed(undecodable)}")
    pixels = _stack(images)
    colour = "grey" if pixels.shape[1] == 1 else "colour"
    described = (
        f"{shown(folder.name, 80)}: {len(images):,} {colour} images of {len(files)} classes, "
        f"resized to {size} by {size} pixels"
    )
    classes = tuple(shown(name, 80) for name in files)
    return split(pixels, np.array(labels, dtype=np.int64), classes, shown(folder), described, tuple(notes))


def _files_by_class(folder: Path) -> dict[str, list[Path]]:
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise UserError(f"{shown(folder)} is not a folder: images come as one sub-folder per class")
        names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except FileNotFoundError:
        raise UserError(f"there is no folder {shown(folder)}") from None
    except OSError as error:
        raise UserError(f"cannot read {shown(folder)}: {error.strerror}") from None
    if len(names) < 2:
        found = f"only {shown(names[0], 80)!r}" if names else "no sub-folder"
        raise UserError(f"{shown(folder)} has {found}: at least two classes are needed, one sub-folder each")
    return {name: _regular_files(folder / name) for name in names}


def _regular_files(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read {shown(error.filename)}: {error.strerror}")

    found = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place, name) for name in sorted(names) if not name.startswith(".")]
    return [path for path in found if path.is_file()]


def _evenly(paths: Sequence[Path], count: int) -> list[Path]:
    return [paths[index * len(paths) // count] for index in range(count)] if count < len(paths) else list(paths)


def decode(path: Path, size: int) -> Pixels | None:
    """`(channels, size, size)`, or None for what is not an image (or one of a size meant to exhaust memory)."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            # oversized images and damaged metadata: what decodes in spite of a warning is used
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                upright = ImageOps.exif_transpose(opened)
                grey = upright.mode in ("1", "L", "LA")
                small = upright.convert("L" if grey else "RGB").resize((size, size), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, TypeError, EOFError, Warning, Image.DecompressionBombError):
        return None
    pixels = np.asarray(small)
    return pixels[None] if grey else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _stack(images: Sequence[Pixels]) -> Pixels:
    """One channel if all are grey, else three everywhere."""
    channels = max(image.shape[0] for image in images)
    return np.stack([np.repeat(image, channels // image.shape[0], axis=0) for image in images])


def split(
    pixels: Pixels, labels: Labels, classes: tuple[str, ...], source: str, described: str, notes: tuple[str, ...]
) -> ImageSet:
    """A fifth of every class validates, at least one image, chosen by a fixed seed."""
    random = np.random.default_rng(_SPLIT_SEED)
    validation: list[int] = []
    for number in range(len(classes)):
        members = random.permutation(np.flatnonzero(labels == number))
        validation += members[: max(1, len(members) // VALIDATION_SHARE)].tolist()
    held_out = np.zeros(len(labels), dtype=bool)
    held_out[validation] = True
    return ImageSet(
        pixels[~held_out],
        labels[~held_out],
        pixels[held_out],
        labels[held_out],
        classes,
        source,
        f"{described}, {held_out.sum():,} of them for validation",
        notes,
    )
