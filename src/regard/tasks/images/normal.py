"""What images look like to a network: channels, size, and the statistics that they are normalised by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.tasks.images.decoding import Pixels
from regard.tasks.images.settings import LARGEST_SIDE

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation that published networks were trained with."""


@dataclass(frozen=True)
class Normal:
    """What images look like to the network.

    Args:
        channels: 1 or 3.
        size: pixels per side.
        mean: of each channel, where bytes are 0 to 1.
        spread: standard deviation of each channel.

    Raises:
        ValueError: numbers that no image has.
    """

    channels: int
    size: int
    mean: tuple[float, ...]
    spread: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.channels not in (1, 3) or not 1 <= self.size <= LARGEST_SIDE:
            raise ValueError(f"there are no images of {self.channels} channels and {self.size} pixels")
        if not len(self.mean) == len(self.spread) == self.channels:
            raise ValueError(f"{self.channels} channels have {len(self.mean)} means and {len(self.spread)} deviations")
        if not all(map(math.isfinite, self.mean)) or not all(0 < value < math.inf for value in self.spread):
            raise ValueError(f"images are not normalised by {self.mean} and {self.spread}")

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Normal:
        """What `facts` gave.

        Raises:
            KeyError, TypeError, ValueError: something else.
        """
        channels, height, width = (int(number) for number in facts["shape"])
        if height != width:
            raise ValueError(f"images are squares, not {height} by {width}")
        mean, spread = (tuple(float(value) for value in facts[name]) for name in ("mean", "spread"))
        return cls(channels, height, mean, spread)

    def facts(self) -> dict[str, Any]:
        """As plain JSON data."""
        return {
            "shape": [self.channels, self.size, self.size],
            "mean": list(self.mean),
            "spread": list(self.spread),
        }

    def of(self, pixels: Pixels) -> Tensor:
        """Bytes `(images, channels, y, x)` as the network takes them."""
        mean, spread = (torch.tensor(values)[:, None, None] for values in (self.mean, self.spread))
        return (torch.from_numpy(pixels).float() / 255 - mean) / spread
