"""Images on which HaloNet's claims about halos are trained: larger digits, and pairs of marks across a border."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from regard.claims._small_images import Images, accuracy, digits, fit_classifier
from regard.claims._training import SEEDS, mean
from regard.measure import one_thread
from regard.models.vision.halonet import HaloNet
from regard.models.vision.halonet_config import HaloNetConfig

SIZE, BLOCK = 16, 4
HALOS = (2, 0)
STEPS, BATCH, LEARNING_RATE = 300, 64, 3e-3
RECIPE = f"AdamW with rate {LEARNING_RATE:g}, {STEPS} steps of {BATCH}, {len(SEEDS)} seeds"


@cache
def larger_digits() -> Images:
    """Digits of 16 x 16 pixels, interpolated linearly."""
    small = digits()
    train, test = (interpolate(part, size=SIZE, mode="bilinear") for part in (small.train, small.test))
    return Images(train, small.train_labels, test, small.test_labels)


@cache
def pairs() -> Images:
    """Two marks of random sign, three pixels apart with a block's border between them: are the signs equal?

    A stem of 3x3 sees one pixel beyond a block, which is short of the other mark.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        signs = 2 * torch.randint(2, (count, 2), generator=generator) - 1
        rows = torch.randint(SIZE, (count,), generator=generator)
        borders = BLOCK * torch.randint(1, SIZE // BLOCK, (count,), generator=generator)
        images, number = 0.1 * torch.randn(count, 1, SIZE, SIZE, generator=generator), torch.arange(count)
        images[number, 0, rows, borders - 2] += signs[:, 0]
        images[number, 0, rows, borders + 1] += signs[:, 1]
        return images, (signs[:, 0] == signs[:, 1]).long()

    return Images(*draw(2000), *draw(1000))


def accuracies(images: Images, config: HaloNetConfig) -> dict[int, float]:
    """Mean test accuracy over the seeds, in percent, by the halo's size; every network sees the same batches."""
    found = {}
    with one_thread():
        for halo_size in HALOS:
            build = partial(HaloNet, replace(config, block_size=BLOCK, halo_size=halo_size))
            trained = [
                fit_classifier(build, images, steps=STEPS, batch=BATCH, learning_rate=LEARNING_RATE, seed=seed)
                for seed in SEEDS
            ]
            found[halo_size] = mean([accuracy(model, images) for model in trained])
    return found
