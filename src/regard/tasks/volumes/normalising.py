"""Intensities as a network takes them: shifted and scaled by statistics of the volume itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from regard.tasks.volumes.grids import Array

Normalisation = Literal["zscore", "minmax", "imagenet", "none"]
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of red, green and blue, where bytes are 0 to 1."""
MOST = 1 << 25
"""Voxels from which percentiles are told; of larger volumes every so many are taken."""


@dataclass(frozen=True)
class Scale:
    """What is done to one channel: clipped, shifted, divided.

    Args:
        low: what lies below is raised to it.
        high: what lies above is lowered to it.
        shift: subtracted after that.
        spread: what the difference is divided by; 0 = the channel is constant, and becomes 0.
        zeros_stay: whether exact zeros, the outside of a skull-stripped brain, stay 0.
    """

    low: float
    high: float
    shift: float
    spread: float
    zeros_stay: bool

    def apply(self, values: Array) -> Array:
        """Values of the channel, normalised, as float32."""
        if self.spread == 0:
            return np.zeros(values.shape, dtype=np.float32)
        scaled = (np.clip(values, self.low, self.high) - self.shift) / self.spread
        if self.zeros_stay:
            scaled = np.where(values == 0, 0, scaled)
        return scaled.astype(np.float32)


def scales(values: Array, kind: Normalisation, *, low: float = 0.0, high: float = 100.0) -> tuple[Scale, ...]:
    """What is to be done to every channel.

    Args:
        values: `(channels, x, y, z)`.
        kind: "zscore" (mean 0 and deviation 1 of the voxels that are not 0), "minmax" (0 to 1), "imagenet" (bytes of a
            colour image by the statistics of published networks) or "none".
        low: percentile below which intensities are clipped, for "zscore" and "minmax".
        high: percentile above which they are.

    Raises:
        ValueError: "imagenet" for other than three channels.
    """
    if kind == "imagenet":
        if len(values) != 3:
            raise ValueError(f"normalise=imagenet is for images of 3 channels, got {len(values)}")
        return tuple(Scale(0.0, 255.0, 255 * mean, 255 * spread, False) for mean, spread in zip(*IMAGENET, strict=True))
    return tuple(_scale(channel, kind, low, high) for channel in values)


def _scale(channel: Array, kind: Normalisation, low: float, high: float) -> Scale:
    if kind == "none":
        return Scale(-np.inf, np.inf, 0.0, 1.0, False)
    taken = channel.reshape(-1)[:: max(1, channel.size // MOST)]
    bounds = (low, high)
    least, most = np.percentile(taken, bounds) if bounds != (0.0, 100.0) else (channel.min(), channel.max())
    if kind == "minmax":
        return Scale(float(least), float(most), float(least), float(most - least), False)
    inside = np.clip(taken[taken != 0], least, most).astype(np.float64)
    spread = float(inside.std()) if len(inside) else 0.0
    return Scale(float(least), float(most), float(inside.mean()) if len(inside) else 0.0, spread, True)


def normalise(values: Array, made: tuple[Scale, ...], *, out: Array | None = None) -> Array:
    """Every channel by its own scale, slab by slab.

    Args:
        values: `(channels, x, y, z)`.
        made: what is done to each channel.
        out: where the result goes, `values` themselves allowed; None = a new array.
    """
    normal = np.empty(values.shape, dtype=np.float32) if out is None else out
    for channel, scale in enumerate(made):
        for start in range(0, values.shape[1], 16):
            normal[channel, start : start + 16] = scale.apply(values[channel, start : start + 16])
    return normal
