"""Image classification: the class of an image; accuracy, a confusion table, and predictions as CSV."""

from __future__ import annotations

import csv
import gzip
import io
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.errors import UserError
from regard.files import write_atomically
from regard.tasks.data_kind import IMAGE_SUFFIXES
from regard.tasks.image_files import ImageSet, decode, load_images, split
from regard.tasks.recipe import Recipe
from regard.tasks.task import Extras, Task, device_of
from regard.wording import shown

IDX_IMAGES, IDX_LABELS = 2051, 2049
LARGEST_TABLE = 20


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How image files become batches.

    Args:
        image_size: pixels per side to which all are resized; 0 = 32, or the size that the digits and IDX files have.
    """

    image_size: int = 0

    def __post_init__(self) -> None:
        if self.image_size < 0:
            raise ValueError(f"image_size must not be negative, got {self.image_size}")


class Images(Task):
    """Telling the class of an image.

    Args:
        settings: how image files become batches.
    """

    name: ClassVar[str] = "images"
    metric: ClassVar[str] = "accuracy"
    better: ClassVar[Literal["lower", "higher"]] = "higher"
    data_format: ClassVar[str] = "a folder with one sub-folder of images per class, or with a pair of IDX files"
    Settings: ClassVar[type] = ImageSettings
    recipe: ClassVar[Recipe] = Recipe(steps=600, batch=32, learning_rate=2e-3)

    def __init__(self, settings: ImageSettings) -> None:
        super().__init__(settings)
        self.classes: list[str] = []
        self.shape = (1, 8, 8)
        self.mean: list[float] = []
        self.spread: list[float] = []
        self._parts: dict[str, tuple[Tensor, Tensor]] = {}

    # -- raw files

    def read(self, path: Path | None, *, cache: Path | None = None) -> None:
        """Decode all images; a fifth of every class validates."""
        size = self.shape[1] if self.classes else self.settings.image_size or None
        idx = None if path is None or not path.is_dir() else _idx_pair(path)
        found = (
            _read_idx(*idx, size=size)
            if idx is not None
            else load_images(None if path is None else str(path), size=size)
        )
        if self.classes and list(found.classes) != self.classes:
            raise UserError(
                f"{found.source} has the classes {', '.join(found.classes)}, and the network was trained on "
                f"{', '.join(self.classes)}"
            )
        self.notes += found.notes
        self.described = f"{found.source}: {found.description}"
        if not self.classes:
            self._learn(found)
        self._parts = {
            "train": (self._normalised(found.train), torch.from_numpy(found.train_labels)),
            "validation": (self._normalised(found.validation), torch.from_numpy(found.validation_labels)),
        }

    def _learn(self, found: ImageSet) -> None:
        pixels = found.train / 255.0
        self.classes, self.shape = list(found.classes), tuple(found.train.shape[1:])
        self.mean = pixels.mean(axis=(0, 2, 3)).tolist()
        self.spread = pixels.std(axis=(0, 2, 3)).clip(min=1e-3).tolist()

    def _normalised(self, pixels: np.ndarray[Any, Any]) -> Tensor:
        channels = self.shape[0]
        if pixels.shape[1] != channels:
            grey = pixels.mean(axis=1, keepdims=True)
            pixels = grey if channels == 1 else np.repeat(grey, channels, axis=1)
        mean, spread = (torch.tensor(values)[:, None, None] for values in (self.mean, self.spread))
        return (torch.from_numpy(np.ascontiguousarray(pixels)).float() / 255 - mean) / spread

    def facts(self) -> dict[str, Any]:
        """Classes, shape and statistics of the training part."""
        return {"classes": self.classes, "shape": list(self.shape), "mean": self.mean, "spread": self.spread}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Take classes, shape and statistics of an earlier run."""
        self.classes = [str(name) for name in facts["classes"]]
        channels, height, width = (int(number) for number in facts["shape"])
        self.shape = (channels, height, width)
        self.mean, self.spread = ([float(value) for value in facts[name]] for name in ("mean", "spread"))

    def model_fields(self) -> dict[str, Any]:
        """Channels, size and number of classes."""
        return {"in_channels": self.shape[0], "image_size": self.shape[1], "num_classes": len(self.classes)}

    # -- training and evaluation

    def batch(self, random: np.random.Generator, rows: int) -> tuple[Tensor, Tensor]:
        """Images drawn without repetition, and their classes."""
        images, labels = self._parts["train"]
        chosen = torch.from_numpy(random.choice(len(images), size=min(rows, len(images)), replace=False))
        return images[chosen], labels[chosen]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy in nats."""
        images, labels = batch
        return F.cross_entropy(model(images).float(), labels)

    def parts(self) -> tuple[str, ...]:
        """A fifth of every class, or the rest."""
        return ("validation", "train")

    def evaluation_batches(self, part: str, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in order."""
        images, labels = self._parts[part]
        for start in range(0, len(images), rows):
            yield images[start : start + rows], labels[start : start + rows]

    def score(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Correct answers, nats and images."""
        images, labels = batch
        scores = model(images).float()
        return {
            "right": (scores.argmax(dim=1) == labels).sum(),
            "nats": F.cross_entropy(scores, labels, reduction="sum"),
            "images": torch.tensor(len(labels)),
        }

    def summary(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Accuracy and mean loss."""
        return {"accuracy": sums["right"] / sums["images"], "loss": sums["nats"] / sums["images"]}

    @torch.no_grad()
    def extras(self, model: nn.Module, part: str) -> Extras:
        """Which classes are taken for which, where they fit into a table."""
        if len(self.classes) > LARGEST_TABLE:
            return Extras()
        counts = torch.zeros(len(self.classes), len(self.classes), dtype=torch.int64)
        for images, labels in self.evaluation_batches(part, 64):
            answers = model(images.to(device_of(model))).argmax(dim=1).cpu()
            for truth, answer in zip(labels.tolist(), answers.tolist(), strict=True):
                counts[truth, answer] += 1
        rows = tuple((name, *map(str, line.tolist())) for name, line in zip(self.classes, counts, strict=True))
        return Extras(tables=((f"Confusion on {part}: rows are true classes", ("class", *self.classes), rows),))

    # -- results

    @torch.no_grad()
    def predict(self, model: nn.Module, inputs: list[Path], out: Path) -> list[Path]:
        """One `predictions.csv`: file, class and probability; a folder stands for the images in it."""
        files = [file for path in inputs for file in _image_files(path)]
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["file", "class", "probability"])
        for file in files:
            pixels = decode(file, self.shape[1])
            if pixels is None:
                raise UserError(f"{shown(file)} does not decode as an image")
            scores = model(self._normalised(pixels[None]).to(device_of(model))).float().softmax(dim=1)[0]
            best = int(scores.argmax())
            # a name that is not UTF-8 must not keep the table from being written
            name = os.fsencode(file).decode("utf-8", errors="replace")
            writer.writerow([name, self.classes[best], f"{float(scores[best]):.4f}"])
        write_atomically(out / "predictions.csv", table.getvalue())
        return [out / "predictions.csv"]


def _image_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = (file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    found = sorted(file for file in files if file.is_file() and not file.name.startswith("."))
    if not found:
        raise UserError(f"{shown(path)} has no images in it")
    return found


def _idx_pair(folder: Path) -> tuple[Path, Path] | None:
    """A file of images and one of labels, as MNIST is distributed."""
    images = sorted(folder.glob("*images*idx3*ubyte*"))
    labels = sorted(folder.glob("*labels*idx1*ubyte*"))
    return (images[0], labels[0]) if images and labels else None


def _read_idx(images: Path, labels: Path, *, size: int | None) -> ImageSet:
    pixels, numbers = _idx(images, IDX_IMAGES), _idx(labels, IDX_LABELS).astype(np.int64)
    if len(pixels) != len(numbers):
        raise UserError(f"{shown(images)} has {len(pixels):,} images and {shown(labels)} {len(numbers):,} labels")
    counts = np.bincount(numbers)
    if np.count_nonzero(counts) < 2 or counts[counts > 0].min() < 2:
        raise UserError(
            f"{shown(labels)}: at least two classes are needed, each with two images (one to train, one to validate)"
        )
    size = size or pixels.shape[1]
    if pixels.shape[1:] != (size, size):
        from PIL import Image

        resized = [Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR) for image in pixels]
        pixels = np.stack([np.asarray(image) for image in resized])
    classes = tuple(str(number) for number in range(int(numbers.max()) + 1))
    described = f"{len(pixels):,} images of {pixels.shape[1]} by {pixels.shape[2]} pixels"
    return split(pixels[:, None], numbers, classes, shown(images), described, ())


def _idx(path: Path, magic: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
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
