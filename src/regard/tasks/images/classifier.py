"""What all tasks that tell the class of an image share: files read once, split, normalised, batched and measured."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regard.errors import UserError
from regard.files import write_atomically
from regard.tasks.images.folders import images_below
from regard.tasks.images.labelled import Labelled, Labels, Numbers, check_counts, split_parts
from regard.tasks.images.normal import Normal
from regard.tasks.images.predictions import Predictions
from regard.tasks.images.scores import Confusion, metrics, sums
from regard.tasks.images.settings import LARGEST_SIDE
from regard.tasks.images.store import ImageStore, View
from regard.tasks.task import WHOLE, Extras, Task, device_of, float_type_of
from regard.wording import count_in_words, listed, shown

NAMED = 5
"""Bad files that a note names; `Task.bad` has all of them."""
QUICK = 10_000
"""Training images beyond which their accuracy is measured only where it is asked for."""


class ImageClassifier(Task):
    """Telling the class of an image; a subclass is final.

    It says where images are found, what they are made into and how they are normalised, and it makes batches and the
    loss.

    Args:
        settings: how image files become batches; has `on_bad_image` and `memory_mb`.
    """

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.classes: list[str] = []
        self.normal = Normal(1, 8, (0.0,), (1.0,))
        self._store: ImageStore | None = None
        self._labels: Labels = np.zeros(0, dtype=np.int64)
        self._parts: dict[str, Numbers] = {}

    # -- what differs

    @abstractmethod
    def found(self, path: Path | None, cache: Path | None) -> Labelled:
        """The user's images, or the sample's, before any is decoded."""

    @abstractmethod
    def view(self, found: Labelled | None) -> View:
        """What images are made into; None = those that are to be predicted."""

    @abstractmethod
    def learned_normal(self, store: ImageStore) -> Normal:
        """Channels, size and statistics of images, before training."""

    def prepare(self, found: Labelled) -> None:
        """Before training, with all facts known: what else batches need."""

    def inputs_below(self, path: Path) -> list[Path]:
        """The files that a path to predict stands for."""
        return images_below(path)

    def overlays(self, model: nn.Module, files: list[Path], out: Path) -> dict[Path, Path]:
        """Write pictures of what the network looked at in some of the predicted files: PNG files, by input."""
        return {}

    # -- raw files

    def read(self, path: Path | None, *, cache: Path | None = None) -> None:
        """Look through all images; without parts of its own, a fifth of every class validates."""
        known = bool(self.classes)
        found = self.found(path, cache)
        labels = self._numbered(found)
        store = ImageStore(found.images, self.view(found), memory_bytes=self.settings.memory_mb * 10**6)
        self._tell_bad(found, store.bad)
        good = np.array([number for number in range(len(store)) if number not in store.bad], dtype=np.int64)
        if not known:
            check_counts(found, store.bad)
        if not len(good):
            raise UserError(f"{found.source} has no image that decodes")
        self._parts = {**split_parts(found, good), WHOLE: good}
        self._store, self._labels = store, labels
        if not known:
            self.classes = list(found.classes)
            self.normal = self.learned_normal(store)
            self.prepare(found)
        self.described = self._description(found.source, len(good), store.kept)

    def _numbered(self, found: Labelled) -> Labels:
        """Labels by the network's own numbers, where it has been trained on some."""
        if not self.classes or list(found.classes) == self.classes:
            return found.labels
        numbers = {name: number for number, name in enumerate(self.classes)}
        if not set(found.classes) <= set(numbers):
            raise UserError(
                f"{found.source} has the classes {listed(list(found.classes), 10)}, and the network was trained on "
                f"{listed(self.classes, 10)}"
            )
        return np.array([numbers[name] for name in found.classes], dtype=np.int64)[found.labels]

    def _tell_bad(self, found: Labelled, bad: Mapping[int, str]) -> None:
        if not bad:
            return
        told = [(found.name(number), why) for number, why in bad.items()]
        lines = listed([f"{name} ({why})" for name, why in told], NAMED)
        if self.settings.on_bad_image == "refuse":
            raise UserError(f"{found.source} has {count_in_words(len(bad), 'file')} that cannot be used: {lines}")
        self.bad += told
        self.notes.append(f"{count_in_words(len(bad), 'file')} skipped: {lines}")

    def _description(self, source: str, good: int, kept: int) -> str:
        parts = {part: numbers for part, numbers in self._parts.items() if len(numbers) and part != WHOLE}
        sizes = ", ".join(f"{len(numbers):,} {part}" for part, numbers in parts.items())
        images = count_in_words(good, f"{'colour' if self.normal.channels == 3 else 'grey'} image")
        classes = count_in_words(len(self.classes), "class", "classes")
        later = f"; {good - kept:,} are decoded whenever they are needed" if kept < good else ""
        return f"{source}: {images} of {classes}, {self.normal.size} by {self.normal.size} pixels; {sizes}{later}"

    def facts(self) -> dict[str, Any]:
        """Classes, shape and statistics of the training part."""
        return {"classes": self.classes, **self.normal.facts()}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Take classes, shape and statistics of an earlier run."""
        self.classes = [str(name) for name in facts["classes"]]
        if not self.classes:
            raise ValueError("there are no classes")
        self.normal = Normal.from_facts(facts)

    def model_fields(self) -> dict[str, Any]:
        """Channels, size and number of classes."""
        normal = self.normal
        return {"in_channels": normal.channels, "image_size": normal.size, "num_classes": len(self.classes)}

    @torch.no_grad()
    def resize(self, model: nn.Module, size: int) -> None:
        """Take images of another size, if the network does."""
        normal = self.normal
        if not 1 <= size <= LARGEST_SIDE:
            raise UserError(f"--image-size must be from 1 to {LARGEST_SIDE:,}, got {size}")
        images = torch.zeros(1, normal.channels, size, size, device=device_of(model), dtype=float_type_of(model))
        try:
            model.eval()(images)
        except (ValueError, RuntimeError) as error:
            told = shown(str(error), 160)
            raise UserError(f"this network takes images of {normal.size} pixels per side, not {size}: {told}") from None
        self.normal = Normal(normal.channels, size, normal.mean, normal.spread)

    def example(self, rows: int) -> dict[str, Tensor]:
        """Noise, as normalised images are."""
        return {"images": torch.randn(rows, self.normal.channels, self.normal.size, self.normal.size)}

    # -- training and evaluation

    def _squares(self, numbers: Numbers) -> Tensor:
        assert self._store is not None
        return self.normal.of(self._store.squares(numbers, self.normal.channels))

    def _scores(self, model: nn.Module, images: Tensor) -> Tensor:
        return model(images.to(float_type_of(model))).float()

    def parts(self) -> tuple[str, ...]:
        """Those that hold images: validation, test, train, all."""
        return tuple(part for part, numbers in self._parts.items() if len(numbers))

    def on_request(self) -> tuple[str, ...]:
        """All images, and the training part where it is large."""
        return (WHOLE, "train") if len(self._parts["train"]) > QUICK else (WHOLE,)

    def evaluation_batches(self, part: str, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in order."""
        numbers = self._parts[part]
        for start in range(0, len(numbers), rows):
            chosen = numbers[start : start + rows]
            yield self._squares(chosen), torch.from_numpy(self._labels[chosen])

    def score(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Right answers, nats, images, and what calibration is told from."""
        images, labels = batch
        return sums(self._scores(model, images), labels)

    def summary(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Accuracy, accuracy within five answers, mean loss and calibration error."""
        return metrics(sums)

    @torch.no_grad()
    def extras(self, model: nn.Module, part: str) -> Extras:
        """Which classes are taken for which, accuracy by class, and calibration."""
        confusion = Confusion(self.classes)
        for images, labels in self.evaluation_batches(part, 64):
            confusion.add(self._scores(model, images.to(device_of(model))).cpu(), labels)
        return confusion.extras(part)

    # -- results

    @torch.no_grad()
    def predict(self, model: nn.Module, inputs: list[Path], out: Path) -> list[Path]:
        """One `predictions.csv`: class and probability of each file; a folder stands for the images in it."""
        view = self.view(None)
        refuse = self.settings.on_bad_image == "refuse"
        made = Predictions(self.classes, view, self.normal.channels, refuse=refuse)
        made.run(
            [file for path in inputs for file in self.inputs_below(path)],
            lambda pixels: self._scores(model, self.normal.of(pixels).to(device_of(model))).cpu(),
        )
        write_atomically(out / "predictions.csv", made.csv_text())
        written = self.overlays(model, list(made.answers), out)
        self.sheet = made.sheet({path: picture.read_bytes() for path, picture in written.items()})
        self.bad = list(self.sheet.bad)
        return [out / "predictions.csv", *written.values()]
