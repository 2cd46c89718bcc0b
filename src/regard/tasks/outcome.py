"""What a finished run or an evaluation shows: metrics of every part, and its settings as labels and values."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from regard._version import VERSION
from regard.tasks.evaluation import evaluate
from regard.tasks.networks import config_to_plain
from regard.tasks.task import Task


def parts_of(task: Task) -> list[str]:
    """The parts that are measured without being asked for."""
    return [part for part in task.parts() if part not in task.on_request()]


def measure(
    task: Task, model: nn.Module, rows: int, parts: Sequence[str], *, tick: Callable[[], object] = lambda: None
) -> dict[str, dict[str, float]]:
    """The metrics of some parts of the data."""
    return {part: evaluate(task, model, part, rows, tick=tick) for part in parts}


def in_words(metrics: dict[str, float]) -> str:
    """Metrics in a line."""
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def settings_rows(**owners: Any) -> list[tuple[str, str]]:
    """Dataclasses as labels and values, with the versions that were at work."""
    rows = [
        (f"{owner}: {name}", str(value))
        for owner, values in owners.items()
        for name, value in config_to_plain(values).items()
    ]
    versions = f"regard {VERSION}, torch {torch.__version__}, Python {platform.python_version()}"
    return [*rows, ("versions", versions)]
