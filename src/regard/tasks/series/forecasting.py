"""Forecasting a multivariate series from a CSV file: the next time steps of all channels from those before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from regard.errors import UserError
from regard.files import write_atomically
from regard.tasks.evaluation import to_device
from regard.tasks.recipe import Recipe
from regard.tasks.series.csv_table import CsvFile, csv_text, number_text, result_file
from regard.tasks.series.date_steps import continue_column
from regard.tasks.series.sample_series import seasonal_series
from regard.tasks.series.standardising import Scaler, fit_scaler
from regard.tasks.task import Extras, Task, device_of
from regard.wording import count_in_words, listed, shown

TIME_COLUMNS = ("date", "time", "datetime", "timestamp", "")
ETT_COLUMNS = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
ETT_HOURS, ETT_PARTS = 17_420, (8640, 2880, 2880)
SHARES = (0.7, 0.1)
SHOWN_CHANNELS = 8
ROWS = 32


@dataclass(frozen=True, kw_only=True)
class ForecastingSettings:
    """How a series becomes windows.

    Args:
        context_len: time steps that are read.
        horizon: time steps that are forecast.
        evaluation_windows: windows of a part that are evaluated, at most, evenly spaced; 0 = all.
    """

    context_len: int = 96
    horizon: int = 96
    evaluation_windows: int = 4096

    def __post_init__(self) -> None:
        for name in ("context_len", "horizon"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.evaluation_windows < 0:
            raise ValueError(f"evaluation_windows must not be negative, got {self.evaluation_windows}")


class Forecasting(Task):
    """Forecasting the next time steps of a multivariate series.

    Args:
        settings: how a series becomes windows.
    """

    name: ClassVar[str] = "forecasting"
    metric: ClassVar[str] = "mse"
    better: ClassVar[Literal["lower", "higher"]] = "lower"
    data_format: ClassVar[str] = "a CSV file with a header: numeric columns, and if wanted one named date or time"
    Settings: ClassVar[type] = ForecastingSettings
    recipe: ClassVar[Recipe] = Recipe(steps=300, batch=32, learning_rate=1e-3)

    def __init__(self, settings: ForecastingSettings) -> None:
        super().__init__(settings)
        self.channels: tuple[str, ...] = ()
        self.scaler: Scaler | None = None
        self._values = np.zeros((0, 0), dtype=np.float32)
        self._targets: dict[str, tuple[int, int]] = {}

    # -- raw files

    def read(self, path: Path | None, *, cache: Path | None = None) -> None:
        """Standardise the series by its training part, and split it by time."""
        if path is None:
            name, values = "a generated seasonal series", seasonal_series()
            self._take_channels(name, tuple(f"channel {number + 1}" for number in range(values.shape[1])))
        else:
            name, file = shown(path), CsvFile(path)
            columns = _channels_of(file)
            self._take_channels(name, columns)
            values = file.read(numbers=self.channels).numbers
        sizes, how = _split(values, self.channels)
        self._check_sizes(name, len(values), sizes)
        if self.scaler is None:
            self.scaler, notes = fit_scaler(values[: sizes[0]], self.channels)
            self.notes += notes
        self._values = self.scaler.apply(values)
        context, ends = self.settings.context_len, np.cumsum(sizes).tolist()
        self._targets = {
            "train": (context, ends[0]),
            "validation": (ends[0], ends[1]),
            "test": (ends[1], ends[2]),
            "all": (context, len(values)),
        }
        most = self.settings.evaluation_windows
        for part, windows in ((part, self._count(part)) for part in ("validation", "test")):
            if 0 < most < windows:
                self.notes.append(f"{part}: {most:,} of {windows:,} windows, evenly spaced, are evaluated")
        self.described = (
            f"{name}: {count_in_words(len(values), 'row')} of {count_in_words(len(self.channels), 'channel')}; "
            f"{sizes[0]:,} train, {sizes[1]:,} validate, {sizes[2]:,} test ({how})"
        )

    def _take_channels(self, name: str, columns: tuple[str, ...]) -> None:
        if not self.channels:
            self.channels = columns
        elif set(columns) != set(self.channels):
            raise UserError(
                f"{name} has the columns {listed([shown(column, 40) for column in columns])}, and the network was "
                f"trained on {listed([shown(column, 40) for column in self.channels])}"
            )

    def _check_sizes(self, name: str, rows: int, sizes: tuple[int, int, int]) -> None:
        context, horizon = self.settings.context_len, self.settings.horizon
        for part, size, needed in zip(
            ("train", "validate", "test"), sizes, (context + horizon, horizon, horizon), strict=True
        ):
            if size < needed:
                raise UserError(
                    f"{name} has {count_in_words(rows, 'row')}, of which {size:,} {part}, and a window of {context} "
                    f"rows and {horizon} to forecast needs {needed:,} there: give more rows or a smaller --set horizon"
                )

    def facts(self) -> dict[str, Any]:
        """The channels, and by what they are standardised."""
        assert self.scaler is not None
        return {"channels": list(self.channels), **self.scaler.stored()}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Take the channels and the scaler of an earlier run."""
        self.channels = tuple(map(str, facts["channels"]))
        self.scaler = Scaler.restored(facts, len(self.channels))

    def model_fields(self) -> dict[str, Any]:
        """The number of channels, and the settings' lengths."""
        settings = self.settings
        return {"channels": len(self.channels), "context_len": settings.context_len, "horizon": settings.horizon}

    # -- training and evaluation

    def batch(self, random: np.random.Generator, rows: int) -> tuple[Tensor, Tensor]:
        """Context `(rows, context_len, channels)` and what follows, from anywhere in the training part."""
        first, end = self._targets["train"]
        return self._windows(random.integers(first, end - self.settings.horizon + 1, size=rows))

    def _windows(self, targets: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The windows whose forecasts begin at these rows."""
        context = self.settings.context_len
        places = targets[:, None] + np.arange(-context, self.settings.horizon)
        rows = torch.from_numpy(self._values[places])
        return rows[:, :context], rows[:, context:]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean squared error of standardised values."""
        return F.mse_loss(model(batch[0]).float(), batch[1])

    def parts(self) -> tuple[str, ...]:
        """What comes after the training part, or everything."""
        return ("validation", "test", "all")

    def _count(self, part: str) -> int:
        first, end = self._targets[part]
        return end - first - self.settings.horizon + 1

    def _evaluated(self, part: str) -> NDArray[np.int64]:
        """Where the forecasts of a part begin: their contexts may lie in the part before."""
        targets = self._targets[part][0] + np.arange(self._count(part))
        most = self.settings.evaluation_windows
        if most and len(targets) > most:
            targets = targets[np.linspace(0, len(targets) - 1, most).round().astype(np.int64)]
        return targets

    def evaluation_batches(self, part: str, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All windows of a part, or `evaluation_windows` of them."""
        targets = self._evaluated(part)
        for first in range(0, len(targets), rows):
            yield self._windows(targets[first : first + rows])

    def score(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Squared and absolute errors of standardised values."""
        errors = model(batch[0]).double() - batch[1].double()
        return {
            "squared": errors.square().sum(),
            "absolute": errors.abs().sum(),
            "numbers": torch.tensor(errors.numel()),
        }

    def summary(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Mean squared and mean absolute error."""
        return {"mse": sums["squared"] / sums["numbers"], "mae": sums["absolute"] / sums["numbers"]}

    @torch.no_grad()
    def extras(self, model: nn.Module, part: str) -> Extras:
        """Errors by quarter of the horizon, beside those of repeating the last value, and a forecast per channel."""
        model.eval()
        horizon, device = self.settings.horizon, device_of(model)
        sums, windows = np.zeros((3, horizon)), 0
        for batch in self.evaluation_batches(part, ROWS):
            context, truth = to_device(batch, device)
            errors = (model(context) - truth).double()
            repeated = (context[:, -1:] - truth).double()
            for row, numbers in enumerate((errors.square(), errors.abs(), repeated.square())):
                sums[row] += numbers.mean(dim=2).sum(dim=0).cpu().numpy()
            windows += len(truth)
        rows = []
        for steps in np.array_split(np.arange(horizon), min(4, horizon)):
            mse, mae, repeating = sums[:, steps].mean(axis=1) / windows
            name = f"{steps[0] + 1} to {steps[-1] + 1}" if len(steps) > 1 else f"{steps[0] + 1}"
            rows.append((name, f"{mse:.4f}", f"{mae:.4f}", f"{repeating:.4f}"))
        header = ("time steps ahead", "mse", "mae", "mse of repeating the last value")
        return Extras(tables=(("Errors by how far ahead", header, tuple(rows)),), lines=self._chart(model, part))

    def _chart(self, model: nn.Module, part: str) -> tuple[Any, ...]:
        """The forecast in the middle of a part against the truth, in the data's units."""
        assert self.scaler is not None
        targets = self._evaluated(part)
        context, truth = self._windows(targets[len(targets) // 2 :][:1])
        forecast = model(context.to(device_of(model))).float().cpu()
        curves = {
            name: self.scaler.undo(values[0].numpy())
            for name, values in (("truth", torch.cat((context, truth), dim=1)), ("forecast", forecast))
        }
        starts = {"truth": 1 - self.settings.context_len, "forecast": 1}
        return tuple(
            (
                f"{channel}: a forecast in the middle of the {part} part",
                "time steps ahead",
                channel,
                {
                    name: [(float(step), float(value)) for step, value in enumerate(values[:, number], starts[name])]
                    for name, values in curves.items()
                },
            )
            for number, channel in enumerate(self.channels[:SHOWN_CHANNELS])
        )

    # -- results

    @torch.no_grad()
    def predict(self, model: nn.Module, inputs: list[Path], out: Path) -> list[Path]:
        """For every CSV file one of the same columns with the rows that follow its last."""
        assert self.scaler is not None
        written: list[Path] = []
        context = self.settings.context_len
        for path in inputs:
            file = CsvFile(path)
            self._take_channels(shown(path), _channels_of(file))
            time = file.find(*TIME_COLUMNS)
            table = file.read(texts=[] if time is None else [time], numbers=self.channels)
            if len(table) < context:
                raise UserError(f"{shown(path)} has {count_in_words(len(table), 'row')}, and {context} are read")
            standardised = torch.from_numpy(self.scaler.apply(table.numbers[-context:]))
            forecast = self.scaler.undo(model(standardised[None].to(device_of(model)))[0].float().cpu().numpy())
            columns = {name: list(map(number_text, forecast[:, number])) for number, name in enumerate(self.channels)}
            if time is not None:
                columns[time] = self._times(table.texts[time])
            rows = zip(*(columns[name] for name in file.columns), strict=True)
            target = result_file(out, path, ".csv", written)
            write_atomically(target, csv_text(file.columns, rows))
            written.append(target)
        return written

    def _times(self, before: list[str]) -> list[str]:
        """The time column goes on where its step is constant; otherwise it counts."""
        horizon = self.settings.horizon
        after = continue_column(before[-max(2, self.settings.context_len) :], horizon)
        return after or [f"+{number}" for number in range(1, horizon + 1)]


def _channels_of(file: CsvFile) -> tuple[str, ...]:
    """All columns but the one with times.

    Raises:
        UserError: there is no other.
    """
    time = file.find(*TIME_COLUMNS)
    channels = tuple(name for name in file.columns if name != time)
    if not channels:
        raise UserError(f"{shown(file.path)} has no column with numbers beside {time}")
    return channels


def _split(values: NDArray[np.float64], columns: tuple[str, ...]) -> tuple[tuple[int, int, int], str]:
    """Rows that train, validate and test, and how they were chosen."""
    rows = len(values)
    for factor, unit in ((1, "hourly"), (4, "15-minute")):
        if set(columns) == set(ETT_COLUMNS) and rows == factor * ETT_HOURS:
            train, validation, test = (factor * size for size in ETT_PARTS)
            rest = rows - train - validation - test
            return (train, validation, test), f"12, 4 and 4 months, as is usual for {unit} ETT; {rest:,} are left over"
    train, validation = int(rows * SHARES[0]), int(rows * SHARES[1])
    return (train, validation, rows - train - validation), "70, 10 and 20 %"
