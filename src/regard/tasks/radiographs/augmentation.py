"""Random views of radiographs for training: shifts, turns, mirroring, zoom and brightness, a whole batch at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Images = Float[Tensor, "batch channels y x"]


@dataclass(frozen=True, kw_only=True)
class RadiographAugmentation:
    """How far a view may be from its image; every choice is uniform.

    Args:
        translation: largest shift along either axis, over the image's side.
        rotation: largest turn in degrees.
        zoom: largest change of size: a view is from 1 - zoom to 1 + zoom times as large.
        intensity: largest change of contrast, as a share, and of brightness, in standard deviations.
        flip: whether left and right are exchanged, in half of the views.
    """

    translation: float = 0.1
    rotation: float = 10.0
    zoom: float = 0.15
    intensity: float = 0.1
    flip: bool = True

    def views(self, images: Images, random: np.random.Generator) -> Images:
        """A view of each image; what lies beyond its border is the border's colour.

        Args:
            images: squares, normalised.
            random: all choices are drawn from it.
        """
        rows = len(images)
        grid = F.affine_grid(self._maps(rows, random), list(images.shape), align_corners=False).to(images.dtype)
        views = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
        contrast, brightness = torch.from_numpy(random.uniform(-self.intensity, self.intensity, (2, rows, 1, 1, 1))).to(
            images.dtype
        )
        return torch.addcmul(views + brightness, views, contrast)

    def _maps(self, rows: int, random: np.random.Generator) -> Float[Tensor, "batch 2 3"]:
        """From a view's coordinates, -1 to 1, to its image's."""
        turn = random.uniform(-self.rotation, self.rotation, rows) * (math.pi / 180)
        scale = 1 / random.uniform(1 - self.zoom, 1 + self.zoom, rows)
        # the whole side is 2 long in these coordinates
        shift = 2 * random.uniform(-self.translation, self.translation, (rows, 2))
        mirror = np.where(random.uniform(size=rows) < 0.5, -1.0, 1.0) if self.flip else np.ones(rows)
        cosine, sine = scale * np.cos(turn), scale * np.sin(turn)
        first = np.stack([mirror * cosine, -sine, shift[:, 0]], axis=1)
        second = np.stack([mirror * sine, cosine, shift[:, 1]], axis=1)
        return torch.from_numpy(np.stack([first, second], axis=1))
