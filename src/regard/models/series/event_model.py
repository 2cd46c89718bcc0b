"""A marked temporal point process: when the next event comes, and of which kind, from all events so far.

Papers: "Attention as an RNN", Feng et al., 2024, https://arxiv.org/abs/2405.13956, section 4 (event forecasting; the
authors published no code); the distribution of the next event is that of "Intensity-Free Learning of Temporal Point
Processes", Shchur et al., ICLR 2020, https://arxiv.org/abs/1909.12127: a log-normal mixture of the time since the
last event, and independently of it, given the past, a categorical distribution of the mark.
An event is one token: its mark's embedding and a linear map of its time's standardised logarithm.
A learned token stands before the first event, so that it has a distribution as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from regard.layers.encoder_block import EncoderState
from regard.metadata import Variant
from regard.models.series.base import AAREN_SETTINGS, SeriesConfig, SeriesModel, check_sizes
from regard.ops.log_normal_mixture import log_normal_mixture_log_prob, log_normal_mixture_mean
from regard.registry import register

LARGEST_LOG_SCALE = 3.0
"""Bound on the logarithms of the components' widths, both ways: a component on a single time would have any density."""


@dataclass(frozen=True, kw_only=True)
class EventModelConfig(SeriesConfig):
    """The network's sizes; the encoder's are those of `SeriesConfig`.

    Args:
        num_marks: kinds of events.
        components: of the mixture.
        log_time_mean: mean of the logarithms of the training data's inter-event times.
        log_time_std: their standard deviation.
        min_time: shorter times, such as those of simultaneous events, count as this one.
    """

    num_marks: int = 3
    components: int = 16
    log_time_mean: float = 0.0
    log_time_std: float = 1.0
    min_time: float = 1e-6

    def __post_init__(self) -> None:
        check_sizes(self, "num_marks", "components")
        for name in ("log_time_std", "min_time"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


class EventForecast(NamedTuple):
    """What is expected of an event: in every row and place, a mixture over times and a distribution over marks."""

    log_weights: Float[Tensor, "batch places components"]
    """Logarithms of the components' probabilities."""
    means: Float[Tensor, "batch places components"]
    """Of the standardised logarithms of times."""
    log_scales: Float[Tensor, "batch places components"]
    """Logarithms of the components' standard deviations."""
    mark_log_probs: Float[Tensor, "batch places marks"]
    """Logarithms of the marks' probabilities."""


@register(name="aaren_event_model", system="aaren", paper=AAREN_SETTINGS)
class EventModel(SeriesModel):
    """The next event's time and mark, given all events before it.

    Args:
        config: its sizes.

    Raises:
        UnknownSystemError: no such mixer.
        ValueError: a size that is not positive or that the mixer refuses.
    """

    task: ClassVar[str] = "events"
    SMALL: ClassVar[EventModelConfig] = EventModelConfig(dim=64, num_layers=2, num_heads=4, hidden=128, components=8)
    VARIANTS: ClassVar[dict[str, Variant]] = {"aaren_events": Variant(config=EventModelConfig())}

    def __init__(self, config: EventModelConfig) -> None:
        super().__init__()
        self.config = config
        self.start_token = nn.Parameter(torch.empty(config.dim))
        nn.init.normal_(self.start_token)
        self.mark_embedding = nn.Embedding(config.num_marks, config.dim)
        self.time_embedding = nn.Linear(1, config.dim)
        self.encoder = config.make_encoder(positions="sinusoidal")
        self.time_head = nn.Linear(config.dim, 3 * config.components)
        self.mark_head = nn.Linear(config.dim, config.num_marks)

    def forward(
        self,
        times: Float[Tensor, "batch events"],
        marks: Int[Tensor, "batch events"],
        *,
        mask: Bool[Tensor, "batch events"] | None = None,
    ) -> EventForecast:
        """What is expected of each event given those before it, and, in one place more, of the event after the last.

        Args:
            times: since the event before; of the first event, since the beginning.
            marks: kinds, from 0.
            mask: True = real event. Places of masked events have no meaning.

        Raises:
            ValueError: shapes or types that do not fit.
        """
        self._check(times, marks, mask)
        start = self.start_token.expand(times.shape[0], 1, -1)
        tokens = torch.cat((start, self._embed(times, marks, mask)), dim=1)
        if mask is not None:
            mask = torch.cat((torch.ones_like(mask[:, :1]), mask), dim=1)
        return self._forecast(self.encoder(tokens, mask=mask))

    def log_prob(
        self,
        times: Float[Tensor, "batch events"],
        marks: Int[Tensor, "batch events"],
        *,
        mask: Bool[Tensor, "batch events"] | None = None,
    ) -> tuple[Float[Tensor, "batch events"], Float[Tensor, "batch events"]]:
        """Log density of each event's time, and log probability of its mark, given the events before it; 0 at masked
        events. Arguments as for `forward`.

        Raises:
            ValueError: shapes or types that do not fit.
        """
        forecast = self.forward(times, marks, mask=mask)
        log_weights, means, log_scales, mark_log_probs = (self._at_events(part, mask) for part in forecast)
        config = self.config
        if mask is not None:
            times, marks = torch.where(mask, times, 1.0), torch.where(mask, marks, 0)
        of_times = log_normal_mixture_log_prob(
            times.clamp_min(config.min_time),
            log_weights,
            means,
            log_scales,
            shift=config.log_time_mean,
            scale=config.log_time_std,
        )
        of_marks = mark_log_probs.take_along_dim(marks.long()[..., None], dim=-1)[..., 0]
        if mask is None:
            return of_times, of_marks
        return torch.where(mask, of_times, 0), torch.where(mask, of_marks, 0)

    def loss(
        self,
        times: Float[Tensor, "batch events"],
        marks: Int[Tensor, "batch events"],
        *,
        mask: Bool[Tensor, "batch events"] | None = None,
    ) -> Float[Tensor, ""]:
        """Negative log-likelihood per event, of times and marks together; 0 where there is no event at all.

        Raises:
            ValueError: shapes or types that do not fit.
        """
        of_times, of_marks = self.log_prob(times, marks, mask=mask)
        count = times.numel() if mask is None else mask.sum().clamp_min(1)
        return -(of_times + of_marks).sum() / count

    def expected_time(self, forecast: EventForecast) -> Float[Tensor, "batch places"]:
        """The mean of the time since the event before, in the data's unit."""
        return log_normal_mixture_mean(*forecast[:3], shift=self.config.log_time_mean, scale=self.config.log_time_std)

    def start(self, batch: int, *, max_len: int | None = None) -> tuple[EventForecast, EncoderState]:
        """What is expected of the first event, and the state from which `step` goes on.

        Args:
            batch: number of rows.
            max_len: number of events to make room for, if known.
        """
        state = self.encoder.init_state(batch, max_len=None if max_len is None else max_len + 1)
        states, state = self.encoder.step(self.start_token.expand(batch, 1, -1), state)
        return self._forecast(states), state

    def step(
        self,
        times: Float[Tensor, "batch events"],
        marks: Int[Tensor, "batch events"],
        state: EncoderState,
        *,
        mask: Bool[Tensor, "batch events"] | None = None,
    ) -> tuple[EventForecast, EncoderState]:
        """What is expected after each of one or more events that follow those in `state`, which is consumed.

        Raises:
            ValueError: shapes or types that do not fit, or a mixer that does not decode.
        """
        self._check(times, marks, mask)
        states, state = self.encoder.step(self._embed(times, marks, mask), state, mask=mask)
        return self._forecast(states), state

    def _check(self, times: Tensor, marks: Tensor, mask: Tensor | None) -> None:
        if times.ndim != 2 or times.shape != marks.shape or not times.is_floating_point():
            raise ValueError(
                f"times and marks must have the same shape (batch, events), and times be floating point, got "
                f"{tuple(times.shape)} and {tuple(marks.shape)}, {times.dtype}"
            )
        if marks.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"marks must be int32 or int64, got {marks.dtype}")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != times.shape):
            raise ValueError(
                f"mask must be bool of shape (batch, events) = {tuple(times.shape)}, "
                f"got {mask.dtype} of shape {tuple(mask.shape)}"
            )

    def _embed(self, times: Tensor, marks: Tensor, mask: Tensor | None) -> Tensor:
        config = self.config
        if mask is not None:
            times, marks = torch.where(mask, times, 1.0), torch.where(mask, marks, 0)
        logs = (times.clamp_min(config.min_time).log() - config.log_time_mean) / config.log_time_std
        return self.mark_embedding(marks) + self.time_embedding(logs[..., None])

    def _forecast(self, states: Tensor) -> EventForecast:
        weights, means, log_scales = self.time_head(states).chunk(3, dim=-1)
        return EventForecast(
            log_softmax(weights, dim=-1),
            means,
            LARGEST_LOG_SCALE * torch.tanh(log_scales / LARGEST_LOG_SCALE),
            log_softmax(self.mark_head(states), dim=-1),
        )

    @staticmethod
    def _at_events(part: Tensor, mask: Tensor | None) -> Tensor:
        """What was known before each event: the place after the last real one before it."""
        if mask is None:
            return part[:, :-1]
        places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        latest = torch.where(mask, places, 0).cummax(dim=1).values
        before = torch.cat((torch.zeros_like(latest[:, :1]), latest[:, :-1]), dim=1)
        return part.take_along_dim(before[..., None], dim=1)
