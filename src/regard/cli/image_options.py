"""Options of `evaluate`, `predict` and `export` that only tasks with images have."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING

from regard.errors import UserError

if TYPE_CHECKING:
    from regard.tasks.checkpoint import Checkpoint


def apply_image_options(loaded: Checkpoint, *, image_size: int | None, on_bad_image: str | None = None) -> None:
    """Let the task of a checkpoint treat images otherwise than in training.

    Args:
        loaded: the checkpoint; its network must be on its device.
        image_size: pixels per side; None = as in training.
        on_bad_image: "skip" or "refuse"; None = as in training.

    Raises:
        UserError: the task has no images, or the network does not take the size.
    """
    task = loaded.task
    if on_bad_image is not None:
        if "on_bad_image" not in {item.name for item in fields(task.settings)}:
            raise UserError(f"--on-bad-image is for images, and this network is for {task.name}")
        task.settings = replace(task.settings, on_bad_image=on_bad_image)
    if image_size is not None:
        task.resize(loaded.model, image_size)
