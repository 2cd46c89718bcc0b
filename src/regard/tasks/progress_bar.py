"""A progress bar for the training loop: steps of all, time left, loss and validation."""

from __future__ import annotations

import time
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

REFRESH_S = 0.2


class ProgressBar(Callback):
    """Shows how far the loop is, on stderr, where that is a terminal.

    Args:
        total: steps of the run.
        metric: name of the validation metric.
    """

    def __init__(self, total: int, metric: str) -> None:
        self.total, self.metric = total, metric
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._shown = 0.0

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Show the bar."""
        if trainer.is_global_zero:
            self._task = self._bar.add_task("training", total=self.total, completed=module.start, figures="")
            self._bar.start()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move it, a few times per second."""
        now = time.monotonic()
        if not trainer.is_global_zero or now - self._shown < REFRESH_S:
            return
        self._shown = now
        validation = trainer.callback_metrics.get("validation")
        figures = f"loss {float(outputs['loss']):.3f}"
        if validation is not None:
            figures += f", {self.metric} {float(validation):.4g}"
        self._bar.update(self._task, completed=module.start + batch_idx + 1, figures=figures)

    def teardown(self, trainer: lightning.Trainer, module: Any, stage: str) -> None:
        """Take it away."""
        self._bar.stop()

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        """Take it away before the error is told."""
        self._bar.stop()
