"""Segmentation: which voxels of a volume, or pixels of a slice, belong to what; from medical files to masks."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from regard.errors import UserError
from regard.models.medical.segmenter import Segmenter
from regard.tasks.recipe import Recipe
from regard.tasks.task import WHOLE, Extras, Picture, Task, float_type_of
from regard.tasks.volumes.augmentation import Augmentation
from regard.tasks.volumes.cases import Case, Found, find_cases, fold_of
from regard.tasks.volumes.drawing import Draws
from regard.tasks.volumes.inference import Inference
from regard.tasks.volumes.losses import class_loss, region_loss
from regard.tasks.volumes.measuring import (
    Figures,
    cases_csv,
    figures,
    lesions_csv,
    summary,
    sums,
    tables,
    worst_cases,
)
from regard.tasks.volumes.normalising import Normalisation
from regard.tasks.volumes.pictures import legend_of
from regard.tasks.volumes.preparing import Preparation
from regard.tasks.volumes.reading import is_slice, open_channels
from regard.tasks.volumes.regions import BRATS, BRATS_LABELS, Region, regions_of_labels
from regard.tasks.volumes.results import (
    case_pictures,
    first_of,
    inputs_as_cases,
    leaf,
    write_labels,
    write_probabilities,
)
from regard.tasks.volumes.sample import write_sample
from regard.tasks.volumes.settings import SegmentationSettings
from regard.tasks.volumes.store import CaseStore
from regard.wording import count_in_words, listed, shown

WORST_SHOWN = 3
NEEDED = ("monai", "nibabel", "scipy")
NAMED = 5


class Segmentation(Task):
    """Telling what every voxel or pixel belongs to.

    Args:
        settings: how files become what the network sees, and back.
    """

    name: ClassVar[str] = "segmentation"
    metric: ClassVar[str] = "dice"
    better: ClassVar[Literal["lower", "higher"]] = "higher"
    data_format: ClassVar[str] = (
        "a folder in the layout of the Medical Decathlon (dataset.json), of BraTS, of TCGA LGG (slice.tif with "
        "slice_mask.tif), or with folders images and labels"
    )
    Settings: ClassVar[type] = SegmentationSettings
    recipe: ClassVar[Recipe] = Recipe(steps=600, batch=2, learning_rate=2e-3)

    def __init__(self, settings: SegmentationSettings) -> None:
        super().__init__(settings)
        for library in NEEDED:
            if find_spec(library) is None:
                raise UserError(f"segmentation needs {library}: pip install 'regard[medical]'")
        self.channels: tuple[str, ...] = ()
        self.labels: dict[int, str] = {}
        self.regions: tuple[Region, ...] = ()
        self.pictures = False
        self._drops_empty = False
        self._store: CaseStore | None = None
        self._parts: dict[str, list[int]] = {}
        self._augmentation = Augmentation(settings)
        self._draws: Draws | None = None
        self._measured: dict[int, list[Figures]] = {}
        self._measured_for: weakref.ref[nn.Module] | None = None
        self._sample: tempfile.TemporaryDirectory[str] | None = None

    # -- raw files

    def start_from(self, facts: Mapping[str, Any]) -> None:
        """Pretrained weights of another run: what they were trained on decides nothing here, but must be ours."""
        type(self)(self.settings).restore(facts)

    def read(self, path: Path | None, *, cache: Path | None = None) -> None:
        """Look through all cases; patients are dealt into folds, one of which validates."""
        known = bool(self.labels)
        found = find_cases(path if path is not None else self._sample_folder(cache))
        if not found.cases:
            raise UserError(f"{found.source} has no case with a mask")
        if not known:
            self._learn_channels(found)
        allowed = self._allowed(found, known)
        skip = self.settings.on_bad_image == "skip"
        self._store = store = CaseStore(found.cases, self._preparation(), allowed=allowed, cache=cache, skip=skip)
        good = [number for number in range(len(store)) if number not in store.bad]
        self._tell(found, store)
        if not good:
            raise UserError(f"{found.source} has no case that can be used: {next(iter(store.bad.values()))}")
        if not known:
            self._learn_labels(found, store, good)
        self._split(found, good, known)
        self._draws = Draws(store, self._parts["train"], self.settings, drop=self._drops(found))
        self._measured, self._measured_for = {}, None
        self.described = self._description(found, good, given=path is not None)

    def _sample_folder(self, cache: Path | None) -> Path:
        if cache is None:
            self._sample = tempfile.TemporaryDirectory(prefix="regard-sample-")
            cache = Path(self._sample.name)
        return write_sample(cache, "slices" if self.settings.view == "slices" else "volumes")

    def _learn_channels(self, found: Found) -> None:
        first = open_channels(found.cases[0].images)
        count = sum(file.channels for file in first)
        if self.settings.channels_axis == "first" and len(first) == 1:
            count = 1
        named_so = len(found.channels) == count
        self.channels = found.channels if named_so else tuple(f"channel {number + 1}" for number in range(count))
        self.pictures = is_slice(found.cases[0].images[0])

    def _preparation(self) -> Preparation:
        kind: Normalisation = self.settings.normalisation(channels=len(self.channels), pictures=self.pictures)
        return Preparation(self.settings, len(self.channels), kind)

    def _allowed(self, found: Found, known: bool) -> frozenset[int] | None:
        if known:
            return frozenset(self.labels)
        if self._wanted_regions(found) == BRATS:
            return BRATS_LABELS
        return frozenset(found.labels) | {0} if found.labels else None

    def _wanted_regions(self, found: Found) -> tuple[Region, ...]:
        wanted = self.settings.regions
        return BRATS if wanted == "brats" else found.regions if wanted == "auto" else ()

    def _drops(self, found: Found) -> bool:
        return self.settings.empty == "drop" or (self.settings.empty == "auto" and found.regions == BRATS)

    def _learn_labels(self, found: Found, store: CaseStore, good: list[int]) -> None:
        there = sorted({0}.union(*(store.labels[number] for number in good)))
        if len(there) < 2:
            raise UserError(f"{found.source}: every mask is empty, there is nothing to learn")
        names = found.labels or {label: "background" if label == 0 else f"label {label}" for label in there}
        if self._wanted_regions(found) == BRATS:
            names = {0: "background", 1: "necrotic core", 2: "oedema", 4: "enhancing"}
        self.labels = {0: "background", **{label: names[label] for label in sorted(names)}}
        self.regions = self._wanted_regions(found) or regions_of_labels(self.labels)

    def _tell(self, found: Found, store: CaseStore) -> None:
        if store.bad:
            self.bad += [(store.cases[number].name, why) for number, why in store.bad.items()]
            lines = listed(list(store.bad.values()), NAMED)
            self.notes.append(f"{count_in_words(len(store.bad), 'case')} skipped: {lines}")
        if found.without_mask:
            names = listed([shown(name, 80) for name in found.without_mask], NAMED)
            self.notes.append(f"{count_in_words(len(found.without_mask), 'case')} without a mask left out: {names}")
        empty = [case.name for number, case in enumerate(store.cases) if store.labels[number] == {0}]
        if empty:
            self.notes.append(f"{count_in_words(len(empty), 'mask')} with no label at all: {listed(empty, NAMED)}")
        if store.constant:
            names = listed(store.constant, NAMED)
            self.notes.append(f"{count_in_words(len(store.constant), 'case')} with a channel that is constant: {names}")

    def _split(self, found: Found, good: list[int], known: bool) -> None:
        folds = fold_of((found.cases[number].patient for number in good), self.settings.folds)
        patients = len(folds)
        if patients < self.settings.folds:
            if not known:
                told = count_in_words(patients, "patient")
                raise UserError(f"{found.source} has {told}, too few for {self.settings.folds} folds: set --folds")
            self._parts = {"validation": good, "train": [], WHOLE: good}
            return
        validates = {number for number in good if folds[found.cases[number].patient] == self.settings.fold}
        self._parts = {
            "validation": [number for number in good if number in validates],
            "train": [number for number in good if number not in validates],
            WHOLE: good,
        }

    def _description(self, found: Found, good: list[int], *, given: bool) -> str:
        what = "slice" if self.pictures else "volume"
        patients = len({found.cases[number].patient for number in good})
        parts = ", ".join(f"{len(self._parts[part])} {part}" for part in ("train", "validation"))
        channels = count_in_words(len(self.channels), "channel")
        regions = ", ".join(region.name for region in self.regions)
        fold = f"fold {self.settings.fold} of {self.settings.folds}"
        source = found.source if given else f"synthetic, written to {found.source}"
        return (
            f"{source}: {count_in_words(len(good), what)} of {count_in_words(patients, 'patient')} with "
            f"{channels}; {regions}; {parts} ({fold}, by patient)"
        )

    def facts(self) -> dict[str, Any]:
        """Channels, labels and regions."""
        return {
            "channels": list(self.channels),
            "labels": {str(label): name for label, name in self.labels.items()},
            "regions": [region.plain() for region in self.regions],
            "pictures": self.pictures,
        }

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Take channels, labels and regions of an earlier run."""
        self.channels = tuple(str(name) for name in facts["channels"])
        self.labels = {int(label): str(name) for label, name in facts["labels"].items()}
        self.regions = tuple(Region.from_plain(region) for region in facts["regions"])
        self.pictures = bool(facts["pictures"])
        if not self.channels or 0 not in self.labels or not self.regions:
            raise ValueError("there are no channels, labels or regions")

    def model_fields(self) -> dict[str, Any]:
        """Channels, and one output per class or region."""
        outputs = len(self.labels) if self.settings.exclusive else len(self.regions)
        return {"in_channels": len(self.channels), "num_classes": outputs}

    def check_network(self, model: nn.Module, rows: int) -> None:
        """The network must take images for slices and volumes for the other views, of the settings' size."""
        if not isinstance(model, Segmenter):
            raise UserError(f"{type(model).__name__} is no network for segmentation")
        axes = 2 if self.settings.view == "slices" else 3
        if model.spatial_dims != axes:
            views = "slices" if model.spatial_dims == 2 else "whole or windows"
            raise UserError(f"the network takes {model.spatial_dims}-D inputs: set view to {views}")
        if rows < model.fewest_rows:
            raise UserError(f"this network is trained on batches of at least {model.fewest_rows}, got {rows}")
        for side in self.settings.window[:axes]:
            if side % model.stride or side < model.smallest:
                raise UserError(
                    f"size must be a multiple of {model.stride} and at least {model.smallest} for this network, got "
                    f"{self.settings.size}"
                )

    def example(self, rows: int) -> dict[str, Tensor]:
        """Noise, as normalised images are."""
        x, y, z = self.settings.window
        space = (y, x) if self.settings.view == "slices" else (x, y, z)
        return {"x": torch.randn(rows, len(self.channels), *space)}

    # -- training and evaluation

    def batch(self, random: np.random.Generator, rows: int) -> tuple[Tensor, Tensor]:
        """Whole volumes, windows or slices, and what is in them: class numbers, or masks of regions."""
        assert self._draws is not None
        made = [self._draws.draw(random) for _ in range(rows)]
        if self._augmentation:
            made = [self._augmentation(image, labels, random) for image, labels in made]
        images = torch.from_numpy(np.stack([image for image, _ in made]).astype(np.float32, copy=False))
        return images, torch.from_numpy(self._targets(np.stack([labels for _, labels in made])))

    def _targets(self, labels: Any) -> Any:
        if self.settings.exclusive:
            numbers = np.zeros(256, dtype=np.int64)
            numbers[sorted(self.labels)] = np.arange(len(self.labels))
            return numbers[labels]
        return np.stack([np.isin(labels, region.labels) for region in self.regions], axis=1).astype(np.float32)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Dice of the classes over all supervised outputs, or Dice and cross-entropy of the regions."""
        images, targets = batch
        network = cast(Segmenter, model)
        outputs = [logits.float() for logits in network.outputs(images.to(float_type_of(model)))]
        with_ce = self.settings.loss == "dice_ce" or (self.settings.loss == "auto" and not self.settings.exclusive)
        if self.settings.exclusive:
            return class_loss(outputs, targets, cross_entropy_weight=float(with_ce))
        return region_loss(outputs[0], targets, bce_weight=float(with_ce)).total

    def parts(self) -> tuple[str, ...]:
        """Those that hold cases: validation, train, all."""
        return tuple(part for part, numbers in self._parts.items() if numbers)

    def on_request(self) -> tuple[str, ...]:
        """All but the fold that validates: predicting whole cases takes its time."""
        return (WHOLE, "train")

    def evaluation_batches(self, part: str, rows: int) -> Iterator[Tensor]:
        """The numbers of all cases, one at a time."""
        for number in self._parts[part]:
            yield torch.tensor([number])

    @torch.no_grad()
    def score(self, model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        """Overlap, distance of surfaces, and lesions found, in the voxels of the files."""
        measured = [row for number in batch.tolist() for row in self._figures(model, number)]
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in sums(measured).items()}

    def _figures(self, model: nn.Module, number: int) -> list[Figures]:
        assert self._store is not None
        if self._measured_for is None or self._measured_for() is not model:
            self._measured, self._measured_for = {}, weakref.ref(model)
        predicted = self._predicted(model, number)
        case = self._store.cases[number]
        true = self._store.native_labels(number)
        grid = self._store.natives[number]
        self._measured[number] = figures(case.name, case.patient, predicted, true, self.regions, grid)
        return self._measured[number]

    def _predicted(self, model: nn.Module, number: int) -> Any:
        assert self._store is not None
        return self._inference().label_map(model, self._store.prepared(number))

    def _inference(self) -> Inference:
        return Inference(self.settings, tuple(sorted(self.labels)), self.regions)

    def summary(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Mean Dice and HD95 over cases and regions, and the F1 of lesions."""
        return summary(dict(sums), self.regions)

    @torch.no_grad()
    def extras(self, model: nn.Module, part: str) -> Extras:
        """Tables by region, lesion size and patient, a line per case and lesion, and pictures of the worst cases."""
        assert self._store is not None
        numbers = self._parts[part]
        fresh = self._measured_for is None or self._measured_for() is not model
        measured = [
            row
            for number in numbers
            for row in (
                self._figures(model, number) if fresh or number not in self._measured else self._measured[number]
            )
        ]
        by_name = {self._store.cases[number].name: number for number in numbers}
        worst = [by_name[name] for name in worst_cases(measured, WORST_SHOWN)]
        unit = "px" if self.pictures else "mm"
        chosen = self.settings
        return Extras(
            tables=tables(measured, small_ml=chosen.small_ml, min_overlap=chosen.min_overlap, unit=unit),
            pictures=tuple(picture for number in worst for picture in self._pictures(model, number)),
            legend=legend_of(self.regions),
            files=(("cases.csv", cases_csv(measured)), ("lesions.csv", lesions_csv(measured))),
        )

    def _pictures(self, model: nn.Module, number: int) -> tuple[Picture, ...]:
        assert self._store is not None
        case, true = self._store.cases[number], self._store.native_labels(number)
        return case_pictures(
            case,
            first_of(case),
            self._predicted(model, number),
            self.regions,
            self._store.preparation,
            truth=true,
            title=case.name,
        )

    # -- results

    @torch.no_grad()
    def predict(self, model: nn.Module, inputs: list[Path], out: Path) -> list[Path]:
        """A mask for every case, in its own voxels; probabilities where the settings ask for them."""
        cases = inputs_as_cases(inputs)
        network: nn.Module = cast(Any, model).fused() if hasattr(model, "fused") else model
        written: list[Path] = []
        self.leaves = []
        for case in cases:
            try:
                written += self._predict_case(network, case, out)
            except UserError as error:
                if self.settings.on_bad_image == "refuse":
                    raise
                self.bad.append((case.name, str(error)))
        if not written:
            raise UserError(f"there is no case that can be used: {self.bad[0][1]}")
        return written

    def _predict_case(self, model: nn.Module, case: Case, out: Path) -> list[Path]:
        inference, preparation = self._inference(), self._preparation()
        prepared = preparation.image(case.images, scratch=out)
        like, name = first_of(case), case.name.replace("/", "_")
        total = inference.count(prepared.image.shape[1:])
        tick = partial(self._tick, case.name, total)
        notes = [f"channel {self.channels[number]} is constant: it was taken as 0" for number in prepared.constant]
        written: list[Path] = []
        if self.settings.probabilities:
            probabilities = inference.probabilities(model, prepared.image, tick=tick, scratch=out)
            labels = inference.native_labels(probabilities, prepared)
            for number, output in enumerate(self._outputs()):
                values = inference.native_probabilities(probabilities, prepared, number)
                target = out / f"{name}_{_file_name(output)}_probability"
                written.append(write_probabilities(values, like, target))
        else:
            labels = inference.label_map(model, prepared, tick=tick, scratch=out)
        written.insert(0, write_labels(labels, like, out / f"{name}_mask"))
        self.leaves.append(leaf(case, like, labels, self.regions, preparation, notes))
        return written

    def _outputs(self) -> list[str]:
        """Names of the probabilities: all classes but the background, or the regions."""
        if self.settings.exclusive:
            return [name for label, name in sorted(self.labels.items()) if label]
        return [region.name for region in self.regions]

    def _tick(self, name: str, total: int, done: int) -> None:
        if self.watch is not None:
            self.watch(name, done, total)


def _file_name(name: str) -> str:
    """A name as a part of a file's name."""
    return "".join(char if char.isalnum() else "_" for char in name)


__all__ = ["Segmentation", "SegmentationSettings"]
