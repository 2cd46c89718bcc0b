"""The paper's four settings at a small size: a network around Aaren and the same around softmax attention, both trained
alike on a task's data, and what each reaches on the held-out part.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regard.claims._training import SEEDS, data_folder, fit, mean
from regard.measure import one_thread
from regard.models.series.decision_transformer import DecisionTransformer
from regard.models.series.event_model import EventModel
from regard.models.series.forecaster import SeriesForecaster
from regard.models.series.series_classifier import SeriesClassifier
from regard.tasks.evaluation import evaluate
from regard.tasks.series.classification import SeriesClassification, SeriesClassificationSettings
from regard.tasks.series.control import Control, ControlSettings
from regard.tasks.series.events import Events, EventsSettings
from regard.tasks.series.forecasting import Forecasting, ForecastingSettings
from regard.tasks.task import Task, rng

MIXERS = ("aaren", "softmax")
ROWS = 64
"""Rows per batch of an evaluation, which are no part of the recipe."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A problem and the recipe for it, the same for both mixers.

    Args:
        task: reads the data.
        network: what is trained.
        folder: of the data folder; "" = generated data.
        file: in it; "" = the folder itself.
        steps: number of updates.
        batch: rows per update.
        learning_rate: the peak, after a warm-up and before a cosine.
    """

    task: Callable[[], Task]
    network: Any
    folder: str = ""
    file: str = ""
    steps: int
    batch: int
    learning_rate: float = 1e-3

    @property
    def path(self) -> Path | None:
        """The data; None where they are absent, or generated."""
        folder = data_folder(self.folder) if self.folder else None
        return folder and folder / self.file


def _forecasting() -> Task:
    return Forecasting(ForecastingSettings(context_len=96, horizon=96, evaluation_windows=512))


SETTINGS = {
    "control": Setting(
        task=lambda: Control(ControlSettings(context_steps=20)), network=DecisionTransformer, steps=300, batch=32
    ),
    "events": Setting(
        task=lambda: Events(EventsSettings()), network=EventModel, steps=200, batch=16, learning_rate=2e-3
    ),
    "ETTh1": Setting(task=_forecasting, network=SeriesForecaster, folder="ett", file="ETTh1.csv", steps=150, batch=32),
    "ETTh2": Setting(task=_forecasting, network=SeriesForecaster, folder="ett", file="ETTh2.csv", steps=150, batch=32),
    "JapaneseVowels": Setting(
        task=lambda: SeriesClassification(SeriesClassificationSettings()),
        network=SeriesClassifier,
        folder="uea/JapaneseVowels",
        steps=200,
        batch=32,
    ),
}
SIZES = "width 64, 2 layers, perceptrons 128 wide, dropout 0.1, AdamW with warm-up and cosine; 3 seeds"


@functools.cache
def data_of(name: str) -> Task:
    """A setting's task with its data: generated ones where the data folder lacks them."""
    task = SETTINGS[name].task()
    task.read(SETTINGS[name].path)
    return task


def stand_ins(names: Sequence[str]) -> str:
    """In words, of which of these settings the data are absent; empty where none is."""
    absent = [name for name in names if SETTINGS[name].folder and SETTINGS[name].path is None]
    return f"; generated data in place of {' and '.join(absent)}, which the data folder lacks" if absent else ""


@functools.cache
def results(name: str) -> dict[str, dict[str, float]]:
    """The mean over seeds of every metric on the test part, by mixer; trained once for all claims."""
    with one_thread():
        found = {mixer: [_train(name, mixer, seed) for seed in SEEDS] for mixer in MIXERS}
    return {mixer: {metric: mean([run[metric] for run in runs]) for metric in runs[0]} for mixer, runs in found.items()}


def _train(name: str, mixer: str, seed: int) -> dict[str, float]:
    setting, task = SETTINGS[name], data_of(name)
    torch.manual_seed(seed)
    model: nn.Module = setting.network(replace(setting.network.SMALL, mixer=mixer, **task.model_fields()))
    fit(
        model,
        lambda step: task.batch(rng(seed, step), setting.batch),
        task.loss,
        steps=setting.steps,
        learning_rate=setting.learning_rate,
        seed=seed,
    )
    return evaluate(task, model, "test", ROWS)
