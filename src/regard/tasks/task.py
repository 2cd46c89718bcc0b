"""What every task offers: raw files in, batches, a loss, metrics, and result files out.

A task is made from its settings, reads the user's files (or a built-in sample that needs no download), and knows
nothing of optimisers, devices or checkpoints: `regard.tasks.fit` trains any of them, `regard.tasks.evaluation`
measures, and a checkpoint holds the task's settings and facts beside the network, so that it can be used without the
training data.

Batches depend on `(seed, step)` alone: a run that was interrupted goes on exactly as if it had not been.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from regard.tasks.recipe import Recipe

Batch = Any
"""A pytree of tensors with the rows on axis 0."""


@dataclass(frozen=True)
class Extras:
    """What an evaluation shows beside its figures.

    Args:
        samples: titles and texts, such as generated text.
        tables: title, header and rows.
        lines: title, label of x, label of y, and points by name.
    """

    samples: tuple[tuple[str, str], ...] = ()
    tables: tuple[tuple[str, tuple[str, ...], tuple[tuple[str, ...], ...]], ...] = ()
    lines: tuple[tuple[str, str, str, dict[str, list[tuple[float, float]]]], ...] = field(default=())


class Task(ABC):
    """A problem from raw files to result files.

    A subclass is final and sets the class attributes; `Settings` is a frozen, keyword-only dataclass of numbers,
    texts and booleans, all with defaults.

    Args:
        settings: how raw files become batches.
    """

    kind: ClassVar[str] = "task"
    name: ClassVar[str]
    metric: ClassVar[str]
    """The metric by which checkpoints are chosen, a key of `summary`'s result."""
    better: ClassVar[Literal["lower", "higher"]]
    data_format: ClassVar[str]
    """What `--data` is, for messages."""
    Settings: ClassVar[type]
    recipe: ClassVar[Recipe] = Recipe()
    """What `regard train` starts from."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self.described = ""
        self.notes: list[str] = []

    # -- raw files

    @abstractmethod
    def read(self, path: Path | None, *, cache: Path | None = None) -> None:
        """Read and split the user's files, or the built-in sample; sets `described` and `notes`.

        Args:
            path: a file or a folder, as `data_format` says; None = the sample.
            cache: a folder for files that would not fit into memory; None = a temporary one.

        Raises:
            UserError: files that are missing, unreadable, or not what the task needs.
        """

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What was learned from the data and is needed without them, as plain JSON data."""

    @abstractmethod
    def restore(self, facts: Mapping[str, Any]) -> None:
        """Take the facts of an earlier `read`.

        Raises:
            KeyError, TypeError, ValueError: they are not what `facts` gave.
        """

    @abstractmethod
    def model_fields(self) -> dict[str, Any]:
        """The fields of a network's config that the data decide, such as the number of classes."""

    # -- training and evaluation

    @abstractmethod
    def batch(self, random: np.random.Generator, rows: int) -> Batch:
        """A training batch, drawn with `random` alone."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a batch."""

    @abstractmethod
    def parts(self) -> tuple[str, ...]:
        """The parts of the data that can be evaluated; the first chooses checkpoints."""

    @abstractmethod
    def evaluation_batches(self, part: str, rows: int) -> Iterable[Batch]:
        """All data of a part, in order."""

    @abstractmethod
    def score(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Sums over a batch, which add up over batches and devices."""

    @abstractmethod
    def summary(self, sums: Mapping[str, float]) -> dict[str, float]:
        """The metrics, from sums over all batches."""

    def extras(self, model: nn.Module, part: str) -> Extras:
        """What to show of a trained network beside its metrics."""
        return Extras()

    # -- results

    @abstractmethod
    def predict(self, model: nn.Module, inputs: list[Path], out: Path) -> list[Path]:
        """Write predictions for the user's files into the folder `out`; returns the files written.

        Raises:
            UserError: an input that cannot be read, named.
        """


def rng(seed: int, step: int, rank: int = 0) -> np.random.Generator:
    """The source of a step's random choices."""
    return np.random.default_rng([seed, step, rank])


def device_of(model: nn.Module) -> torch.device:
    """Where a network is."""
    return next(model.parameters()).device
