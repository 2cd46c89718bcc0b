"""Images in a race: how they become patches, and which are seen at a step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from regard.compare.settings import MAX_PATCHES_PER_SIDE, MIN_PATCH_SIZE


def training_batch(images: int, *, seed: int, step: int, batch: int) -> NDArray[np.int64]:
    """The numbers of the images of one step, the same for every mechanism: whole passes, each in a new order.

    Args:
        images: size of the training part.
        seed: which training run.
        step: which step, from 0.
        batch: images per step.
    """
    places = np.arange(step * batch, (step + 1) * batch)
    chosen = np.empty(batch, dtype=np.int64)
    for epoch in np.unique(places // images):
        order = np.random.default_rng([seed, int(epoch)]).permutation(images)
        here = places // images == epoch
        chosen[here] = order[places[here] % images]
    return chosen


def patch_size(image_size: int) -> int:
    """Pixels per side of a patch: an image becomes 8 by 8 patches, but none is smaller than 2 by 2 pixels."""
    return max(MIN_PATCH_SIZE, image_size // MAX_PATCHES_PER_SIDE)


def patches_per_side(image_size: int) -> int:
    """Patches along each side of an image."""
    return image_size // patch_size(image_size)
