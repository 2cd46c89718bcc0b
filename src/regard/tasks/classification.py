"""Image classification: the class of an image, from a folder of images to predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.errors import UserError
from regard.files import write_atomically
from regard.tasks.images.arrays import DEFAULT_SIZE, digits
from regard.tasks.images.augmentation import Augmentation, Level, Mixing, need_for_augmentation, seeded
from regard.tasks.images.decoding import with_channels
from regard.tasks.images.folders import images_below, labelled_files
from regard.tasks.images.idx import idx_pairs, read_idx
from regard.tasks.images.labelled import Labelled, Labels, Numbers, check_counts, split_parts
from regard.tasks.images.normal import IMAGENET, Normal
from regard.tasks.images.predictions import Predictions
from regard.tasks.images.scores import Confusion, metrics, sums
from regard.tasks.images.settings import LARGEST_SIDE, ClassificationSettings
from regard.tasks.images.store import ImageStore, View
from regard.tasks.recipe import Recipe
from regard.tasks.task import WHOLE, Extras, Task, device_of, float_type_of
from regard.wording import count_in_words, listed, shown

NAMED = 5
"""Bad files that a note names; `Task.bad` has all of them."""
QUICK = 10_000
"""Training images beyond which their accuracy is measured only where it is asked for."""


class Classification(Task):
    """Telling the class of an image.

    Args:
        settings: how image files become batches.
    """

    name: ClassVar[str] = "classification"
    metric: ClassVar[str] = "accuracy"
    better: ClassVar[Literal["lower", "higher"]] = "higher"
    data_format: ClassVar[str] = (
        "a folder with one sub-folder of images per class, or with train and val folders of such, or with IDX files"
    )
    Settings: ClassVar[type] = ClassificationSettings
    recipe: ClassVar[Recipe] = Recipe(steps=600, batch=32, learning_rate=2e-3)

    def __init__(self, settings: ClassificationSettings) -> None:
        super().__init__(settings)
        self.classes: list[str] = []
        self.normal = Normal(1, 8, (0.0,), (1.0,))
        self._given: Normal | None = None
        self._store: ImageStore | None = None
        self._labels: Labels = np.zeros(0, dtype=np.int64)
        self._parts: dict[str, Numbers] = {}
        self._augmentation: Augmentation | None = None

    # -- raw files

    def start_from(self, facts: Mapping[str, Any]) -> None:
        """Take channels, size and statistics from pretrained weights, where the settings leave them open."""
        self._given = Normal.from_facts(facts)

    def read(self, path: Path | None, *, cache: Path | None = None) -> None:
        """Look through all images; without parts of its own, a fifth of every class validates."""
        known = bool(self.classes)
        found = self._found(path)
        labels = self._numbered(found)
        store = ImageStore(found.images, self._view(found), memory_bytes=self.settings.memory_mb * 10**6)
        self._tell_bad(found, store.bad)
        good = np.array([number for number in range(len(store)) if number not in store.bad], dtype=np.int64)
        if not known:
            check_counts(found, store.bad)
        if not len(good):
            raise UserError(f"{found.source} has no image that decodes")
        self._parts = {**split_parts(found, good), WHOLE: good}
        self._store, self._labels = store, labels
        if not known:
            self._learn(found, store)
            self._augmentation = self._plan_augmentation(found)
        self.described = self._description(found.source, len(good), store.kept)

    def _found(self, path: Path | None) -> Labelled:
        if path is None:
            return digits()
        pairs = idx_pairs(path) if path.is_dir() else {}
        return read_idx(pairs) if pairs else labelled_files(path, fewest=1 if self.classes else 2)

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

    def _view(self, found: Labelled) -> View:
        if self.classes:
            return View(self.normal.size, self.settings.crop_share)
        own = found.images.shape[2] if isinstance(found.images, np.ndarray) else DEFAULT_SIZE
        given = self._given.size if self._given is not None else 0
        return View(self.settings.image_size or given or own, self.settings.crop_share)

    def _tell_bad(self, found: Labelled, bad: Mapping[int, str]) -> None:
        if not bad:
            return
        told = [(found.name(number), why) for number, why in bad.items()]
        lines = listed([f"{name} ({why})" for name, why in told], NAMED)
        if self.settings.on_bad_image == "refuse":
            raise UserError(f"{found.source} has {count_in_words(len(bad), 'file')} that cannot be used: {lines}")
        self.bad += told
        self.notes.append(f"{count_in_words(len(bad), 'file')} skipped: {lines}")

    def _learn(self, found: Labelled, store: ImageStore) -> None:
        """Classes, channels, size and statistics, from the settings, the pretrained weights or the training part."""
        settings, given, size = self.settings, self._given, store.view.size
        by_imagenet = settings.statistics == "imagenet"
        own = 3 if by_imagenet or store.is_colour else 1
        channels = settings.channels or (given.channels if given is not None else own)
        if by_imagenet and channels != 3:
            raise UserError("statistics=imagenet is of colour images, and the pretrained network takes grey ones")
        self.classes = list(found.classes)
        if by_imagenet:
            self.normal = Normal(channels, size, *IMAGENET)
        elif given is not None and given.channels == channels:
            self.normal = Normal(channels, size, given.mean, given.spread)
        else:
            self.normal = Normal(channels, size, *store.statistics(self._parts["train"], channels))

    def _plan_augmentation(self, found: Labelled) -> Augmentation | None:
        level: Level = "light" if found.are_files else "none"
        if self.settings.augment != "auto":
            level = self.settings.augment
        need_for_augmentation(level, mixes=bool(self._mixing()))
        if level == "none":
            return None
        channels = self.normal.channels
        flip = channels == 3 if self.settings.flip is None else self.settings.flip
        return Augmentation(level=level, size=self.normal.size, channels=channels, flip=flip)

    def _mixing(self) -> Mixing:
        return Mixing(self.settings.mixup, self.settings.cutmix, len(self.classes))

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

    def batch(self, random: np.random.Generator, rows: int) -> tuple[Tensor, Tensor]:
        """Images drawn without repetition, and their classes, or shares of classes where images are mixed."""
        part = self._parts["train"]
        chosen = part[random.choice(len(part), size=min(rows, len(part)), replace=False)]
        labels = torch.from_numpy(self._labels[chosen])
        mixing = self._mixing()
        if self._augmentation is None and not mixing:
            return self._squares(chosen), labels
        with seeded(random):
            images = self._augmented(chosen, self._augmentation)
            return mixing.mixed(images, labels) if mixing else (images, labels)

    def _augmented(self, numbers: Numbers, augmentation: Augmentation | None) -> Tensor:
        if augmentation is None:
            return self._squares(numbers)
        assert self._store is not None
        copies = [with_channels(self._store.copy(number), self.normal.channels) for number in numbers.tolist()]
        return augmentation.erased(self.normal.of(augmentation.views(copies)))

    def _scores(self, model: nn.Module, images: Tensor) -> Tensor:
        return model(images.to(float_type_of(model))).float()

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy in nats, with the targets smoothed as the settings say."""
        images, targets = batch
        return F.cross_entropy(self._scores(model, images), targets, label_smoothing=self.settings.label_smoothing)

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
        view = View(self.normal.size, self.settings.crop_share)
        refuse = self.settings.on_bad_image == "refuse"
        made = Predictions(self.classes, view, self.normal.channels, refuse=refuse)
        made.run(
            [file for path in inputs for file in images_below(path)],
            lambda pixels: self._scores(model, self.normal.of(pixels).to(device_of(model))).cpu(),
        )
        write_atomically(out / "predictions.csv", made.csv_text())
        self.sheet = made.sheet()
        self.bad = list(self.sheet.bad)
        return [out / "predictions.csv"]


__all__ = ["Classification", "ClassificationSettings"]
