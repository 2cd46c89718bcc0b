"""Equal parameters for all: the softmax host sets the budget, the others adjust one width of their host to meet it.

The width is that of the perceptrons in the transformer hosts and that inside the blocks of the residual host, so the
mechanism itself is never changed. On images the softmax vision host sets the budget for the residual host too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from regard.compare.hosts import WIDTH_UNITS, Host, LanguageHost, ResidualHost, SeriesHost, VisionHost
from regard.compare.images import patch_size, patches_per_side
from regard.compare.mechanisms import YARDSTICK, is_causal, make_feature_mixer
from regard.compare.settings import Settings
from regard.compare.text import FACTORS
from regard.layers.mixer_by_name import mixer_by_name
from regard.registry import entry_of

TOLERANCE = 0.02
MLP_RATIO = 4
_WIDEST = 16
"""The widest that is tried: 16 times the stage's width in the residual host, 16 times `dim` in the others."""


class BudgetError(ValueError):
    """A mechanism has so many, or so few, parameters that no width brings its host to the budget."""


@dataclass(frozen=True)
class ImageShape:
    """What a host must know of the images: channels, pixels per side, number of classes."""

    channels: int
    size: int
    classes: int


@dataclass(frozen=True)
class SeriesShape:
    """What a host must know of a series: channels, and time steps that it forecasts."""

    channels: int
    horizon: int


Shape = ImageShape | SeriesShape | None
"""What a host must know of the data; None for text."""


@dataclass(frozen=True)
class Fit:
    """A host's width, and the parameters that follow from it.

    Args:
        knob: the width, as `build_host` takes it.
        params: parameters of the whole host.
        mixer_params: those of its mixers.
        budget: what was aimed at.
    """

    knob: int
    params: int
    mixer_params: int
    budget: int

    @property
    def deviation(self) -> float:
        """Relative deviation from the budget."""
        return self.params / self.budget - 1


def build_host(name: str, settings: Settings, shape: Shape, knob: int) -> Host:
    """The host network with a mechanism in it.

    Args:
        name: the mechanism.
        settings: of the race.
        shape: of the data.
        knob: width of the perceptrons, or in the residual host of the blocks (in 1024ths of a stage's width).

    Raises:
        ValueError: the mechanism refuses the sizes.
    """
    if entry_of(name).kind == "feature":
        assert isinstance(shape, ImageShape), "feature mixers race on images"

        def feature_mixer(channels: int) -> nn.Module:
            return make_feature_mixer(name, channels=channels, num_heads=settings.num_heads)

        return ResidualHost(
            feature_mixer,
            dim=settings.dim,
            blocks_per_stage=settings.num_layers,
            knob=knob,
            channels=shape.channels,
            classes=shape.classes,
        )
    causal = is_causal(name, settings.task)

    def sequence_mixer(layer: int) -> nn.Module:
        return mixer_by_name(
            name,
            dim=settings.dim,
            num_heads=settings.num_heads,
            causal=causal,
            layer_idx=layer,
            num_layers=settings.num_layers,
            max_positions=FACTORS[-1] * settings.train_length,
        )

    if shape is None:
        return LanguageHost(sequence_mixer, dim=settings.dim, num_layers=settings.num_layers, hidden=knob)
    if isinstance(shape, SeriesShape):
        return SeriesHost(
            sequence_mixer,
            dim=settings.dim,
            num_layers=settings.num_layers,
            hidden=knob,
            channels=shape.channels,
            horizon=shape.horizon,
        )
    return VisionHost(
        sequence_mixer,
        dim=settings.dim,
        num_layers=settings.num_layers,
        hidden=knob,
        channels=shape.channels,
        patch=patch_size(shape.size),
        tokens=patches_per_side(shape.size) ** 2,
        classes=shape.classes,
        read_last=causal,
    )


def fit(name: str, settings: Settings, shape: Shape) -> Fit:
    """The width with which a mechanism's host comes closest to the budget; counted without allocating anything.

    Raises:
        BudgetError: no width comes within 2 %.
        ValueError: the mechanism refuses the sizes.
    """
    plain = MLP_RATIO * settings.dim
    budget = _count(_on_meta(YARDSTICK, settings, shape, plain))
    residual = entry_of(name).kind == "feature"

    def params(knob: int) -> int:
        return _count(_on_meta(name, settings, shape, knob))

    knob = _nearest(params, budget, highest=_WIDEST * (WIDTH_UNITS if residual else settings.dim))
    host = _on_meta(name, settings, shape, knob)
    found = Fit(knob, _count(host), sum(_count(mixer) for mixer in host.mixers()), budget)
    if abs(found.deviation) > TOLERANCE:
        raise BudgetError(
            f"no width brings its network to the budget of {budget:,} parameters within {TOLERANCE:.0%}: "
            f"the nearest has {found.params:,}, of which {found.mixer_params:,} belong to the mechanism"
        )
    return found


def _on_meta(name: str, settings: Settings, shape: Shape, knob: int) -> Host:
    with torch.device("meta"):
        return build_host(name, settings, shape, knob)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _nearest(params: Callable[[int], int], budget: int, *, highest: int) -> int:
    """The knob in 1..highest whose number of parameters is nearest to the budget; `params` grows with the knob."""
    low, high = 1, highest
    while low < high:
        middle = (low + high) // 2
        if params(middle) < budget:
            low = middle + 1
        else:
            high = middle
    return min((max(1, low - 1), low), key=lambda knob: abs(params(knob) - budget))
