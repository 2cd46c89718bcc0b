"""Labelled images as arrays of one size: a folder of class sub-folders, or scikit-learn's digits; resized and split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regard.errors import UserError
from regard.tasks.images.decoding import Pixels, decode
from regard.tasks.images.folders import files_by_class
from regard.tasks.images.labelled import Labelled, Labels, held_out
from regard.wording import count_in_words, listed, shown

DEFAULT_SIZE = 32
MAX_IMAGES = 10_000


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


def digits() -> Labelled:
    """scikit-learn's handwritten digits, 8 by 8 pixels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return Labelled(
        images=np.rint(found.images * (255 / 16)).astype(np.uint8)[:, None],
        labels=found.target.astype(np.int64),
        parts=(),
        classes=tuple(str(name) for name in found.target_names),
        source="scikit-learn's digits",
    )


def load_images(path: str | None, *, size: int | None) -> ImageSet:
    """Read the user's images, or scikit-learn's digits, at most 10,000 of them.

    Args:
        path: a folder with one sub-folder per class; None = the digits.
        size: pixels per side to which all are resized; None = 32, or 8 for the digits.

    Raises:
        UserError: missing or unreadable data, fewer than two classes, or a class without two images that decode.
    """
    return _sample(size) if path is None else _folder(Path(path), size or DEFAULT_SIZE)


def _sample(size: int | None) -> ImageSet:
    from PIL import Image

    found = digits()
    assert isinstance(found.images, np.ndarray)
    scaled = found.images
    size = size or scaled.shape[2]
    if size != scaled.shape[2]:
        resized = [Image.fromarray(image[0]).resize((size, size), Image.Resampling.BILINEAR) for image in scaled]
        scaled = np.stack([np.asarray(image) for image in resized])[:, None]
    described = f"{len(scaled):,} handwritten digits of {size} by {size} pixels"
    return split(scaled, found.labels, found.classes, found.source, described, ())


def _folder(folder: Path, size: int) -> ImageSet:
    files = files_by_class(folder)
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


def _evenly(paths: Sequence[Path], count: int) -> list[Path]:
    return [paths[index * len(paths) // count] for index in range(count)] if count < len(paths) else list(paths)


def _stack(images: Sequence[Pixels]) -> Pixels:
    """One channel if all are grey, else three everywhere."""
    channels = max(image.shape[0] for image in images)
    return np.stack([np.repeat(image, channels // image.shape[0], axis=0) for image in images])


def split(
    pixels: Pixels, labels: Labels, classes: tuple[str, ...], source: str, described: str, notes: tuple[str, ...]
) -> ImageSet:
    """A fifth of every class validates, at least one image, chosen by a fixed seed."""
    validates = held_out(labels, len(classes))
    return ImageSet(
        pixels[~validates],
        labels[~validates],
        pixels[validates],
        labels[validates],
        classes,
        source,
        f"{described}, {validates.sum():,} of them for validation",
        notes,
    )
