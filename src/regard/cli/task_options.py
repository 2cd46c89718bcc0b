"""Options of `evaluate`, `predict` and `export` that only some tasks have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from regard.errors import UserError

if TYPE_CHECKING:
    from regard.tasks.checkpoint import Checkpoint
    from regard.tasks.task import Task

OF_TASKS = {
    "on_bad_image": "images",
    "overlap": "segmentation",
    "window_batch": "segmentation",
    "threshold": "segmentation",
    "probabilities": "segmentation",
}
"""By setting, what it is for."""


def override_settings(task: Task, given: Mapping[str, Any]) -> None:
    """Let a task work otherwise than in training.

    Args:
        task: of a checkpoint.
        given: settings by name; None = as in training.

    Raises:
        UserError: the task has no such setting, or refuses the value.
    """
    known = {item.name for item in fields(task.settings)}
    wanted = {name: value for name, value in given.items() if value is not None}
    for name in wanted:
        if name not in known:
            raise UserError(f"--{name.replace('_', '-')} is for {OF_TASKS[name]}, and this network is for {task.name}")
    try:
        task.settings = replace(task.settings, **wanted)
    except ValueError as error:
        raise UserError(str(error)) from None


def apply_image_options(loaded: Checkpoint, *, image_size: int | None, on_bad_image: str | None = None) -> None:
    """Let the task of a checkpoint treat images otherwise than in training.

    Args:
        loaded: the checkpoint; its network must be on its device.
        image_size: pixels per side; None = as in training.
        on_bad_image: "skip" or "refuse"; None = as in training.

    Raises:
        UserError: the task has no images, or the network does not take the size.
    """
    override_settings(loaded.task, {"on_bad_image": on_bad_image})
    if image_size is not None:
        loaded.task.resize(loaded.model, image_size)
