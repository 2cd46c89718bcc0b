"""Classifying whole multivariate series of unequal length, from `.ts` or CSV files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from regard.errors import UserError
from regard.files import write_atomically
from regard.tasks.evaluation import to_device
from regard.tasks.recipe import Recipe
from regard.tasks.series.csv_table import by_number, csv_text, number_text, result_file
from regard.tasks.series.labelled_series import LabelledSeries, read_labelled
from regard.tasks.series.ragged import padded
from regard.tasks.series.sample_series import waves
from regard.tasks.series.splitting import hold_out
from regard.tasks.series.standardising import Scaler, fit_scaler
from regard.tasks.task import Extras, Task, device_of
from regard.wording import count_in_words, listed, shown

LARGEST_CONFUSION = 30
MISTAKES = 20
ROWS = 32


@dataclass(frozen=True, kw_only=True)
class SeriesClassificationSettings:
    """How series are split.

    Args:
        validation_share: share of each class's training series that is not trained on.
        split_seed: of the choice of those.
    """

    validation_share: float = 0.1
    split_seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share must be between 0 and 1, got {self.validation_share}")
        if self.split_seed < 0:
            raise ValueError(f"split_seed must not be negative, got {self.split_seed}")


class SeriesBatch(NamedTuple):
    """Padded series, standardised."""

    series: Tensor
    """`(rows, steps, channels)`"""
    mask: Tensor
    """`(rows, steps)`, True = real time step"""
    classes: Tensor
    """`(rows,)`"""


class SeriesClassification(Task):
    """Classifying whole series.

    Args:
        settings: how series are split.
    """

    name: ClassVar[str] = "series_classification"
    metric: ClassVar[str] = "accuracy"
    better: ClassVar[Literal["lower", "higher"]] = "higher"
    data_format: ClassVar[str] = (
        "a folder with *_TRAIN.ts and *_TEST.ts, one .ts file, or a CSV file with columns series, label, channels"
    )
    Settings: ClassVar[type] = SeriesClassificationSettings
    recipe: ClassVar[Recipe] = Recipe(steps=200, batch=32, learning_rate=1e-3)

    def __init__(self, settings: SeriesClassificationSettings) -> None:
        super().__init__(settings)
        self.classes: tuple[str, ...] = ()
        self.channels: tuple[str, ...] = ()
        self.scaler: Scaler | None = None
        self._values = np.zeros((0, 0), dtype=np.float32)
        self._starts = self._lengths = self._labels = np.zeros(0, dtype=np.int64)
        self._parts: dict[str, NDArray[np.int64]] = {}

    # -- raw files

    def read(self, path: Path | None, *, cache: Path | None = None) -> None:
        """Split the series, and standardise each channel by the training part."""
        name = "generated waves" if path is None else shown(path)
        data = waves() if path is None else read_labelled(path)
        if data.labels is None:
            raise UserError(f"{name} has no class labels")
        self.notes += data.notes
        if not self.classes:
            self._take_what_to_know(name, data)
        self._check_channels(name, data)
        self._labels = self._numbered(name, data.labels)
        self._parts = self._split(name, data)
        self._starts, self._lengths = data.starts, data.lengths
        if self.scaler is None:
            trained = np.zeros(len(data), dtype=bool)
            trained[self._parts["train"]] = True
            self.scaler, notes = fit_scaler(data.values[np.repeat(trained, data.lengths)], self.channels)
            self.notes += notes
        self._values = self.scaler.apply(data.values)
        shortest, longest = data.lengths.min(), data.lengths.max()
        steps = f"{longest:,}" if shortest == longest else f"{shortest:,} to {longest:,}"
        sizes = ", ".join(f"{len(members):,} {part}" for part, members in self._parts.items() if part != "all")
        self.described = (
            f"{name}: {count_in_words(len(data), 'series', 'series')} of {steps} time steps, "
            f"{count_in_words(len(self.channels), 'channel')}, {len(self.classes)} classes; {sizes}"
        )

    def _take_what_to_know(self, name: str, data: LabelledSeries) -> None:
        assert data.labels is not None
        self.classes = tuple(sorted(set(data.labels), key=by_number))
        self.channels = data.channels
        if len(self.classes) < 2:
            raise UserError(f"{name} has series of one class only, {shown(self.classes[0], 40)}")

    def _check_channels(self, name: str, data: LabelledSeries) -> None:
        if len(data.channels) != len(self.channels):
            raise UserError(
                f"{name} has {count_in_words(len(data.channels), 'channel')}, and the network was trained on "
                f"{len(self.channels)}"
            )

    def _numbered(self, name: str, labels: list[str]) -> NDArray[np.int64]:
        numbers = {label: number for number, label in enumerate(self.classes)}
        unknown = sorted(set(labels) - set(numbers))
        if unknown:
            raise UserError(
                f"{name} has the class {listed([shown(label, 40) for label in unknown])}, and the network knows "
                f"{listed([shown(label, 40) for label in self.classes], 10)}"
            )
        return np.array([numbers[label] for label in labels], dtype=np.int64)

    def _split(self, name: str, data: LabelledSeries) -> dict[str, NDArray[np.int64]]:
        """Numbers of the series of each part: the file's own parts, and a validation part where it has none."""
        given = np.array(data.splits if data.splits is not None else ["train"] * len(data))
        parts = {part: np.flatnonzero(given == part) for part in ("train", "validation", "test")}
        if not len(parts["validation"]) and len(parts["train"]):
            train = parts["train"]
            held = hold_out(self._labels[train], self.settings.validation_share, self.settings.split_seed)
            parts["train"], parts["validation"] = train[~held], train[held]
        for part in ("train", "validation"):
            if not len(parts[part]):
                raise UserError(
                    f"{name} has {count_in_words(len(data), 'series', 'series')}: too few for a training and a "
                    "validation part"
                )
        if not len(parts["test"]):
            del parts["test"]
        unseen = set(range(len(self.classes))) - set(self._labels[parts["train"]].tolist())
        if unseen:
            self.notes.append(f"classes without a training series: {listed([self.classes[n] for n in sorted(unseen)])}")
        return {**parts, "all": np.arange(len(data))}

    def facts(self) -> dict[str, Any]:
        """The classes, the channels, and by what they are standardised."""
        assert self.scaler is not None
        return {"classes": list(self.classes), "channels": list(self.channels), **self.scaler.stored()}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Take the classes and the scaler of an earlier run."""
        self.classes, self.channels = tuple(map(str, facts["classes"])), tuple(map(str, facts["channels"]))
        self.scaler = Scaler.restored(facts, len(self.channels))

    def model_fields(self) -> dict[str, Any]:
        """The numbers of channels and classes."""
        return {"channels": len(self.channels), "num_classes": len(self.classes)}

    # -- training and evaluation

    def batch(self, random: np.random.Generator, rows: int) -> SeriesBatch:
        """Training series, drawn one by one."""
        train = self._parts["train"]
        return self._gather(train[random.integers(0, len(train), size=rows)])

    def _gather(self, members: NDArray[np.int64]) -> SeriesBatch:
        series, mask = padded(self._values, self._starts[members], self._lengths[members])
        return SeriesBatch(*map(torch.from_numpy, (series, mask, self._labels[members])))

    def loss(self, model: nn.Module, batch: SeriesBatch) -> Tensor:
        """Cross-entropy in nats per series."""
        return F.cross_entropy(model(batch.series, mask=batch.mask).float(), batch.classes)

    def parts(self) -> tuple[str, ...]:
        """What was held out, the file's test part if it has one, and everything."""
        return ("validation", *(["test"] if "test" in self._parts else []), "all")

    def evaluation_batches(self, part: str, rows: int) -> Iterator[SeriesBatch]:
        """All series of a part, in the file's order."""
        members = self._parts[part]
        for first in range(0, len(members), rows):
            yield self._gather(members[first : first + rows])

    def score(self, model: nn.Module, batch: SeriesBatch) -> dict[str, Tensor]:
        """Nats and hits."""
        scores = model(batch.series, mask=batch.mask).double()
        return {
            "nats": F.cross_entropy(scores, batch.classes, reduction="sum"),
            "right": (scores.argmax(dim=1) == batch.classes).sum(),
            "series": torch.tensor(len(batch.classes)),
        }

    def summary(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Accuracy, and cross-entropy per series."""
        return {"accuracy": sums["right"] / sums["series"], "loss": sums["nats"] / sums["series"]}

    @torch.no_grad()
    def extras(self, model: nn.Module, part: str) -> Extras:
        """The confusion matrix, or for many classes the commonest mistakes."""
        model.eval()
        counts = np.zeros((len(self.classes), len(self.classes)), dtype=np.int64)
        for batch in self.evaluation_batches(part, ROWS):
            moved = to_device(batch, device_of(model))
            found = model(moved.series, mask=moved.mask).argmax(dim=1).cpu().numpy()
            np.add.at(counts, (batch.classes.numpy(), found), 1)
        if len(self.classes) <= LARGEST_CONFUSION:
            rows = [(label, *map(str, counts[number])) for number, label in enumerate(self.classes)]
            return Extras(
                tables=(("Series of a class (row) by predicted class", ("class", *self.classes), tuple(rows)),)
            )
        np.fill_diagonal(counts, 0)
        order = np.argsort(-counts, axis=None, kind="stable")[:MISTAKES]
        worst = [divmod(int(place), len(self.classes)) for place in order if counts.flat[place]]
        mistakes = tuple((self.classes[true], self.classes[found], str(counts[true, found])) for true, found in worst)
        return Extras(tables=(("Commonest mistakes", ("class", "predicted", "series"), mistakes),))

    # -- results

    @torch.no_grad()
    def predict(self, model: nn.Module, inputs: list[Path], out: Path) -> list[Path]:
        """For every file or folder a CSV file: series, the likeliest class, and its probability."""
        assert self.scaler is not None
        written: list[Path] = []
        for path in inputs:
            data = read_labelled(path)
            self._check_channels(shown(path), data)
            values, starts = self.scaler.apply(data.values), data.starts
            rows = []
            for first in range(0, len(data), ROWS):
                chosen = slice(first, first + ROWS)
                series, mask = map(torch.from_numpy, padded(values, starts[chosen], data.lengths[chosen]))
                scores = model(series.to(device_of(model)), mask=mask.to(device_of(model)))
                sure, found = (part.cpu().tolist() for part in scores.double().softmax(dim=1).max(dim=1))
                for name, number, probability in zip(data.names[chosen], found, sure, strict=True):
                    rows.append((name, self.classes[number], number_text(probability)))
            target = result_file(out, path, ".csv", written)
            write_atomically(target, csv_text(("series", "class", "probability"), rows))
            written.append(target)
        return written
