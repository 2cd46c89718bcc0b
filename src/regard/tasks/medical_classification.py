"""Classification of radiographs: the finding on an image, from lists or folders of files to predictions."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.errors import UserError
from regard.files import write_atomically
from regard.tasks.data_kind import IMAGE_SUFFIXES
from regard.tasks.images.classifier import ImageClassifier
from regard.tasks.images.folders import images_below, labelled_files
from regard.tasks.images.labelled import Labelled, Numbers
from regard.tasks.images.normal import IMAGENET, Normal
from regard.tasks.images.scores import Confusion
from regard.tasks.images.store import ImageStore, View
from regard.tasks.radiographs.augmentation import RadiographAugmentation
from regard.tasks.radiographs.dicom import DICOM_SUFFIXES, open_radiograph
from regard.tasks.radiographs.lists import RSNA_LABELS, covidx_lists, read_covidx, read_rsna
from regard.tasks.radiographs.overlay import overlay
from regard.tasks.radiographs.scores import log_odds, metrics, roc_points, sums
from regard.tasks.radiographs.settings import RadiographSettings
from regard.tasks.radiographs.synthetic import write_sample
from regard.tasks.recipe import Recipe
from regard.tasks.task import Extras, device_of, float_type_of
from regard.wording import count_in_words, listed, shown

POSITIVE = ("positive", "covid-19", "pneumonia")
"""Names of the class that is looked for, in lower case."""


class MedicalClassification(ImageClassifier):
    """Telling the finding on a radiograph.

    Args:
        settings: how radiographs become batches.
    """

    name: ClassVar[str] = "medical_classification"
    metric: ClassVar[str] = "accuracy"
    better: ClassVar[Literal["lower", "higher"]] = "higher"
    data_format: ClassVar[str] = (
        "a folder with COVIDx lists (train.txt, test.txt), with stage_2_train_labels.csv of the RSNA Pneumonia "
        "Challenge, or with one sub-folder of images per class; images are PNG, JPEG or DICOM"
    )
    Settings: ClassVar[type] = RadiographSettings
    recipe: ClassVar[Recipe] = Recipe(steps=300, batch=32, learning_rate=2e-3)

    def __init__(self, settings: RadiographSettings) -> None:
        super().__init__(settings)
        self._given: Normal | None = None
        self._augmentation: RadiographAugmentation | None = None
        self._weights: Tensor | None = None
        self._positive = 0

    # -- raw files

    def start_from(self, facts: Mapping[str, Any]) -> None:
        """Take statistics from pretrained weights, where they have as many channels."""
        self._given = Normal.from_facts(facts)

    def found(self, path: Path | None, cache: Path | None) -> Labelled:
        """COVIDx lists, the RSNA challenge's labels, class folders, or the sample."""
        if path is None:
            return replace(self._sample(cache), source="generated chest radiographs")
        lists = covidx_lists(path) if path.is_dir() else {}
        if lists:
            if "train" not in lists and not self.classes:
                raise UserError(f"{shown(path)} has {next(iter(lists.values())).name}, but no train.txt")
            return read_covidx(path, lists)
        if (path / RSNA_LABELS).is_file():
            return read_rsna(path, detailed=self.settings.rsna_classes == "detailed")
        return labelled_files(path, fewest=1 if self.classes else 2)

    def _sample(self, cache: Path | None) -> Labelled:
        """Generated files, which are there for as long as the task is."""
        folder = Path(tempfile.mkdtemp(prefix="radiographs-", dir=cache))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        write_sample(folder)
        return read_covidx(folder, covidx_lists(folder))

    def view(self, found: Labelled | None) -> View:
        """Squares of the size that is set, without the rows at the top."""
        size = self.normal.size if self.classes else self.settings.image_size
        return View(size, crop_top=self.settings.crop_top, opened=open_radiograph)

    def learned_normal(self, store: ImageStore) -> Normal:
        """Statistics as the settings say, else those of pretrained weights or of the training part."""
        channels, size = self.settings.channels, store.view.size
        if self.settings.statistics == "imagenet":
            return Normal(channels, size, *IMAGENET)
        if self._given is not None and self._given.channels == channels:
            return Normal(channels, size, self._given.mean, self._given.spread)
        return Normal(channels, size, *store.statistics(self._parts["train"], channels))

    def prepare(self, found: Labelled) -> None:
        """Settle the positive class, weights and augmentation; look at how classes and patients are shared out."""
        settings = self.settings
        self._check_parts(found)
        self._positive = positive_class(self.classes, settings.positive_class)
        counts = np.bincount(self._labels[self._parts["train"]], minlength=len(self.classes))
        self._weights = class_weights(settings.class_weights, counts)
        self._augmentation = None
        if settings.augment:
            self._augmentation = RadiographAugmentation(
                translation=settings.translation,
                rotation=settings.rotation,
                zoom=settings.zoom,
                intensity=settings.intensity,
                flip=settings.flip,
            )

    def _check_parts(self, found: Labelled) -> None:
        for part, numbers in self._parts.items():
            counts = np.bincount(self._labels[numbers], minlength=len(self.classes))
            empty = [name for name, count in zip(self.classes, counts, strict=True) if not count]
            if part == "train" and empty:
                raise UserError(
                    f"{found.source} has no training image of {listed(empty)} once a fifth of the patients validates"
                )
            if len(numbers) and empty:
                self.notes.append(f"the {part} part has no image of {listed(empty)}: what needs one is not told")
        if len(found.patients):
            whose = {
                part: {found.patients[number] for number in numbers.tolist()} for part, numbers in self._parts.items()
            }
            shared = whose["train"] & (whose["validation"] | whose["test"])
            if shared:
                told = count_in_words(len(shared), "patient")
                self.notes.append(f"{told} of the training part also measured on: figures may be too good")

    @torch.no_grad()
    def check_network(self, model: nn.Module, rows: int) -> None:
        """Refuse a network that takes no images of this size."""
        normal = self.normal
        images = torch.empty(1, normal.channels, normal.size, normal.size, device=device_of(model))
        try:
            model.eval()(images)
        except ValueError as error:
            raise UserError(f"image_size={normal.size} does not suit the network: {error}") from None

    def inputs_below(self, path: Path) -> list[Path]:
        """Images and DICOM files."""
        return images_below(path, IMAGE_SUFFIXES | DICOM_SUFFIXES)

    # -- training and evaluation

    def batch(self, random: np.random.Generator, rows: int) -> tuple[Tensor, Tensor]:
        """Images with the wanted share of the positive class, and their classes."""
        chosen = self._drawn(random, rows)
        images = self._squares(chosen)
        if self._augmentation is not None:
            images = self._augmentation.views(images, random)
        return images, torch.from_numpy(self._labels[chosen])

    def _drawn(self, random: np.random.Generator, rows: int) -> Numbers:
        """Numbers of images; one comes twice only where a class has fewer than are wanted."""
        part = self._parts["train"]
        share = self.settings.positive_share
        if not share or rows < 2:
            return part[random.choice(len(part), size=min(rows, len(part)), replace=False)]
        is_positive = self._labels[part] == self._positive
        wanted = min(max(round(share * rows), 1), rows - 1)
        drawn = [
            random.choice(members, size=count, replace=count > len(members))
            for members, count in ((part[is_positive], wanted), (part[~is_positive], rows - wanted))
        ]
        return random.permutation(np.concatenate(drawn))

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy in nats, weighted and smoothed as the settings say."""
        images, labels = batch
        weights = None if self._weights is None else self._weights.to(images.device)
        smoothing = self.settings.label_smoothing
        return F.cross_entropy(self._scores(model, images), labels, weight=weights, label_smoothing=smoothing)

    def score(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Answers, nats, images, and what calibration and the area under the ROC curve are told from."""
        images, labels = batch
        return sums(self._scores(model, images), labels)

    def summary(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Accuracy, area under the ROC curve, sensitivity and predictive value of each class, loss and calibration."""
        return metrics(sums, self.classes)

    @torch.no_grad()
    def extras(self, model: nn.Module, part: str) -> Extras:
        """Which classes are taken for which, by class, calibration, and the ROC curve of the positive class."""
        confusion, odds, truth = Confusion(self.classes), [], []
        for images, labels in self.evaluation_batches(part, 64):
            scores = self._scores(model, images.to(device_of(model))).cpu()
            confusion.add(scores, labels)
            odds.append(log_odds(scores)[:, self._positive_number()])
            truth.append(labels == self._positive_number())
        made = confusion.extras(part)
        points = roc_points(torch.cat(odds).numpy(), torch.cat(truth).numpy())
        name = self.classes[self._positive_number()]
        curve = (f"ROC of {name} on {part}", "1 - specificity", "sensitivity", {name: points})
        return replace(made, lines=(*made.lines, curve)) if points else made

    def _positive_number(self) -> int:
        return positive_class(self.classes, self.settings.positive_class)

    # -- results

    @torch.no_grad()
    def overlays(self, model: nn.Module, files: list[Path], out: Path) -> dict[Path, Path]:
        """The global map, or the finest head's, over some of the images, where the network has one."""
        attention_maps = getattr(model, "attention_maps", None)
        if attention_maps is None:
            return {}
        view, written = self.view(None), {}
        for number, path in enumerate(files[: self.settings.overlays], 1):
            pixels = view.square(view.copy(path), self.normal.channels)
            images = self.normal.of(np.stack([pixels])).to(device_of(model), float_type_of(model))
            found = attention_maps(images)
            maps = found.global_maps or found.scales
            if not maps:
                break
            target = out / f"attention-{number:03}-{path.stem[:80]}.png"
            write_atomically(target, overlay(pixels, maps[0][0, 0]))
            written[path] = target
        return written


def positive_class(classes: list[str], wanted: str) -> int:
    """The number of the class that is looked for.

    Args:
        classes: names by number.
        wanted: a name; empty = the one that is usually looked for, else the last.

    Raises:
        UserError: no such class.
    """
    if wanted:
        if wanted not in classes:
            raise UserError(f"positive_class must be one of {listed(classes, 10)}, got {shown(wanted)!r}")
        return classes.index(wanted)
    lower = [name.lower() for name in classes]
    return next((lower.index(name) for name in POSITIVE if name in lower), len(classes) - 1)


def class_weights(
    wanted: tuple[float, ...] | Literal["none", "balanced"], counts: np.ndarray[Any, np.dtype[np.int64]]
) -> Tensor | None:
    """The weights of classes in the loss; None = all are equal.

    Args:
        wanted: as in the settings.
        counts: training images of each class.

    Raises:
        UserError: another number of weights than of classes.
    """
    if wanted == "none":
        return None
    if wanted == "balanced":
        return torch.from_numpy(counts.sum() / (len(counts) * counts)).float()
    if len(wanted) != len(counts):
        raise UserError(f"class_weights has {len(wanted)} numbers and there are {len(counts)} classes: one each")
    return torch.tensor(wanted)


__all__ = ["MedicalClassification", "RadiographSettings"]
