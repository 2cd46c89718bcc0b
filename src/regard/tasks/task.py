"""What every task offers: raw files in, batches, a loss, metrics, and result files out.

A task is made from its settings, reads the user's files (or a built-in sample that needs no download), and knows
nothing of optimisers, devices or checkpoints: `regard.tasks.fit` trains any of them, `regard.tasks.evaluation`
measures, and a checkpoint holds the task's settings and facts beside the network, so that it can be used without the
training data.

Batches depend on `(seed, step)` alone: a run that was interrupted goes on exactly as if it had not been.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from regard.errors import UserError
from regard.tasks.recipe import Recipe

Batch = Any
"""A pytree of tensors with the rows on axis 0."""
Colour = tuple[int, int, int]
WHOLE = "all"
"""The part that contains the others."""


@dataclass(frozen=True)
class HeatMap:
    """A square of shares, drawn in colours.

    Args:
        title: its heading.
        x_label: what the columns are.
        y_label: what the rows are.
        names: of rows and columns.
        values: by row and column, from 0 to 1.
        what: what a value is.
    """

    title: str
    x_label: str
    y_label: str
    names: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    what: str


@dataclass(frozen=True)
class Shown:
    """An input with its answers, for a page.

    Args:
        name: of the file.
        thumbnail: a small JPEG.
        answers: classes and probabilities, the likeliest first.
        overlay: a PNG of what the network looked at; empty where none was made.
    """

    name: str
    thumbnail: bytes
    answers: tuple[tuple[str, float], ...]
    overlay: bytes = b""


@dataclass(frozen=True)
class Sheet:
    """What a prediction shows on a page beside its files.

    Args:
        inputs: some of the inputs.
        bad: inputs without a prediction, and why.
        total: number of inputs with a prediction.
        counts: how often each answer was given, the most frequent first.
    """

    inputs: tuple[Shown, ...]
    bad: tuple[tuple[str, str], ...]
    total: int
    counts: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Picture:
    """A picture for a page.

    Args:
        title: its caption.
        png: the file.
    """

    title: str
    png: bytes


@dataclass(frozen=True)
class Leaf:
    """One input's page.

    Args:
        name: of the page's file, without suffix.
        title: its heading.
        pictures: in the order in which they are shown.
        header: of a table.
        rows: of the table.
        legend: names and colours (red, green, blue; 0 to 255).
        notes: what the reader should know.
    """

    name: str
    title: str
    pictures: tuple[Picture, ...]
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    legend: tuple[tuple[str, Colour], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Extras:
    """What an evaluation shows beside its figures.

    Args:
        samples: titles and texts, such as generated text.
        tables: title, header and rows.
        lines: title, label of x, label of y, and points by name.
        heat_maps: shares between two sets of names, such as a confusion matrix that is too large for a table.
        pictures: of some cases.
        legend: what the colours in the pictures mean.
        files: names and texts of files that are written beside the page.
    """

    samples: tuple[tuple[str, str], ...] = ()
    tables: tuple[tuple[str, tuple[str, ...], tuple[tuple[str, ...], ...]], ...] = ()
    lines: tuple[tuple[str, str, str, dict[str, list[tuple[float, float]]]], ...] = field(default=())
    heat_maps: tuple[HeatMap, ...] = ()
    pictures: tuple[Picture, ...] = ()
    legend: tuple[tuple[str, Colour], ...] = ()
    files: tuple[tuple[str, str], ...] = ()


class Task(ABC):
    """A problem from raw files to result files.

    A subclass is final and sets the class attributes; `Settings` is a frozen, keyword-only dataclass of numbers,
    texts and booleans, all with defaults. After `read`, `described` says in a line what was found, `notes` what the
    user should know, and `bad` which files were skipped and why; after `predict`, `sheet` is what a page of all inputs
    shows and `leaves` what one page for each shows, if anything. `watch`, where it is set, is told what is worked on,
    how many steps of it have been done since the last call, and how many there are.

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
        self.bad: list[tuple[str, str]] = []
        self.sheet: Sheet | None = None
        self.leaves: list[Leaf] = []
        self.watch: Callable[[str, int, int], object] | None = None

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

    def check_network(self, model: nn.Module, rows: int) -> None:  # noqa: B027 - most tasks take any network
        """Refuse a network that cannot take this task's batches.

        Args:
            model: the network; its weights need not be there.
            rows: of a training batch.

        Raises:
            UserError: why it cannot.
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

    def on_request(self) -> tuple[str, ...]:
        """The parts that are measured only where they are asked for."""
        return (WHOLE,)

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

    def start_from(self, facts: Mapping[str, Any]) -> None:
        """Before `read`: the facts of the task that pretrained weights come from, where they are known.

        Raises:
            UserError: this task does not begin with pretrained weights.
        """
        raise UserError(f"{self.name} does not start from pretrained weights")

    def resize(self, model: nn.Module, size: int) -> None:
        """Before `read` or `predict`: take images of another size than those that the network was trained on.

        Raises:
            UserError: the network does not take them, or the task has no images.
        """
        raise UserError(f"{self.name} has no images whose size could be chosen")

    def example(self, rows: int) -> dict[str, Tensor]:
        """Inputs of the network by name, made at random, with the rows on axis 0; for exporting it.

        Raises:
            UserError: the network of this task is not exported.
        """
        raise UserError(f"networks for {self.name} are not exported")

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


def float_type_of(model: nn.Module) -> torch.dtype:
    """The type of a network's weights, which its floating-point inputs must have."""
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
