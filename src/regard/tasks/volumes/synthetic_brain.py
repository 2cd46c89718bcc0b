"""Volumes that look like a head: a bright shell around smooth tissue, and one mass that grows from the shell inward.

Meningiomas grow from the skin of the brain, so what tells them apart from other bright things is where they are. Here
every number is drawn: a shell, its texture, one half of an ellipsoid on the inside of the shell (the mass), and, where
asked for, spheres of the same brightness that touch the shell nowhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

SMALLEST_SHARE, LARGEST_SHARE = 5e-4, 0.05
"""Shares of the whole volume between which the mass lies."""
SMALLEST_SIZE = 24
TISSUE, TEXTURE, RIM, CONTRAST, NOISE = 0.35, 0.04, 0.95, (0.32, 0.42), 0.03
"""Mean brightness and deviation of tissue, brightness of the shell, how much brighter masses are than tissue, noise."""
THICKNESS, GAP = 0.07, 0.12
"""Of the shell, and from a sphere's surface to the shell, as shares of the shell's radius."""
_TRIES = 200
_SHAPES = ((-1, 1, 1), (1, -1, 1), (1, 1, -1))

Points = list[NDArray[np.float32]]
Grid = NDArray[np.float32]
Mask = NDArray[np.bool_]
Place = NDArray[np.float64]


def brain(
    random: np.random.Generator, *, size: int = 48, distractors: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A volume and the mask of its mass.

    Args:
        random: where all of its numbers come from.
        size: voxels per side.
        distractors: spheres as bright and as large as masses, away from the shell.

    Returns:
        The image `(x, y, z)`, about from 0 to 1, and the mask, 1 in the mass: 0.05 to 5 % of all voxels.

    Raises:
        ValueError: a volume that is too small for a shell and a mass, or a negative number of spheres.
    """
    if size < SMALLEST_SIZE:
        raise ValueError(f"size must be at least {SMALLEST_SIZE}, got {size}")
    if distractors < 0:
        raise ValueError(f"distractors must not be negative, got {distractors}")
    centre = size / 2 - 0.5 + random.uniform(-0.03, 0.03, 3) * size
    axes = random.uniform(0.36, 0.45, 3) * size
    points = [(np.arange(size, dtype=np.float32) - c).reshape(shape) for c, shape in zip(centre, _SHAPES, strict=True)]
    radius = _radius(points, np.zeros(3), axes)
    inside, shell = radius < 1 - THICKNESS, (radius >= 1 - THICKNESS) & (radius < 1)
    mask = _mass(random, points, axes, inside)
    image = np.zeros((size, size, size), dtype=np.float32)
    image[inside] = TISSUE + _texture(random, size)[inside]
    image[mask] += random.uniform(*CONTRAST)
    taken = mask.copy()
    for _ in range(distractors):
        sphere = _sphere(random, points, axes, avoid=taken)
        image[sphere] += random.uniform(*CONTRAST)
        taken |= sphere
    image[shell] = RIM
    image = gaussian_filter(image, 0.6)
    image += NOISE * random.standard_normal(image.shape, dtype=np.float32)
    return image, mask.astype(np.uint8)


def _radius(points: Points, centre: Place, axes: Place) -> Grid:
    """The distance from a centre, in which the ellipsoid of these half-axes has radius 1."""
    squares = [((p - c) / a) ** 2 for p, c, a in zip(points, centre.tolist(), axes.tolist(), strict=True)]
    return np.sqrt(squares[0] + squares[1] + squares[2])


def _texture(random: np.random.Generator, size: int) -> Grid:
    """Smooth numbers of mean 0 and deviation `TEXTURE`."""
    smooth = gaussian_filter(random.standard_normal((size,) * 3, dtype=np.float32), 0.08 * size, mode="wrap")
    return (smooth * (TEXTURE / smooth.std())).astype(np.float32)


def _direction(random: np.random.Generator) -> Place:
    drawn = random.standard_normal(3)
    return drawn / np.linalg.norm(drawn)


def _drawn_radius(random: np.random.Generator, size: int) -> float:
    """Voxels: as likely small as large between the radii of balls of the smallest and the largest volume."""
    low, high = (size * (3 * share / (4 * np.pi)) ** (1 / 3) for share in (SMALLEST_SHARE, LARGEST_SHARE))
    return float(random.uniform(low, high))


def _mass(random: np.random.Generator, points: Points, axes: Place, inside: Mask) -> Mask:
    """What an ellipsoid with its centre near the inner surface of the shell has inside."""
    size = len(inside)
    for _ in range(_TRIES):
        half_axes = _drawn_radius(random, size) * np.exp(random.uniform(-0.25, 0.25, 3))
        # a part of the ellipsoid is beyond the shell, so that what is inside rests on it
        centre = _direction(random) * (axes * (1 - THICKNESS) - random.uniform(0.1, 0.6) * half_axes.min())
        mass: Mask = (_radius(points, centre, half_axes) < 1) & inside
        if SMALLEST_SHARE <= mass.mean() <= LARGEST_SHARE:
            return mass
    raise RuntimeError(f"no mass of {_TRIES} has an allowed volume")


def _sphere(random: np.random.Generator, points: Points, axes: Place, *, avoid: Mask) -> Mask:
    """A ball of a mass's volume, if it is not too large, that stays clear of the shell and of what is to be avoided."""
    size = len(avoid)
    for _ in range(_TRIES):
        radius = min(_drawn_radius(random, size), 0.3 * float(axes.min()))
        reach = 1 - THICKNESS - GAP - radius / float(axes.min())
        centre = _direction(random) * axes * reach * random.uniform() ** (1 / 3)
        half_axes = np.full(3, radius)
        if not (avoid & (_radius(points, centre, half_axes + 2) < 1)).any():
            return _radius(points, centre, half_axes) < 1
    raise RuntimeError(f"no sphere of {_TRIES} stays clear of the mass")
