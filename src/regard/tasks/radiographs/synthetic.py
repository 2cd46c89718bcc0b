"""Generated chest radiographs with subtle lesions: what is a finding depends on where it lies.

Two darker ellipses stand for the lungs on a textured background with ribs. Faint bright spots lie outside of them in
every image; in a positive one, one of the spots lies inside. The number of spots says nothing about the class, and a
spot by itself looks the same wherever it lies: the class is told by its place.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NEGATIVE, POSITIVE = 0, 1
CLASSES = ("negative", "positive")
Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

SPOTS = (3, 5)
"""Fewest and most spots of an image."""
RADIUS = (0.035, 0.055)
"""Of a spot, as a share of the image's side: its brightness falls to 61 % there."""
BRIGHTNESS = (0.14, 0.22)
NOISE = 0.04
LARGEST_TRIES = 1000


class Chest(NamedTuple):
    """A generated radiograph.

    Args:
        image: `(y, x)`, from 0 to 1.
        lungs: where the two ellipses are.
        lesion: where the spot inside them is; nowhere in negative images.
        label: 1 = positive.
    """

    image: Image
    lungs: Mask
    lesion: Mask
    label: int


def chest(random: np.random.Generator, *, size: int = 64) -> Chest:
    """A radiograph of either class, as likely as not.

    Args:
        random: all choices are drawn from it.
        size: pixels per side.

    Raises:
        ValueError: fewer than 16 pixels, on which spots cannot be told from noise.
    """
    if size < 16:
        raise ValueError(f"size must be at least 16, got {size}")
    label = int(random.integers(2))
    lungs = _lungs(random, size)
    image = _body(random, size, lungs)
    lesion = np.zeros((size, size), dtype=bool)
    for number in range(int(random.integers(SPOTS[0], SPOTS[1] + 1))):
        inside = label == POSITIVE and number == 0
        radius = float(random.uniform(*RADIUS)) * size
        squared = _distances(size, _place(random, lungs, inside=inside, radius=radius))
        image += float(random.uniform(*BRIGHTNESS)) * np.exp(-squared / (2 * radius**2))
        if inside:
            lesion = squared <= (1.5 * radius) ** 2
    image += NOISE * random.standard_normal((size, size))
    return Chest(image.clip(0, 1).astype(np.float32), lungs, lesion, label)


def _lungs(random: np.random.Generator, size: int) -> Mask:
    """Two upright ellipses beside the middle."""
    y, x = _grid(size)
    found = np.zeros((size, size), dtype=bool)
    top = 0.5 + float(random.uniform(-0.05, 0.05))
    for side in (-1, 1):
        middle_y, middle_x = top + random.uniform(-0.02, 0.02), 0.5 + side * random.uniform(0.18, 0.23)
        half_y, half_x = random.uniform(0.26, 0.33), random.uniform(0.12, 0.15)
        found |= ((y - middle_y) / half_y) ** 2 + ((x - middle_x) / half_x) ** 2 <= 1
    return found


def _body(random: np.random.Generator, size: int, lungs: Mask) -> NDArray[np.float64]:
    """Soft tissue that is uneven, darker lungs with soft borders, and ribs across both."""
    y, x = _grid(size)
    smooth = np.zeros((size, size))
    for waves, strength in ((2, 0.05), (4, 0.04), (8, 0.03)):
        smooth += strength * _enlarged(random.standard_normal((waves + 1, waves + 1)), size)
    bend = random.uniform(0.3, 0.6) * (x - 0.5) ** 2
    ribs = 0.03 * np.sin(2 * np.pi * (random.uniform(6, 9) * (y + bend) + random.uniform()))
    return 0.55 + smooth + ribs - 0.2 * _softened(lungs.astype(np.float64))


def _place(random: np.random.Generator, lungs: Mask, *, inside: bool, radius: float) -> tuple[float, float]:
    """The middle of a spot that lies in the lungs, or outside of them, as a whole."""
    size = len(lungs)
    wanted = lungs if inside else ~lungs
    for _ in range(LARGEST_TRIES):
        y, x = random.uniform(radius, size - radius, 2)
        # most places fail at the pixel in the middle, which is quick to see
        if wanted[int(y), int(x)] and wanted[_distances(size, (y, x)) <= (1.5 * radius) ** 2].all():
            return float(y), float(x)
    raise AssertionError("there is always room for a spot")


def _distances(size: int, middle: tuple[float, float]) -> NDArray[np.float64]:
    """The squared distance of every pixel from a point, in pixels."""
    y, x = _grid(size)
    return (size * y - middle[0]) ** 2 + (size * x - middle[1]) ** 2


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The middles of pixels from 0 to 1."""
    places = (np.arange(size) + 0.5) / size
    return places[:, None], places[None, :]


def _enlarged(coarse: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """A coarse grid interpolated linearly along both axes."""
    places = np.linspace(0, len(coarse) - 1, size)
    lower = np.minimum(places.astype(int), len(coarse) - 2)
    share = places - lower
    rows = coarse[lower] * (1 - share)[:, None] + coarse[lower + 1] * share[:, None]
    return rows[:, lower] * (1 - share) + rows[:, lower + 1] * share


def _softened(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Twice the mean over a pixel and its neighbours along both axes."""
    for _ in range(2):
        for axis in (0, 1):
            values = (values + np.roll(values, 1, axis) + np.roll(values, -1, axis)) / 3
    return values


def write_sample(folder: Path, *, train: int = 1200, test: int = 300, size: int = 64, seed: int = 0) -> None:
    """Write radiographs as PNG files with COVIDx lists: `train.txt`, `test.txt` and a folder beside each.

    Every third patient has two images, both of one part.

    Args:
        folder: where to; it must exist.
        train: images to train on.
        test: images to test on.
        size: pixels per side.
        seed: of all choices.
    """
    from PIL import Image as Pictures

    random = np.random.default_rng(seed)
    patient = 0
    for part, count in (("train", train), ("test", test)):
        (folder / part).mkdir()
        lines = []
        for number in range(count):
            patient += number == 0 or number % 4 != 3
            made = chest(random, size=size)
            name = f"{part}-{number:05}.png"
            Pictures.fromarray(np.rint(made.image * 255).astype(np.uint8)).save(folder / part / name, compress_level=1)
            lines.append(f"{patient} {name} {CLASSES[made.label]} generated\n")
        (folder / f"{part}.txt").write_text("".join(lines), encoding="utf-8")
