"""How a network is trained: the numbers of the optimiser and its schedule, the same for every task."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """AdamW with linear warm-up, then cosine; gradients clipped by their norm.

    Args:
        steps: number of updates.
        batch: rows per update, over all devices.
        learning_rate: the peak.
        weight_decay: of AdamW, on all parameters.
        beta2: the second of AdamW's betas; the first is 0.9.
        warmup: share of the steps with a rising rate.
        final_share: the rate at the end as a share of the peak.
        clip_norm: largest norm of the gradient; 0 = no limit.
        evaluate_every: steps between two evaluations and checkpoints; 0 = a tenth of all.
        patience: evaluations without a better value before training stops; 0 = never.
        seed: of the initial weights, the data order and dropout.

    Raises:
        ValueError: a number outside its range.
    """

    steps: int = 600
    batch: int = 16
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    beta2: float = 0.95
    warmup: float = 0.1
    final_share: float = 0.1
    clip_norm: float = 1.0
    evaluate_every: int = 0
    patience: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.learning_rate > 0 or not math.isfinite(self.learning_rate):
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        for name in ("weight_decay", "clip_norm", "evaluate_every", "patience", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.seed >= 2**63:
            raise ValueError(f"seed must be below 2^63, got {self.seed}")
        for name in ("warmup", "final_share", "beta2"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")

    @property
    def evaluation_interval(self) -> int:
        """Steps between two evaluations."""
        return self.evaluate_every or max(1, self.steps // 10)

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        warmup = max(1, round(self.warmup * self.steps))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, self.steps - warmup))
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.learning_rate * (self.final_share + (1 - self.final_share) * cosine)
