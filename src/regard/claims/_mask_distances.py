"""Random masks, and distances between their surfaces by brute force, to hold metrics against."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.distance import cdist

Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]


def random_pairs(number: int, *, seed: int) -> Iterator[tuple[Mask, Mask, Spacing]]:
    """Pairs of masks that overlap in part, and a spacing; every twentieth pair has an empty mask, or two.

    Args:
        number: of pairs.
        seed: of everything.
    """
    for index in range(number):
        random = np.random.default_rng([seed, index])
        shape = tuple(int(side) for side in random.integers(5, 15, 3))
        shared = ndimage.gaussian_filter(random.standard_normal(shape), 1.5)
        made = []
        for _ in range(2):
            field = shared + 0.7 * ndimage.gaussian_filter(random.standard_normal(shape), 1.5)
            made.append(field > np.quantile(field, random.uniform(0.5, 0.97)))
        if index % 20 == 0:
            # in turn the first, the second, and both
            for which in ((0,), (1,), (0, 1))[index // 20 % 3]:
                made[which] = np.zeros(shape, bool)
        x, y, z = random.uniform(0.5, 4.0, 3)
        yield made[0], made[1], (float(x), float(y), float(z))


def surface(mask: Mask) -> Mask:
    """Voxels with one of their six face neighbours outside the mask, the outside of the volume included."""
    padded = np.pad(mask, 1)
    inside = mask.copy()
    for axis in range(mask.ndim):
        for offset in (-1, 1):
            neighbour = np.roll(padded, offset, axis=axis)
            inside &= neighbour[tuple(slice(1, -1) for _ in range(mask.ndim))]
    return mask & ~inside


def directed_distances(
    first: Mask, second: Mask, spacing: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """From each surface voxel of one mask to the nearest of the other, both ways, over all pairs of voxels."""
    points = [np.argwhere(surface(mask)) * np.array(spacing) for mask in (first, second)]
    between = cdist(*points)
    return between.min(axis=1), between.min(axis=0)


def hd95_by_definition(found: Mask, true: Mask, spacing: Sequence[float], *, pooled: bool) -> float:
    """The 95th percentile of the distances: of both directions together, or the larger of both directions'.

    0 where both masks are empty; the volume's diagonal where one is.
    """
    if not found.any() or not true.any():
        diagonal = math.hypot(*(side * step for side, step in zip(found.shape, spacing, strict=True)))
        return 0.0 if found.any() == true.any() else diagonal
    there, back = directed_distances(found, true, spacing)
    if pooled:
        return float(np.percentile(np.concatenate((there, back)), 95))
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))
