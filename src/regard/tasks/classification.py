"""Image classification: the class of an image, from a folder of images to predictions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.errors import UserError
from regard.tasks.images.arrays import DEFAULT_SIZE, digits
from regard.tasks.images.augmentation import Augmentation, Level, Mixing, need_for_augmentation, seeded
from regard.tasks.images.classifier import ImageClassifier
from regard.tasks.images.decoding import with_channels
from regard.tasks.images.folders import labelled_files
from regard.tasks.images.idx import idx_pairs, read_idx
from regard.tasks.images.labelled import Labelled, Numbers
from regard.tasks.images.normal import IMAGENET, Normal
from regard.tasks.images.settings import ClassificationSettings
from regard.tasks.images.store import ImageStore, View
from regard.tasks.recipe import Recipe


class Classification(ImageClassifier):
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
        self._given: Normal | None = None
        self._augmentation: Augmentation | None = None

    # -- raw files

    def start_from(self, facts: Mapping[str, Any]) -> None:
        """Take channels, size and statistics from pretrained weights, where the settings leave them open."""
        self._given = Normal.from_facts(facts)

    def found(self, path: Path | None, cache: Path | None) -> Labelled:
        """Class folders, IDX files, or the digits."""
        if path is None:
            return digits()
        pairs = idx_pairs(path) if path.is_dir() else {}
        return read_idx(pairs) if pairs else labelled_files(path, fewest=1 if self.classes else 2)

    def view(self, found: Labelled | None) -> View:
        """Squares of the size that is set, or pretrained weights or the data suggest."""
        if self.classes or found is None:
            return View(self.normal.size, self.settings.crop_share)
        own = found.images.shape[2] if isinstance(found.images, np.ndarray) else DEFAULT_SIZE
        given = self._given.size if self._given is not None else 0
        return View(self.settings.image_size or given or own, self.settings.crop_share)

    def learned_normal(self, store: ImageStore) -> Normal:
        """Channels, size and statistics, from the settings, the pretrained weights or the training part."""
        settings, given, size = self.settings, self._given, store.view.size
        by_imagenet = settings.statistics == "imagenet"
        own = 3 if by_imagenet or store.is_colour else 1
        channels = settings.channels or (given.channels if given is not None else own)
        if by_imagenet and channels != 3:
            raise UserError("statistics=imagenet is of colour images, and the pretrained network takes grey ones")
        if by_imagenet:
            return Normal(channels, size, *IMAGENET)
        if given is not None and given.channels == channels:
            return Normal(channels, size, given.mean, given.spread)
        return Normal(channels, size, *store.statistics(self._parts["train"], channels))

    def prepare(self, found: Labelled) -> None:
        """Settle how images are augmented."""
        self._augmentation = self._plan_augmentation(found)

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

    # -- training

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

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy in nats, with the targets smoothed as the settings say."""
        images, targets = batch
        return F.cross_entropy(self._scores(model, images), targets, label_smoothing=self.settings.label_smoothing)


__all__ = ["Classification", "ClassificationSettings"]
