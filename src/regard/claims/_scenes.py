"""Synthetic scenes for claims about structure: two or three objects on an empty background, each of two coloured parts.

A class of objects is a pair of different colours, and an image's label says which classes are in it. Colours alone do
not tell: red-green beside blue-yellow has the same colours as red-blue beside green-yellow, so that a network has to
find out which parts belong together, although no part and no object is ever marked.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

COLOURS = np.array([(1.0, 0.1, 0.1), (0.1, 0.8, 0.1), (0.2, 0.2, 1.0), (0.9, 0.9, 0.1)])
CLASSES = list(itertools.combinations(range(len(COLOURS)), 2))
"""Pairs of colours, as numbers."""
GRID, PATCH = 8, 4
IMAGE_SIZE = GRID * PATCH
PART = 2
"""Rows and columns of patches of a part; an object is two parts one above or beside the other."""
NOISE = 0.1


@dataclass(frozen=True)
class Scenes:
    """Images of scenes, their labels, and what is only for measuring.

    Args:
        images: `(number, 3, 32, 32)`, values about in -1..1.
        labels: `(number, classes)`: 1 where an object of the class is in the image, else 0.
        parts: `(number, 8, 8)`: of every patch of 4 x 4 pixels the number of its part in the image, 0 = background.
    """

    images: Float[Tensor, "number channels y x"]
    labels: Float[Tensor, "number classes"]
    parts: Int[Tensor, "number rows columns"]


def make_scenes(number: int, *, seed: int) -> Scenes:
    """Scenes of two or three objects of different classes, which do not touch."""
    random = np.random.default_rng(seed)
    made = [_scene(random) for _ in range(number)]
    images, labels, parts = (np.stack(each) for each in zip(*made, strict=True))
    return Scenes(torch.from_numpy(images).float(), torch.from_numpy(labels).float(), torch.from_numpy(parts))


def _scene(random: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    parts, labels = np.zeros((GRID, GRID), dtype=np.int64), np.zeros(len(CLASSES))
    colours = np.zeros((GRID, GRID, 3))
    objects = random.choice(len(CLASSES), size=random.integers(2, 4), replace=False)
    for place, kind in zip(_places(random, len(objects)), objects, strict=True):
        labels[kind] = 1
        for area, colour in zip(place, random.permutation(CLASSES[kind]), strict=True):
            parts[area] = parts.max() + 1
            colours[area] = COLOURS[colour]
    pixels = colours.repeat(PATCH, axis=0).repeat(PATCH, axis=1).transpose(2, 0, 1)
    return 2 * pixels - 1 + NOISE * random.standard_normal(pixels.shape), labels, parts


Area = tuple[slice, slice]


def _places(random: np.random.Generator, count: int) -> list[tuple[Area, Area]]:
    """Two adjacent areas for each object, with a patch of background at least between objects."""
    while True:
        taken, found = np.zeros((GRID, GRID), dtype=bool), []
        for _ in range(count):
            lying = bool(random.integers(2))
            height, width = (PART, 2 * PART) if lying else (2 * PART, PART)
            top, left = random.integers(GRID - height + 1), random.integers(GRID - width + 1)
            around = (slice(max(0, top - 1), top + height + 1), slice(max(0, left - 1), left + width + 1))
            if taken[around].any():
                break
            taken[top : top + height, left : left + width] = True
            down, across = (0, PART) if lying else (PART, 0)
            first = (slice(top, top + PART), slice(left, left + PART))
            second = (slice(top + down, top + down + PART), slice(left + across, left + across + PART))
            found.append((first, second))
        else:
            return found
