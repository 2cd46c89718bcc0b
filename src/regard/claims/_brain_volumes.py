"""What claims about segmenting volumes share: generated heads, a plain recipe, and what was found in held-out ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from regard.claims._training import fit
from regard.models.medical.segmenter import Segmenter
from regard.tasks.volumes.losses import class_loss
from regard.tasks.volumes.metrics import dice, lesions
from regard.tasks.volumes.synthetic_brain import brain

VALIDATION_SEED = 10_000


@dataclass(frozen=True)
class Brains:
    """Generated heads.

    Args:
        images: `(number, 1, x, y, z)`.
        masks: 1 in the mass, `(number, x, y, z)`, integers.
    """

    images: Tensor
    masks: Tensor

    def shares(self) -> Tensor:
        """Share of each volume that its mass takes."""
        return self.masks.flatten(1).double().mean(dim=1)


@functools.cache
def brains(number: int, *, first_seed: int, size: int, distractors: int = 0) -> Brains:
    """Heads from as many seeds as there are volumes."""
    made = [
        brain(np.random.default_rng(first_seed + each), size=size, distractors=distractors) for each in range(number)
    ]
    images = torch.from_numpy(np.stack([image for image, _ in made]))[:, None]
    return Brains(images, torch.from_numpy(np.stack([mask for _, mask in made])).long())


Cut = Callable[[Brains, Tensor, np.random.Generator], tuple[Tensor, Tensor]]
"""Images and masks of a batch, from the heads, their numbers, and what further choices are drawn from."""


def whole(heads: Brains, numbers: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """The heads, each axis of the batch flipped or not."""
    axes = [axis for axis in (1, 2, 3) if random.random() < 0.5]
    return heads.images[numbers].flip([axis + 1 for axis in axes]), heads.masks[numbers].flip(axes)


def fit_segmenter(
    build: Callable[[], Segmenter],
    heads: Brains,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    cut: Cut = whole,
) -> Segmenter:
    """A segmenter built and trained from `seed` by the Dice loss of the foreground at all supervised levels.

    Every network sees the same heads of a seed, epoch by epoch.
    """
    torch.manual_seed(seed)
    model = build()
    per_epoch = len(heads.images) // batch

    def sample(step: int) -> tuple[Tensor, Tensor]:
        epoch, number = divmod(step, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(heads.images))
        chosen = torch.from_numpy(order[number * batch : (number + 1) * batch])
        return cut(heads, chosen, np.random.default_rng([seed, step, 1]))

    def loss(network: nn.Module, rows: tuple[Tensor, Tensor]) -> Tensor:
        assert isinstance(network, Segmenter)
        return class_loss(network.outputs(rows[0]), rows[1])

    fit(model, sample, loss, steps=steps, learning_rate=learning_rate, seed=seed)
    return model


@torch.no_grad()
def predicted(model: nn.Module, heads: Brains) -> Tensor:
    """Whether each voxel is of the mass, `(number, x, y, z)`."""
    model.eval()
    return torch.cat([model(part).argmax(dim=1).bool() for part in heads.images.split(2)])


# --------------------------------------------------------------------------------------------------- slabs

THICKNESS = 8
"""Slices of a slab."""


def _extended(part: Tensor, sides: int) -> Tensor:
    """Slices along the last axis with the outer ones repeated, until there are as many as a network's smallest side."""
    before = (sides - part.shape[-1]) // 2
    ends = (before, sides - part.shape[-1] - before)
    first, last = part[..., :1], part[..., -1:]
    return torch.cat([first.expand(*first.shape[:-1], ends[0]), part, last.expand(*last.shape[:-1], ends[1])], dim=-1)


def slabs(sides: int) -> Cut:
    """Two slabs of every head, one anywhere and one that meets its mass, as thick as a network's smallest side.

    Args:
        sides: the smallest side; what is beyond a slab repeats its outer slices, in the mask too.
    """

    def cut(heads: Brains, numbers: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        images, masks = whole(heads, numbers, random)
        depth, parts = images.shape[-1], []
        for row in range(len(numbers)):
            met = masks[row].flatten(0, 1).any(dim=0).nonzero()[:, 0]
            chosen = int(random.choice(met.numpy())) - int(random.integers(THICKNESS))
            for start in (int(random.integers(depth - THICKNESS + 1)), min(max(chosen, 0), depth - THICKNESS)):
                kept = slice(start, start + THICKNESS)
                parts.append((_extended(images[row, ..., kept], sides), _extended(masks[row, ..., kept], sides)))
        return torch.stack([image for image, _ in parts]), torch.stack([mask for _, mask in parts])

    return cut


@torch.no_grad()
def predicted_by_slabs(model: Segmenter, heads: Brains) -> Tensor:
    """Whether each voxel is of the mass, slab by slab without overlap, `(number, x, y, z)`."""
    model.eval()
    sides, found = model.smallest, []
    before = (sides - THICKNESS) // 2
    for part in heads.images.split(THICKNESS, dim=-1):
        wide = _extended(part, sides)
        scores = torch.cat([model(rows) for rows in wide.split(4)])[..., before : before + part.shape[-1]]
        found.append(scores.argmax(dim=1).bool())
    return torch.cat(found, dim=-1)


# --------------------------------------------------------------------------------------------------- what was found


@dataclass(frozen=True)
class Detection:
    """What was found in some heads, each of which has one mass.

    Args:
        dice: of each head.
        found: whether its mass was met at all.
        false: number of predicted parts, of at least `SMALLEST_PART` voxels, that miss it.
    """

    dice: tuple[float, ...]
    found: tuple[bool, ...]
    false: tuple[int, ...]

    @property
    def mean_dice(self) -> float:
        """Over all heads."""
        return sum(self.dice) / len(self.dice)

    @property
    def f1(self) -> float:
        """Of masses met and parts that miss them."""
        met = sum(self.found)
        return 2 * met / (len(self.found) + met + sum(self.false))

    def recall(self, chosen: Tensor) -> float:
        """Share of the masses that were met, among some heads."""
        return float(torch.tensor(self.found)[chosen].double().mean())


SMALLEST_PART = 20


def detection(masks: Tensor, heads: Brains) -> Detection:
    """Overlaps, masses met, and parts that miss them.

    Args:
        masks: predicted, `(number, x, y, z)`.
        heads: what is there.
    """
    pairs = [(p, t) for p, t in zip(masks.numpy(), heads.masks.bool().numpy(), strict=True)]
    false = [lesions(p, t, (10.0, 10.0, 10.0)).false for p, t in pairs]
    return Detection(
        dice=tuple(dice(p, t) for p, t in pairs),
        found=tuple(bool((p & t).any()) for p, t in pairs),
        # voxels of one centimetre have a millilitre each
        false=tuple(sum(volume > SMALLEST_PART - 0.5 for volume in volumes) for volumes in false),
    )
