"""What a host is trained and judged on: the batches of a step, and quality on the validation part."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.compare.budget import ImageShape, SeriesShape, Shape
from regard.compare.cost import is_out_of_memory
from regard.compare.images import patches_per_side, training_batch
from regard.compare.job import SERIES_FILE
from regard.compare.race_tasks import IMAGE, SERIES, TEXT
from regard.compare.series import PART, read_series, shown_window
from regard.compare.settings import Settings
from regard.compare.text import training_windows, validation_windows
from regard.tasks.evaluation import sums_over, to_device
from regard.wording import shown

CURVE_IMAGES = 1024
"""The learning curve's validation figures come from at most this many images; for text, from all windows."""


class Problem(ABC):
    """The data of a race, as a child sees them.

    Args:
        settings: of the race.
        described: the content of `data.json`.
        device: where the host runs.
    """

    shape: Shape = None
    curve_scale = 1.0
    """What the loss is multiplied by in the training curve."""

    def __init__(self, settings: Settings, described: dict[str, Any], device: torch.device) -> None:
        self.settings = settings
        self.described = described
        self.device = device

    @abstractmethod
    def batch(self, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one training step."""

    @abstractmethod
    def validation_loss(self, host: nn.Module) -> float:
        """The loss on validation data, as the learning curve shows it."""

    @abstractmethod
    def quality(self, host: nn.Module, tick: Callable[[], None], note: Callable[[str], None]) -> dict[str, Any]:
        """Quality on the validation data: `quality`, and `extrapolation` (empty where there is none).

        Args:
            host: the trained network.
            tick: called between batches; may stop the work.
            note: takes what could not be measured.
        """

    @abstractmethod
    def one_example(self) -> Tensor:
        """An input of one row, for counting multiply-accumulates."""

    @abstractmethod
    def shown_example(self) -> tuple[Tensor, list[str]]:
        """The input whose attention map is shown, and a label per token."""

    @property
    @abstractmethod
    def tokens_per_step(self) -> int:
        """Tokens that a training step processes: bytes, time steps, or images."""

    @property
    @abstractmethod
    def tokens_per_example(self) -> int:
        """Tokens, counted in the same way, of the input that `one_example` gives."""

    def loss(self, host: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats, or mean squared error."""
        return loss_of(host(inputs), targets)


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of scores for whole numbers, mean squared error of numbers."""
    if targets.is_floating_point():
        return F.mse_loss(outputs, targets)
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


class TextProblem(Problem):
    """Predicting the next byte; quality in bits per byte."""

    curve_scale = 1 / math.log(2)

    def __init__(self, settings: Settings, described: dict[str, Any], device: torch.device, folder: Path) -> None:
        super().__init__(settings, described, device)
        self.train = np.memmap(folder / "train.bin", dtype=np.uint8, mode="r")
        self.validation = np.memmap(folder / "validation.bin", dtype=np.uint8, mode="r")
        self.factors: list[int] = described["factors"]

    def _split(self, windows: np.ndarray[Any, np.dtype[np.int64]]) -> tuple[Tensor, Tensor]:
        tokens = torch.from_numpy(windows).to(self.device)
        return tokens[:, :-1], tokens[:, 1:]

    def batch(self, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Windows chosen by seed and step."""
        settings = self.settings
        return self._split(
            training_windows(self.train, seed=seed, step=step, batch=settings.batch, length=settings.train_length)
        )

    def validation_loss(self, host: nn.Module) -> float:
        """Bits per byte at the training length."""
        return self._bits(host, 1, lambda: None)

    def quality(self, host: nn.Module, tick: Callable[[], None], note: Callable[[str], None]) -> dict[str, Any]:
        """Bits per byte at each multiple of the training length, over the same bytes."""
        points = []
        for factor in self.factors:
            length = factor * self.settings.train_length
            try:
                points.append({"factor": factor, "length": length, "value": self._bits(host, factor, tick)})
            except (ValueError, RuntimeError, MemoryError) as error:
                memory = is_out_of_memory(error)
                if factor == 1 or not (memory or isinstance(error, ValueError)):
                    raise
                note(f"quality at {length:,} tokens not measured: {'out of memory' if memory else shown(str(error))}")
        return {"quality": points[0]["value"], "extrapolation": points}

    @torch.no_grad()
    def _bits(self, host: nn.Module, factor: int, tick: Callable[[], None]) -> float:
        length = factor * self.settings.train_length
        longest = self.factors[-1] * self.settings.train_length
        windows = validation_windows(self.validation, length=length, longest=longest)
        rows = max(1, self.tokens_per_step // length)
        nats = 0.0
        for start in range(0, len(windows), rows):
            tick()
            inputs, targets = self._split(windows[start : start + rows])
            nats += float(self.loss(host, inputs, targets)) * targets.numel()
        return nats / (len(windows) * length) / math.log(2)

    def one_example(self) -> Tensor:
        """One window of the training length."""
        return self.batch(0, 0)[0][:1]

    def shown_example(self) -> tuple[Tensor, list[str]]:
        """A short stretch of the validation text, a token per byte."""
        sample = self.described["sample_bytes"]
        return torch.tensor([sample], device=self.device), self.described["labels"]

    @property
    def tokens_per_step(self) -> int:
        """Bytes."""
        return self.settings.batch * self.settings.train_length

    @property
    def tokens_per_example(self) -> int:
        """Bytes."""
        return self.settings.train_length


class ImageProblem(Problem):
    """Telling the class of an image; quality is accuracy."""

    shape: ImageShape

    def __init__(self, settings: Settings, described: dict[str, Any], device: torch.device, folder: Path) -> None:
        super().__init__(settings, described, device)
        with np.load(folder / "images.npz", allow_pickle=False) as stored:
            arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
        pixels = arrays["train"].float() / 255
        mean, spread = pixels.mean((0, 2, 3), keepdim=True), pixels.std((0, 2, 3), keepdim=True).clamp_min(1e-3)
        self.train = ((pixels - mean) / spread).to(device)
        self.validation = ((arrays["validation"].float() / 255 - mean) / spread).to(device)
        self.train_labels = arrays["train_labels"].to(device)
        self.validation_labels = arrays["validation_labels"].to(device)
        self.shape = ImageShape(**described["shape"])

    def batch(self, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Images in an order that the seed decides."""
        chosen = torch.from_numpy(training_batch(len(self.train), seed=seed, step=step, batch=self.settings.batch))
        chosen = chosen.to(self.device)
        return self.train[chosen], self.train_labels[chosen]

    @torch.no_grad()
    def validation_loss(self, host: nn.Module) -> float:
        """Cross-entropy in nats on the first validation images."""
        first = slice(0, CURVE_IMAGES)
        return float(self.loss(host, self.validation[first], self.validation_labels[first]))

    def quality(self, host: nn.Module, tick: Callable[[], None], note: Callable[[str], None]) -> dict[str, Any]:
        """Accuracy on the validation images."""
        return {"quality": self._accuracy(host, tick), "extrapolation": []}

    @torch.no_grad()
    def _accuracy(self, host: nn.Module, tick: Callable[[], None]) -> float:
        right, rows = 0, max(self.settings.batch, 64)
        for start in range(0, len(self.validation), rows):
            tick()
            scores = host(self.validation[start : start + rows])
            right += int((scores.argmax(dim=1) == self.validation_labels[start : start + rows]).sum())
        return right / len(self.validation)

    def one_example(self) -> Tensor:
        """One image."""
        return self.validation[:1]

    def shown_example(self) -> tuple[Tensor, list[str]]:
        """The first validation image; tokens are patches, labelled by row and column."""
        side = range(patches_per_side(self.shape.size))
        return self.validation[:1], [f"{row},{column}" for row in side for column in side]

    @property
    def tokens_per_step(self) -> int:
        """Images."""
        return self.settings.batch

    @property
    def tokens_per_example(self) -> int:
        """One image."""
        return 1


class SeriesProblem(Problem):
    """Forecasting what follows a window; quality is the mean squared error of standardised values."""

    shape: SeriesShape

    def __init__(self, settings: Settings, described: dict[str, Any], device: torch.device, folder: Path) -> None:
        super().__init__(settings, described, device)
        copy = folder / SERIES_FILE
        self.task = read_series(str(copy) if copy.exists() else None, train_length=settings.train_length)
        self.shape = SeriesShape(**described["shape"])

    def batch(self, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Windows chosen by seed and step."""
        return to_device(self.task.batch(np.random.default_rng([seed, step]), self.settings.batch), self.device)

    def validation_loss(self, host: nn.Module) -> float:
        """The same as the quality."""
        return self._mse(host, lambda: None)

    def quality(self, host: nn.Module, tick: Callable[[], None], note: Callable[[str], None]) -> dict[str, Any]:
        """Mean squared error on the validation windows; a forecast belongs to one length, so none beyond it."""
        return {"quality": self._mse(host, tick), "extrapolation": []}

    def _mse(self, host: nn.Module, tick: Callable[[], None]) -> float:
        return self.task.summary(sums_over(self.task, host, PART, self.settings.batch, tick=tick))["mse"]

    def one_example(self) -> Tensor:
        """The context of one window."""
        return self.batch(0, 0)[0][:1]

    def shown_example(self) -> tuple[Tensor, list[str]]:
        """A window of the validation part, a token per time step."""
        window, labels = shown_window(self.task)
        return window.to(self.device), labels

    @property
    def tokens_per_step(self) -> int:
        """Time steps that are read."""
        return self.settings.batch * self.settings.train_length

    @property
    def tokens_per_example(self) -> int:
        """Time steps that are read."""
        return self.settings.train_length


_KINDS: dict[str, Callable[[Settings, dict[str, Any], torch.device, Path], Problem]] = {
    TEXT.name: TextProblem,
    IMAGE.name: ImageProblem,
    SERIES.name: SeriesProblem,
}


def make_problem(settings: Settings, described: dict[str, Any], folder: Path, device: torch.device) -> Problem:
    """The problem of a race's task, with its prepared data."""
    return _KINDS[settings.task](settings, described, device, folder)
