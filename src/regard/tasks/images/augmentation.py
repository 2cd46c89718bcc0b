"""Random views of images for training, by torchvision's and timm's transforms, and mixtures of whole batches.

Both libraries draw from the global generators of Python, NumPy and PyTorch. Around every batch these are seeded from
the step's own generator and put back afterwards, so that a batch depends on nothing else.
"""

from __future__ import annotations

import random as python_random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regard.errors import UserError
from regard.tasks.images.decoding import Pixels, pixels_of

Level = Literal["none", "light", "strong"]
SMALLEST_SHARE: dict[Level, float] = {"light": 0.35, "strong": 0.08}
"""Smallest area of a crop over that of the image."""
RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
ERASING = 0.25
"""Probability that a rectangle of an image becomes noise."""
TRANSLATION = 0.45
"""Largest shift over the image's side."""
STRONGEST = 9.99
"""Just below the end of timm's scale, where posterising would leave no bit, which Pillow refuses."""


@contextmanager
def seeded(random: np.random.Generator) -> Iterator[None]:
    """Global generators that are seeded by `random`, and that are afterwards as they were."""
    seed = int(random.integers(2**32))
    states = python_random.getstate(), np.random.get_state(), torch.get_rng_state()
    python_random.seed(seed)
    np.random.seed(seed)
    torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
    try:
        yield
    finally:
        python_random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def need_for_augmentation(level: str, *, mixes: bool) -> None:
    """Refuse a level whose library is not installed.

    Args:
        level: of augmentation.
        mixes: whether batches are mixed.

    Raises:
        UserError: says which, and how to go on.
    """
    needed = ["torchvision"] if level != "none" or mixes else []
    for module in [*needed, *(["timm"] if level == "strong" else [])]:
        if find_spec(module) is None:
            what = f"augment={level}" if level != "none" else "mixup and cutmix"
            verb = "need" if what.endswith("cutmix") else "needs"
            raise UserError(f"{what} {verb} {module}: pip install 'regard[vision]'")


@dataclass(frozen=True)
class Augmentation:
    """Random crops, flips and changes of images.

    Args:
        level: "light" crops at random and flips; "strong" also changes colours and geometry (RandAugment) and erases
            rectangles.
        size: pixels per side of what comes out.
        channels: 1 or 3.
        flip: whether left and right may be exchanged.
    """

    level: Level
    size: int
    channels: int
    flip: bool

    def views(self, copies: Sequence[Image.Image]) -> Pixels:
        """`(images, channels, size, size)` bytes; call it within `seeded`."""
        return np.stack([pixels_of(self._transform(copy)) for copy in copies])

    @cached_property
    def _transform(self) -> Callable[[Image.Image], Image.Image]:
        from torchvision.transforms import v2

        steps: list[Callable[[Any], Any]] = [
            v2.RandomResizedCrop(self.size, scale=(SMALLEST_SHARE[self.level], 1.0), antialias=True)
        ]
        if self.flip:
            steps.append(v2.RandomHorizontalFlip())
        if self.level == "strong":
            from timm.data.auto_augment import rand_augment_transform

            grey: Any = 128 if self.channels == 1 else (128, 128, 128)
            options = {
                "translate_const": max(1, int(self.size * TRANSLATION)),
                "img_mean": grey,
                "magnitude_max": STRONGEST,
            }
            steps.append(rand_augment_transform(RAND_AUGMENT, options))
        return v2.Compose(steps)

    def erased(self, images: Tensor) -> Tensor:
        """Normalised images, some with a rectangle of noise; call it within `seeded`."""
        if self.level != "strong":
            return images
        from timm.data.random_erasing import RandomErasing

        return RandomErasing(ERASING, mode="pixel", device="cpu")(images)


@dataclass(frozen=True)
class Mixing:
    """Mixtures of the images of a batch, and of their classes.

    Args:
        mixup: alpha of the Beta distribution of MixUp's weights; 0 = no MixUp.
        cutmix: alpha of the Beta distribution of CutMix's areas; 0 = no CutMix. With both, a coin decides per batch.
        classes: number of classes.
    """

    mixup: float
    cutmix: float
    classes: int

    def __bool__(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images, and `(images, classes)` shares of classes; call it within `seeded`."""
        from torchvision.transforms import v2

        ways = [
            way(alpha=alpha, num_classes=self.classes)
            for way, alpha in ((v2.MixUp, self.mixup), (v2.CutMix, self.cutmix))
            if alpha > 0
        ]
        mixed: tuple[Tensor, Tensor] = ways[int(torch.randint(len(ways), ()))](images, labels)
        return mixed
