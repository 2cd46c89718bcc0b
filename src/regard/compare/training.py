"""One training run: AdamW, warm-up and cosine, clipped gradients, checkpoints that an interruption can resume from.

The recipe is fixed, and the same for every mechanism: peak learning rate 5e-3 at width 64, falling with the root of the
width; a tenth of the steps warm-up, then cosine down to a tenth of the peak; weight decay 0.01; gradients clipped to
norm 1; no dropout.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regard.compare.problems import Problem
from regard.files import write_atomically

PEAK_LEARNING_RATE = 5e-3
REFERENCE_WIDTH = 64
FINAL_SHARE = 0.1
WARMUP_SHARE = 0.1
WEIGHT_DECAY = 0.01
CLIP_NORM = 1.0
CHECKPOINT_EVERY_S = 10.0
CURVE_POINTS = 60
VALIDATION_POINTS = 8


class DivergedError(RuntimeError):
    """The loss is not a number any more; the message says which and when."""


@dataclass
class Curve:
    """How a run went: mean training loss since the last point, and validation loss (None where it is no number).

    Text in bits per byte, series in mean squared error, images in nats.
    """

    steps: list[int] = field(default_factory=list)
    train: list[float] = field(default_factory=list)
    validation_steps: list[int] = field(default_factory=list)
    validation: list[float | None] = field(default_factory=list)


def learning_rate(step: int, steps: int, dim: int) -> float:
    """The rate of a step, counted from 0, in a network of width `dim`."""
    peak = PEAK_LEARNING_RATE * math.sqrt(REFERENCE_WIDTH / dim)
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * progress)))


class Trainer:
    """Trains one host.

    Args:
        host: the network; it is trained in place.
        problem: what it is trained on.
        seed: decides the data; the host was initialised with it by the caller.
    """

    def __init__(self, host: nn.Module, problem: Problem, seed: int) -> None:
        self.host = host
        self.problem = problem
        self.seed = seed
        self.optimizer = torch.optim.AdamW(host.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        self.next_step = 0
        self.curve = Curve()
        self._since_point: list[float] = []

    def step(self) -> float:
        """One step; returns its loss.

        Raises:
            DivergedError: the loss is NaN or infinite.
        """
        loss = self.update(*self.problem.batch(self.seed, self.next_step))
        if not math.isfinite(loss):
            kind = "NaN" if math.isnan(loss) else "infinite"
            raise DivergedError(f"loss became {kind} at step {self.next_step + 1}")
        self.next_step += 1
        return loss

    def update(self, inputs: Tensor, targets: Tensor) -> float:
        """Forward, backward and one update of the parameters; returns the loss."""
        settings = self.problem.settings
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.next_step, settings.steps, settings.dim)
        loss = self.problem.loss(self.host, inputs, targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.host.parameters(), CLIP_NORM)
        self.optimizer.step()
        return float(loss.detach())

    def run(self, checkpoint: Path, tick: Callable[[], None], progress: Callable[[int, float], None]) -> None:
        """Train to the end, from the checkpoint where there is one.

        Args:
            checkpoint: where to save; rewritten every ten seconds and when `tick` stops the work.
            tick: called before every step; may raise to stop.
            progress: called after every step with its number, from 1, and its loss.

        Raises:
            DivergedError: the loss is NaN or infinite.
            OSError: a checkpoint cannot be written.
        """
        self.load(checkpoint)
        saved = time.monotonic()
        steps = self.problem.settings.steps
        while self.next_step < steps:
            try:
                tick()
            except BaseException:
                self.save(checkpoint)
                raise
            self._record(self.step(), steps)
            progress(self.next_step, self.curve.train[-1])
            if time.monotonic() - saved > CHECKPOINT_EVERY_S:
                self.save(checkpoint)
                saved = time.monotonic()

    def _record(self, loss: float, steps: int) -> None:
        self._since_point.append(loss)
        if self.next_step % max(1, steps // CURVE_POINTS) == 0 or self.next_step in (1, steps):
            self.curve.steps.append(self.next_step)
            mean = sum(self._since_point) / len(self._since_point)
            self.curve.train.append(_rounded(self.problem.curve_scale * mean))
            self._since_point.clear()
        if self.next_step % max(1, steps // VALIDATION_POINTS) == 0 or self.next_step == steps:
            self.host.eval()
            value = self.problem.validation_loss(self.host)
            self.curve.validation_steps.append(self.next_step)
            self.curve.validation.append(_rounded(value) if math.isfinite(value) else None)
            self.host.train()

    def save(self, checkpoint: Path) -> None:
        """Write everything that the rest of the run depends on."""
        stored = {
            "seed": self.seed,
            "step": self.next_step,
            "host": self.host.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "curve": vars(self.curve),
            "since_point": self._since_point,
        }
        write_atomically(checkpoint, to_bytes(stored))

    def load(self, checkpoint: Path) -> None:
        """Continue from a checkpoint of the same seed, if there is one."""
        if not checkpoint.is_file():
            return
        stored = torch.load(checkpoint, map_location=self.problem.device, weights_only=True)
        if stored["seed"] != self.seed:
            return
        self.host.load_state_dict(stored["host"])
        self.optimizer.load_state_dict(stored["optimizer"])
        self.next_step = stored["step"]
        self.curve = Curve(**stored["curve"])
        self._since_point = stored["since_point"]


def _rounded(loss: float) -> float:
    """Six digits, wherever the point is."""
    return float(f"{loss:.6g}")


def to_bytes(stored: dict[str, Any]) -> bytes:
    """`torch.save` into memory: a full disk then raises OSError where the bytes are written."""
    buffer = io.BytesIO()
    torch.save(stored, buffer)
    return buffer.getvalue()
