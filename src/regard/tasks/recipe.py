"""How a network is trained: the numbers of the optimiser and its schedule, the same for every task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Frozen = Literal["none", "stem", "body"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """AdamW with linear warm-up, then cosine; gradients clipped by their norm.

    Args:
        steps: number of updates.
        batch: rows per update, over all devices.
        learning_rate: the peak.
        weight_decay: of AdamW.
        beta2: the second of AdamW's betas; the first is 0.9.
        warmup: share of the steps with a rising rate.
        final_share: the rate at the end as a share of the peak.
        clip_norm: largest norm of the gradient; 0 = no limit.
        evaluate_every: steps between two evaluations and checkpoints; 0 = a tenth of all.
        patience: evaluations without a better value before training stops; 0 = never.
        seed: of the initial weights, the data order and dropout.
        ema: decay of a moving average of the weights, which is what is evaluated and kept; 0 = no average. It begins
            lower: at most (1 + step) / (10 + step).
        layer_decay: factor on the learning rate from each level of depth to the one below; 1 = the same everywhere.
        decay_vectors: whether weight decay also falls on biases, norms and other vectors.
        freeze: weights that stay as they are: "none", "stem" (what comes before the first block) or "body"
            (everything but the classifier).

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
    ema: float = 0.0
    layer_decay: float = 1.0
    decay_vectors: bool = True
    freeze: Frozen = "none"

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
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must be in (0, 1], got {self.layer_decay}")
        if self.freeze not in ("none", "stem", "body"):
            raise ValueError(f"freeze must be none, stem or body, got {self.freeze!r}")

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

    def average_decay(self, step: int) -> float:
        """The decay of the moving average after an update, counted from 0."""
        return min(self.ema, (1 + step) / (10 + step))
