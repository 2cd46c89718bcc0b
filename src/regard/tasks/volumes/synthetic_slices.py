"""Generated slices of brains with lesions: a sample that needs no download, in three channels like those of TCGA LGG.

A head is an ellipse: skin, dark bone, and a brain of smooth texture with ventricles and a folded rim. Lesions are
ellipsoids with a ragged border, from a few pixels to a third of the brain across; they run through neighbouring slices.
Beyond the brain's border lie bright bands with a lesion's brightness, so that brightness alone does not tell a lesion:
its place inside the brain does. The channels are related as the sequences of magnetic resonance are: before contrast a
lesion is a little darker than the brain, with fluid suppressed it is bright, after contrast its rim is.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SMALLEST = 32
CHANNELS = ("before contrast", "fluid suppressed", "after contrast")
LESIONS, LESION_SHARES = (0, 1, 2), (0.2, 0.5, 0.3)
"""Numbers of lesions of a patient, and how likely each is."""
RADII = 0.05, 0.34
"""Of lesions, in half sides of the image; uniform in their logarithm."""
THICKNESS = 0.06
"""Of a slice, in half sides of the image."""
NOISE = 0.05
"""Its spread; the values lie in 0..1."""

Plane = NDArray[np.floating[Any]]
Levels = tuple[float, float, float]
_SKIN: Levels = (0.55, 0.45, 0.60)
_BRAIN: Levels = (0.45, 0.40, 0.42)
_VENTRICLE: Levels = (-0.22, -0.25, -0.20)
_FOLDS: Levels = (0.06, 0.05, 0.06)
_TEXTURE: Levels = (0.06, 0.08, 0.06)
_LESION: Levels = (-0.07, 0.26, 0.05)
_RIM: Levels = (0.0, 0.0, 0.22)
"""What each part adds in each channel; skin and brain are levels of their own."""


def slices(
    random: np.random.Generator, *, size: int = 96, count: int = 4
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Neighbouring slices of one patient.

    Args:
        random: where all numbers come from.
        size: pixels per side.
        count: number of slices.

    Returns:
        The image `(3, x, y, count)` with values in 0..1, and the mask of the lesions `(x, y, count)`, 0 or 1.

    Raises:
        ValueError: fewer than 32 pixels, or no slice.
    """
    if size < SMALLEST or count < 1:
        raise ValueError(f"size must be at least {SMALLEST} and count at least 1, got size={size} and count={count}")
    frame = _Frame(
        axes=(random.uniform(0.56, 0.66), random.uniform(0.66, 0.80)),
        tilt=random.uniform(-0.3, 0.3),
        shift=(random.normal(0, 0.03), random.normal(0, 0.03)),
    )
    middle = random.uniform(-0.3, 0.3)
    depths = [middle + THICKNESS * (number - (count - 1) / 2) for number in range(count)]
    lesions = [_Lesion(random, frame, depths) for _ in range(random.choice(LESIONS, p=LESION_SHARES))]
    bands = [_Band(random) for _ in range(random.integers(2, 5))]
    gains = random.uniform(0.9, 1.1, 3).astype(np.float32)
    image = np.empty((3, size, size, count), np.float32)
    mask = np.empty((size, size, count), np.uint8)
    for number, depth in enumerate(depths):
        made = _slice(random, _head(size, frame, depth), lesions, bands, depth)
        image[..., number], mask[..., number] = made
    image *= gains[:, None, None, None]
    return image.clip(0, 1, out=image), mask


class _Frame(NamedTuple):
    """Where the brain lies: half axes in its middle, angle, and offset from the image's middle, in half sides."""

    axes: tuple[float, float]
    tilt: float
    shift: tuple[float, float]


class _Head(NamedTuple):
    """One slice's coordinates from the brain's middle; the radius is 1 at the brain's border."""

    x: Plane
    y: Plane
    radius: Plane
    angle: Plane


class _Lesion:
    """An ellipsoid with a ragged border.

    Args:
        random: where its numbers come from.
        frame: of the brain.
        depths: of the slices, most of which it meets unless it is small.
    """

    def __init__(self, random: np.random.Generator, frame: _Frame, depths: list[float]) -> None:
        low, high = (math.log(radius) for radius in RADII)
        self.radius = math.exp(random.uniform(low, high))
        self.aspect = random.uniform(0.7, 1.4)
        self.turn = random.uniform(0, math.pi)
        reach = 0.6 * self.radius
        self.depth = random.uniform(depths[0] - reach, depths[-1] + reach)
        angle = random.uniform(0, 2 * math.pi)
        # large lesions lie further from the border, which cuts what sticks out
        room = max(0.1, 0.88 - 0.75 * self.radius / min(frame.axes)) * math.sqrt(random.uniform(0.05, 1))
        self.middle = room * frame.axes[0] * math.cos(angle), room * frame.axes[1] * math.sin(angle)
        # (2, 3, 5, 7) waves around the border, the shorter the shallower
        self.waves = [(wave, random.normal(0, 0.18 / wave), random.uniform(0, 2 * math.pi)) for wave in (2, 3, 5, 7)]
        self.contrast = random.uniform(0.4, 1.0)

    def meets(self, depth: float) -> bool:
        """Whether the slice at this depth cuts more than the tip."""
        return abs(depth - self.depth) < 0.9 * self.radius

    def distance(self, head: _Head, depth: float) -> Plane:
        """1 at the border, below it inside, in a slice that it meets."""
        x, y = head.x - self.middle[0], head.y - self.middle[1]
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        along, across = (x * cos + y * sin) * self.aspect, (y * cos - x * sin) / self.aspect
        angle = np.arctan2(across, along)
        ragged = np.ones_like(angle)
        for wave, amplitude, phase in self.waves:
            ragged += amplitude * np.cos(wave * angle + phase)
        radius = math.sqrt(self.radius**2 - (depth - self.depth) ** 2)
        return np.hypot(along, across) / (radius * ragged.clip(0.5))


class _Band:
    """An arc around the brain, as bright as a lesion: in the skin, or along the brain's border.

    Args:
        random: where its numbers come from.
    """

    def __init__(self, random: np.random.Generator) -> None:
        self.middle, self.half_length = random.uniform(-math.pi, math.pi), random.uniform(0.12, 0.7)
        self.half_width = random.uniform(0.03, 0.09)
        self.radius = random.uniform(1.03 + self.half_width, 1.25)

    def share(self, head: _Head) -> Plane:
        """1 in the band, 0 outside."""
        turned = np.abs((head.angle - (self.middle - math.pi)) % (2 * math.pi) - math.pi) / self.half_length
        return _soft(np.maximum(turned, np.abs(head.radius - self.radius) / self.half_width), 0.25)


def _slice(
    random: np.random.Generator, head: _Head, lesions: list[_Lesion], bands: list[_Band], depth: float
) -> tuple[Plane, NDArray[np.bool_]]:
    """The channels `(3, x, y)` and the mask of one slice."""
    size = len(head.radius)
    brain, skin = _soft(head.radius, 0.04), _soft(np.abs(head.radius - 1.21) / 0.11, 0.3)
    texture = _smooth(random, size, 6) + 0.6 * _smooth(random, size, 16)
    band = np.maximum.reduce([each.share(head) for each in bands]) * (1 - brain)
    folds = brain * _soft(0.84 / np.maximum(head.radius, 0.01), 0.1) * np.cos(22 * head.angle + 4 * texture)
    ventricle = _soft(np.hypot((np.abs(head.x) - 0.09) / 0.07, head.y / 0.24) + 0.2 * texture, 0.3)
    lesion, rim = np.zeros_like(brain), np.zeros_like(brain)
    mask = np.zeros(brain.shape, bool)
    for each in (each for each in lesions if each.meets(depth)):
        distance = each.distance(head, depth)
        lesion = np.maximum(lesion, each.contrast * _soft(distance, 0.15))
        rim = np.maximum(rim, each.contrast * np.exp(-(((distance - 0.85) / 0.18) ** 2)))
        mask |= distance <= 1
    inside = brain * (1 - lesion.clip(0, 1))
    parts = (
        (np.maximum(skin, band), _SKIN),
        (brain, _BRAIN),
        (inside * texture, _TEXTURE),
        (inside * folds, _FOLDS),
        (inside * ventricle, _VENTRICLE),
        (brain * lesion + band, _LESION),
        (brain * rim, _RIM),
    )
    levels = np.array([level for _, level in parts], np.float32)
    image = np.tensordot(levels.T, np.stack([plane for plane, _ in parts]), axes=1)
    image += NOISE * random.standard_normal(image.shape, dtype=np.float32)
    return image, mask & (head.radius <= 1)


def _head(size: int, frame: _Frame, depth: float) -> _Head:
    """The brain is a ball in depth: it is smaller away from its middle."""
    line = ((np.arange(size) + 0.5) * (2 / size) - 1).astype(np.float32)
    x, y = line[:, None] - frame.shift[0], line[None, :] - frame.shift[1]
    cos, sin = math.cos(frame.tilt), math.sin(frame.tilt)
    x, y = x * cos + y * sin, y * cos - x * sin
    shrunk = math.sqrt(1 - depth**2)
    return _Head(x, y, np.hypot(x / (shrunk * frame.axes[0]), y / (shrunk * frame.axes[1])), np.arctan2(y, x))


def _soft(distance: Plane, width: float) -> Plane:
    """1 where the distance is below 1, 0 above, and a passage of this width between."""
    return ((1 + width / 2 - distance) / width).clip(0, 1)


def _smooth(random: np.random.Generator, size: int, knots: int) -> Plane:
    """Smooth noise of about unit spread."""
    bumps = _bumps(size, knots)
    return bumps @ random.standard_normal((knots, knots), dtype=np.float32) @ bumps.T


@functools.cache
def _bumps(size: int, knots: int) -> Plane:
    """Of every knot a bump over the pixels `(pixel, knot)`; the squares of each pixel's add up to 1."""
    offsets = np.arange(size)[:, None] / (size - 1) - np.linspace(0, 1, knots)
    bumps = np.exp(-0.5 * (offsets * (knots - 1) / 0.6) ** 2)
    return (bumps / np.linalg.norm(bumps, axis=1, keepdims=True)).astype(np.float32)
