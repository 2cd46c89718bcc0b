"""Classes of multivariate series of unequal length: a causal encoder over time steps, read at each series' last one.

Paper: "Attention as an RNN", Feng et al., 2024, https://arxiv.org/abs/2405.13956, section 4 (time series
classification); the authors published no code.
Since the encoder is causal, the class can also be read while a series runs: `step`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.layers.encoder_block import EncoderState
from regard.metadata import Variant
from regard.models.series.base import AAREN_SETTINGS, SeriesConfig, SeriesModel, check_sizes
from regard.registry import register


@dataclass(frozen=True, kw_only=True)
class SeriesClassifierConfig(SeriesConfig):
    """The network's sizes; the encoder's are those of `SeriesConfig`.

    Args:
        channels: numbers per time step.
        num_classes: number of classes.
    """

    channels: int = 12
    num_classes: int = 9

    def __post_init__(self) -> None:
        check_sizes(self, "channels", "num_classes")


@register(name="aaren_series_classifier", system="aaren", paper=AAREN_SETTINGS)
class SeriesClassifier(SeriesModel):
    """Classifies a series from the state after its last real time step.

    Args:
        config: its sizes.

    Raises:
        UnknownSystemError: no such mixer.
        ValueError: a size that is not positive or that the mixer refuses.
    """

    task: ClassVar[str] = "series_classification"
    SMALL: ClassVar[SeriesClassifierConfig] = SeriesClassifierConfig(dim=64, num_layers=2, num_heads=4, hidden=128)
    VARIANTS: ClassVar[dict[str, Variant]] = {
        "aaren_japanese_vowels": Variant(config=SeriesClassifierConfig()),
    }

    def __init__(self, config: SeriesClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Linear(config.channels, config.dim)
        self.encoder = config.make_encoder(positions="sinusoidal")
        self.head = nn.Linear(config.dim, config.num_classes)

    def forward(
        self,
        series: Float[Tensor, "batch steps channels"],
        *,
        mask: Bool[Tensor, "batch steps"] | None = None,
    ) -> Float[Tensor, "batch num_classes"]:
        """Scores of the classes.

        Args:
            series: the time steps; what stands at masked ones is ignored.
            mask: True = real time step. A series without any is scored by the classifier's bias alone.

        Raises:
            ValueError: shapes that do not fit.
        """
        self._check(series)
        if mask is None:
            return self.head(self.encoder(self.embedding(series))[:, -1])
        states = self.encoder(self._embed(series, mask), mask=mask)
        steps = torch.arange(series.shape[1], device=series.device)
        last = torch.where(mask, steps, 0).amax(dim=1)
        final = states.take_along_dim(last[:, None, None], dim=1)[:, 0]
        return self.head(torch.where(mask.any(dim=1)[:, None], final, 0))

    def init_state(self, batch: int, *, max_len: int | None = None) -> EncoderState:
        """An empty state for `batch` series; `max_len` is the number of time steps to make room for, if known."""
        return self.encoder.init_state(batch, max_len=max_len)

    def step(
        self,
        series: Float[Tensor, "batch steps channels"],
        state: EncoderState,
        *,
        mask: Bool[Tensor, "batch steps"] | None = None,
    ) -> tuple[Float[Tensor, "batch steps num_classes"], EncoderState]:
        """Scores after each of one or more time steps that follow those in `state`, which is consumed; those at masked
        time steps have no meaning.

        Raises:
            ValueError: shapes that do not fit, or a mixer that does not decode.
        """
        self._check(series)
        embedded = self.embedding(series) if mask is None else self._embed(series, mask)
        states, after = self.encoder.step(embedded, state, mask=mask)
        return self.head(states), after

    def _check(self, series: Tensor) -> None:
        if series.ndim != 3 or series.shape[2] != self.config.channels:
            raise ValueError(
                f"series must have shape (batch, steps, {self.config.channels}), got {tuple(series.shape)}"
            )

    def _embed(self, series: Tensor, mask: Tensor) -> Tensor:
        if mask.dtype != torch.bool or mask.shape != series.shape[:2]:
            raise ValueError(
                f"mask must be bool of shape (batch, steps) = {tuple(series.shape[:2])}, "
                f"got {mask.dtype} of shape {tuple(mask.shape)}"
            )
        # padding may hold NaN, which no mask could undo later
        return self.embedding(torch.where(mask[..., None], series, 0))
