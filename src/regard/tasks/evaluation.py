"""Metrics of a network on a part of a task's data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from regard.tasks.task import Batch, Task, device_of


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch on a device."""
    return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch)


def sums_over(
    task: Task,
    model: nn.Module,
    part: str,
    rows: int,
    *,
    rank: int = 0,
    world: int = 1,
    tick: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Sums of `task.score` over the batches of a part that fall to this process; the network is put into eval mode.

    Args:
        task: with its data.
        model: the network.
        part: of the data.
        rows: rows per batch.
        rank: number of this process.
        world: number of processes.
        tick: called after every batch.
    """
    return sums_of(task, model, task.evaluation_batches(part, rows), rank=rank, world=world, tick=tick)


@torch.no_grad()
def sums_of(
    task: Task,
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    rank: int = 0,
    world: int = 1,
    tick: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """`sums_over` for batches that are given."""
    was_training = model.training
    model.eval()
    device = device_of(model)
    totals: dict[str, float] = {}
    for number, batch in enumerate(batches):
        if number % world == rank:
            for name, value in task.score(model, to_device(batch, device)).items():
                totals[name] = totals.get(name, 0.0) + float(value)
        tick()
    model.train(was_training)
    return totals


def evaluate(
    task: Task, model: nn.Module, part: str, rows: int, *, tick: Callable[[], object] = lambda: None
) -> dict[str, float]:
    """The metrics of a part of the data.

    Args:
        task: with its data.
        model: the network.
        part: of the data.
        rows: rows per batch.
        tick: called after every batch.
    """
    return task.summary(sums_over(task, model, part, rows, tick=tick))


def is_better(task: Task, metrics: Mapping[str, float], best: float | None) -> bool:
    """Whether these metrics beat the best value so far; NaN never does."""
    value = metrics[task.metric]
    if value != value:
        return False
    return best is None or (value < best if task.better == "lower" else value > best)
