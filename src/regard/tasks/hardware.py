"""Where training runs: devices, precision and strategy, in Lightning's words, and Lightning without its advice."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback

from regard.errors import UserError
from regard.tasks.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Where and how the loop runs; Lightning's own words.

    Args:
        accelerator: "auto", "cpu", "gpu" or another that Lightning knows.
        devices: number of devices, or "auto".
        strategy: "auto", "ddp", "fsdp" or another that Lightning knows.
        precision: "32-true", "bf16-mixed", "16-mixed", "bf16-true" or "64-true".
        workers: processes that prepare batches; 0 = in the loop itself.
        progress: whether to show a progress bar.
    """

    accelerator: str = "cpu"
    devices: int | str = 1
    strategy: str = "auto"
    precision: Any = "32-true"
    workers: int = 0
    progress: bool = True


def trainer_for(recipe: Recipe, hardware: Hardware, callbacks: list[Callback], folder: Path) -> lightning.Trainer:
    """A trainer for one pass over the steps.

    Raises:
        UserError: Lightning refuses the hardware.
    """
    if recipe.ema and "fsdp" in hardware.strategy:
        raise UserError("ema needs the whole network on each device, and --strategy fsdp shares it out")
    try:
        with quiet():
            return lightning.Trainer(
                accelerator=hardware.accelerator,
                devices=hardware.devices,
                strategy=hardware.strategy,
                precision=hardware.precision,
                max_epochs=1,
                gradient_clip_val=recipe.clip_norm or None,
                callbacks=callbacks,
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=False,
                use_distributed_sampler=False,
                default_root_dir=folder,
            )
    except (ValueError, RuntimeError, TypeError, MisconfigurationException) as error:
        raise UserError(f"these devices cannot be used: {error}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's advice: it speaks of files and loaders that this loop does not use."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
