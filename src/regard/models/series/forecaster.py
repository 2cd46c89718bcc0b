"""Forecasts of a multivariate series: a causal encoder over time steps, read at the last one.

Paper: "Attention as an RNN", Feng et al., 2024, https://arxiv.org/abs/2405.13956, section 4 (time series forecasting);
the authors published no code.
All channels of a time step are one token. Each window is normalised by its own mean and standard deviation, and the
forecast scaled back, as in "Non-stationary Transformers", Liu et al., NeurIPS 2022, https://arxiv.org/abs/2205.14415.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from regard.metadata import Variant
from regard.models.series.base import AAREN_SETTINGS, SeriesConfig, SeriesModel, check_sizes
from regard.registry import register

EPS = 1e-5
"""Added to a window's variance: a channel that stands still is only shifted."""


@dataclass(frozen=True, kw_only=True)
class ForecasterConfig(SeriesConfig):
    """The network's sizes; the encoder's are those of `SeriesConfig`.

    Args:
        channels: numbers per time step.
        context_len: time steps that are read.
        horizon: time steps that are forecast.
    """

    channels: int = 7
    context_len: int = 96
    horizon: int = 96

    def __post_init__(self) -> None:
        check_sizes(self, "channels", "context_len", "horizon")


@register(name="aaren_forecaster", system="aaren", paper=AAREN_SETTINGS)
class SeriesForecaster(SeriesModel):
    """Forecasts a window's continuation from the state after its last time step.

    Args:
        config: its sizes.

    Raises:
        UnknownSystemError: no such mixer.
        ValueError: a size that is not positive or that the mixer refuses.
    """

    task: ClassVar[str] = "forecasting"
    SMALL: ClassVar[ForecasterConfig] = ForecasterConfig(dim=64, num_layers=2, num_heads=4, hidden=128)
    VARIANTS: ClassVar[dict[str, Variant]] = {
        f"aaren_forecaster_{horizon}": Variant(config=ForecasterConfig(horizon=horizon))
        for horizon in (96, 192, 336, 720)
    }

    def __init__(self, config: ForecasterConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Linear(config.channels, config.dim)
        self.encoder = config.make_encoder(positions="sinusoidal")
        self.head = nn.Linear(config.dim, config.horizon * config.channels)

    def forward(self, series: Float[Tensor, "batch context channels"]) -> Float[Tensor, "batch horizon channels"]:
        """The time steps that follow, in the series' own units.

        Raises:
            ValueError: another number of time steps or channels.
        """
        config = self.config
        if series.ndim != 3 or tuple(series.shape[1:]) != (config.context_len, config.channels):
            raise ValueError(
                f"series must have shape (batch, {config.context_len}, {config.channels}), got {tuple(series.shape)}"
            )
        mean = series.mean(dim=1, keepdim=True)
        scale = (series.var(dim=1, keepdim=True, correction=0) + EPS).sqrt()
        final = self.encoder(self.embedding((series - mean) / scale))[:, -1]
        forecast = self.head(final).unflatten(-1, (config.horizon, config.channels))
        return forecast * scale + mean
