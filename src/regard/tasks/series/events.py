"""Forecasting events: when the next one comes, and of which kind, from a table of times and marks.

The first event of a sequence is history: nothing is known of the time before it. Long sequences are cut into windows,
each of which begins with the last event of the one before, so that every other event is forecast exactly once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from regard.errors import UserError
from regard.files import write_atomically
from regard.models.series.event_model import EventModel
from regard.tasks.recipe import Recipe
from regard.tasks.series.csv_table import by_number, csv_text, number_text, result_file
from regard.tasks.series.event_table import EventSequences, read_events
from regard.tasks.series.point_processes import mixed_processes
from regard.tasks.series.ragged import padded
from regard.tasks.series.splitting import check_shares, three_parts
from regard.tasks.task import Extras, Task, device_of
from regard.wording import count_in_words, listed, shown

FEW_SEQUENCES = 10
"""Below, each sequence is split by time."""
SHORTEST_GAP = 1e-6
"""The shortest time that is told apart, as a share of the median."""
ROWS = 32
SHOWN_MARKS = 30


@dataclass(frozen=True, kw_only=True)
class EventsSettings:
    """How sequences become windows.

    Args:
        max_len: events of a window that are forecast, at most.
        validation_share: share of the sequences, or of the events where there are few sequences, that validate.
        test_share: share that tests.
        split_seed: of the choice of sequences.
    """

    max_len: int = 128
    validation_share: float = 0.1
    test_share: float = 0.1
    split_seed: int = 0

    def __post_init__(self) -> None:
        if self.max_len < 1:
            raise ValueError(f"max_len must be at least 1, got {self.max_len}")
        check_shares(self)


class EventBatch(NamedTuple):
    """Padded windows, all tensors `(rows, events)`."""

    gaps: Tensor
    """Time since the event before."""
    marks: Tensor
    mask: Tensor
    """True = real event."""
    forecast: Tensor
    """True = an event that is forecast; others are history."""


class Events(Task):
    """Forecasting the time and the mark of the next event.

    Args:
        settings: how sequences become windows.
    """

    name: ClassVar[str] = "events"
    metric: ClassVar[str] = "nll"
    better: ClassVar[Literal["lower", "higher"]] = "lower"
    data_format: ClassVar[str] = "a CSV file with columns time, mark, and if there are several sequences, sequence"
    Settings: ClassVar[type] = EventsSettings
    recipe: ClassVar[Recipe] = Recipe(steps=200, batch=16, learning_rate=2e-3)

    def __init__(self, settings: EventsSettings) -> None:
        super().__init__(settings)
        self.marks: tuple[str, ...] = ()
        self.log_mean, self.log_std = 0.0, 1.0
        self.min_time, self.longest = 1e-6, 1.0
        self._gaps = np.zeros(0, dtype=np.float32)
        self._numbers = np.zeros(0, dtype=np.int64)
        self._windows: dict[str, NDArray[np.int64]] = {}

    # -- raw files

    def read(self, path: Path | None, *, cache: Path | None = None) -> None:
        """Number the marks, split, cut into windows, and learn the scale of time from the training part."""
        name = "generated Hawkes and renewal processes" if path is None else shown(path)
        data = _sample() if path is None else read_events(path)
        self.notes += data.notes
        restored = bool(self.marks)
        if not restored:
            self.marks = tuple(sorted(set(data.marks), key=by_number))
        self._numbers = self._numbered(name, data.marks)
        self._windows, how = self._cut(name, data)
        gaps = data.gaps()
        if not restored:
            self._learn_times(name, gaps)
        self._gaps = self._filled(gaps)
        sizes = ", ".join(
            f"{int((windows[:, 1] - 1).sum()):,} {part}" for part, windows in self._windows.items() if part != "all"
        )
        self.described = (
            f"{name}: {count_in_words(len(gaps), 'event')} of {count_in_words(len(self.marks), 'mark')} in "
            f"{count_in_words(len(data.lengths), 'sequence')}; of those with a predecessor {sizes} ({how})"
        )

    def _numbered(self, name: str, marks: list[str]) -> NDArray[np.int64]:
        numbers = {mark: number for number, mark in enumerate(self.marks)}
        unknown = sorted(set(marks) - set(numbers))
        if unknown:
            raise UserError(
                f"{name} has the mark {listed([shown(mark, 40) for mark in unknown])}, and the network knows "
                f"{listed([shown(mark, 40) for mark in self.marks], 10)}"
            )
        return np.array([numbers[mark] for mark in marks], dtype=np.int64)

    def _cut(self, name: str, data: EventSequences) -> tuple[dict[str, NDArray[np.int64]], str]:
        """Windows (start, events) of each part, and how the parts were chosen."""
        settings = self.settings
        starts, ends = data.starts, data.starts + data.lengths
        whole = np.stack((starts, starts, ends), axis=1)
        if len(starts) >= FEW_SEQUENCES:
            chosen = three_parts(
                len(starts), validation=settings.validation_share, test=settings.test_share, seed=settings.split_seed
            )
            stretches = {part: whole[members] for part, members in chosen.items()}
            how = "by sequence"
        else:
            test = ends - np.round(settings.test_share * data.lengths).astype(np.int64)
            validation = test - np.round(settings.validation_share * data.lengths).astype(np.int64)
            borders = {"train": (starts, validation), "validation": (validation, test), "test": (test, ends)}
            stretches = {part: np.stack((starts, *pair), axis=1) for part, pair in borders.items()}
            how = "by time in each sequence"
        windows = {part: _windows(rows, settings.max_len) for part, rows in {**stretches, "all": whole}.items()}
        for part, found in windows.items():
            if not len(found):
                raise UserError(
                    f"{name} has {count_in_words(len(data.times), 'event')} in "
                    f"{count_in_words(len(starts), 'sequence')}: too few for a {part} part"
                )
        return windows, how

    def _learn_times(self, name: str, gaps: NDArray[np.float64]) -> None:
        """Mean and deviation of the logarithms of the training part's times between events."""
        trained = np.concatenate([gaps[start + 1 : start + size] for start, size in self._windows["train"]])
        positive = trained[trained > 0]
        if not len(positive):
            raise UserError(f"{name}: all events of the training part are at the same time")
        self.min_time = max(float(positive.min()), SHORTEST_GAP * float(np.median(positive)))
        if zeros := int((trained < self.min_time).sum()):
            self.notes.append(
                f"{zeros:,} of {len(trained):,} times between training events are shorter than {self.min_time:.3g}, "
                "and count as that"
            )
        logs = np.log(np.maximum(trained, self.min_time))
        self.log_mean, self.log_std = float(logs.mean()), float(logs.std())
        self.longest = float(trained.max())
        if logs.min() == logs.max():
            self.log_std = 1.0
            self.notes.append("all times between training events are equal")

    def _filled(self, gaps: NDArray[np.float64]) -> NDArray[np.float32]:
        """With the geometric mean in place of the unknown time before the first event of a sequence."""
        return np.where(np.isnan(gaps), math.exp(self.log_mean), gaps).astype(np.float32)

    def facts(self) -> dict[str, Any]:
        """The marks and the scale of time."""
        return {
            "marks": list(self.marks),
            "log_time_mean": self.log_mean,
            "log_time_std": self.log_std,
            "min_time": self.min_time,
            "longest_time": self.longest,
        }

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Take the marks and the scale of time of an earlier run."""
        self.marks = tuple(map(str, facts["marks"]))
        self.log_mean, self.log_std = float(facts["log_time_mean"]), float(facts["log_time_std"])
        self.min_time, self.longest = float(facts["min_time"]), float(facts["longest_time"])
        if not math.isfinite(self.log_mean):
            raise ValueError(f"log_time_mean must be finite, got {self.log_mean}")
        for name in ("log_std", "min_time", "longest"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive, got {value}")

    def model_fields(self) -> dict[str, Any]:
        """The number of marks and the scale of time."""
        return {
            "num_marks": len(self.marks),
            "log_time_mean": self.log_mean,
            "log_time_std": self.log_std,
            "min_time": self.min_time,
        }

    # -- training and evaluation

    def batch(self, random: np.random.Generator, rows: int) -> EventBatch:
        """Windows of the training part."""
        windows = self._windows["train"]
        return self._gather(windows[random.integers(0, len(windows), size=rows)])

    def _gather(self, windows: NDArray[np.int64]) -> EventBatch:
        gaps, mask = padded(self._gaps, windows[:, 0], windows[:, 1])
        marks, _ = padded(self._numbers, windows[:, 0], windows[:, 1])
        forecast = mask.copy()
        forecast[:, 0] = False
        return EventBatch(*map(torch.from_numpy, (gaps, marks, mask, forecast)))

    def loss(self, model: nn.Module, batch: EventBatch) -> Tensor:
        """Negative log-likelihood of time and mark, in nats per event."""
        assert isinstance(model, EventModel)
        of_times, of_marks = model.log_prob(batch.gaps, batch.marks, mask=batch.mask)
        nats = torch.where(batch.forecast, -(of_times + of_marks), 0)
        return nats.sum() / batch.forecast.sum()

    def parts(self) -> tuple[str, ...]:
        """What was held out, and everything."""
        return ("validation", "test", "all")

    def evaluation_batches(self, part: str, rows: int) -> Iterator[EventBatch]:
        """All windows of a part."""
        windows = self._windows[part]
        for first in range(0, len(windows), rows):
            yield self._gather(windows[first : first + rows])

    def score(self, model: nn.Module, batch: EventBatch) -> dict[str, Tensor]:
        """Nats, hits and squared errors of the time."""
        assert isinstance(model, EventModel)
        of_times, of_marks = model.log_prob(batch.gaps, batch.marks, mask=batch.mask)
        expected = model(batch.gaps, batch.marks, mask=batch.mask)
        times = self._expected_times(model, expected)[:, :-1]
        found = expected.mark_log_probs[:, :-1].argmax(dim=-1)
        wanted = batch.forecast
        return {
            "time_nats": -of_times[wanted].double().sum(),
            "mark_nats": -of_marks[wanted].double().sum(),
            "right": (found == batch.marks)[wanted].sum(),
            "squared": (times - batch.gaps)[wanted].double().square().sum(),
            "events": wanted.sum(),
        }

    def _expected_times(self, model: EventModel, expected: Any) -> Tensor:
        """The mean of each mixture, but no more than the longest time seen in training: tails are heavy."""
        return model.expected_time(expected).clamp_max(self.longest)

    def summary(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Nats per event, of both and of the time; hits; and the time's root mean squared error."""
        events = sums["events"]
        return {
            "nll": (sums["time_nats"] + sums["mark_nats"]) / events,
            "time_nll": sums["time_nats"] / events,
            "mark_accuracy": sums["right"] / events,
            "rmse": math.sqrt(sums["squared"] / events),
        }

    def extras(self, model: nn.Module, part: str) -> Extras:
        """What always predicting the training part's commonest mark and mean time would give; how common marks are."""
        windows = self._windows["train"]
        trained = np.concatenate([np.arange(start + 1, start + size) for start, size in windows])
        counts = np.bincount(self._numbers[trained], minlength=len(self.marks))
        order = np.argsort(-counts, kind="stable")[:SHOWN_MARKS]
        rows = tuple((self.marks[mark], f"{counts[mark]:,}", f"{counts[mark] / len(trained):.3f}") for mark in order)
        held = self._windows[part]
        judged = np.concatenate([np.arange(start + 1, start + size) for start, size in held])
        hits = float((self._numbers[judged] == counts.argmax()).mean())
        spread = self._gaps[judged].astype(np.float64) - self._gaps[trained].astype(np.float64).mean()
        plain = (("mark_accuracy", f"{hits:.4f}"), ("rmse", f"{math.sqrt(float((spread**2).mean())):.4g}"))
        return Extras(
            tables=(
                ("Always the commonest mark and the mean time", ("metric", part), plain),
                ("Marks of the training part", ("mark", "events", "share"), rows),
            )
        )

    # -- results

    @torch.no_grad()
    def predict(self, model: nn.Module, inputs: list[Path], out: Path) -> list[Path]:
        """For every CSV file one with a row per sequence: expected time and likeliest mark of the event that follows
        its last, and the probability of every mark.
        """
        assert isinstance(model, EventModel)
        written: list[Path] = []
        columns = ("sequence", "time", "after", "mark", *(f"p({mark})" for mark in self.marks))
        for path in inputs:
            data = read_events(path)
            numbers = self._numbered(shown(path), data.marks)
            gaps = self._filled(data.gaps())
            lengths = np.minimum(data.lengths, self.settings.max_len)
            ends = data.starts + data.lengths
            rows: list[tuple[str, ...]] = []
            for first in range(0, len(lengths), ROWS):
                chosen = slice(first, first + ROWS)
                after, likely = self._next(model, gaps, numbers, ends[chosen] - lengths[chosen], lengths[chosen])
                last = data.times[ends[chosen] - 1]
                for row, name in enumerate(data.names[chosen]):
                    mark, shares = self.marks[int(likely[row].argmax())], map(number_text, likely[row])
                    time = f"{last[row] + after[row]:.12g}"
                    rows.append((name, time, number_text(after[row]), mark, *shares))
            target = result_file(out, path, ".csv", written)
            shown_from = 0 if data.named else 1
            write_atomically(target, csv_text(columns[shown_from:], [row[shown_from:] for row in rows]))
            written.append(target)
        return written

    def _next(
        self,
        model: EventModel,
        gaps: NDArray[np.float32],
        numbers: NDArray[np.int64],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Expected time until the next event of each window, and the probabilities of its marks."""
        device = device_of(model)
        times, mask = (torch.from_numpy(part).to(device) for part in padded(gaps, starts, lengths))
        marks = torch.from_numpy(padded(numbers, starts, lengths)[0]).to(device)
        expected = model(times, marks, mask=mask)
        rows, places = np.arange(len(lengths)), lengths
        after = self._expected_times(model, expected).double().cpu().numpy()[rows, places]
        return after, expected.mark_log_probs.double().exp().cpu().numpy()[rows, places]


def _windows(stretches: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Windows (start, events) over stretches (start of the sequence, first event that is forecast, end).

    A window's first event is history, so a stretch that begins with its sequence begins one later.
    """
    windows = [
        (first - 1, min(length, end - first) + 1)
        for start, begin, end in stretches.tolist()
        for first in range(max(begin, start + 1), end, length)
    ]
    return np.array(windows, dtype=np.int64).reshape(-1, 2)


def _sample() -> EventSequences:
    sequences = mixed_processes()
    return EventSequences(
        np.concatenate([times for times, _ in sequences]),
        [f"kind {mark}" for _, marks in sequences for mark in marks.tolist()],
        np.array([len(times) for times, _ in sequences], dtype=np.int64),
        [str(number) for number in range(1, len(sequences) + 1)],
    )
