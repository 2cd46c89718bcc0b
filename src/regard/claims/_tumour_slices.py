"""What the claims about tumours on slices share: generated patients, one plain training, and scores slice by slice."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from regard.claims._training import fit
from regard.claims._training import mean as mean_of
from regard.models.medical.tumour_resunet import TumourResUNet, TumourResUNetConfig
from regard.tasks.volumes.losses import region_loss
from regard.tasks.volumes.metrics import dice, hd95
from regard.tasks.volumes.synthetic_slices import slices

SIDE, SLICES_OF_PATIENT = 96, 4
TRAIN_PATIENTS, TEST_PATIENTS = 100, 25
BATCH, STEPS, LEARNING_RATE = 8, 120, 5e-3
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's photographs, in which weights for them expect their input."""


@dataclass(frozen=True)
class Slices:
    """Slices of some patients, patient by patient.

    Args:
        images: `(number, 3, x, y)`, normalised.
        masks: `(number, 1, x, y)`, 0 or 1.
    """

    images: Tensor
    masks: Tensor


@functools.cache
def patients(*, first: int, count: int, side: int = SIDE) -> Slices:
    """Patients by their numbers, each with numbers of its own: no patient is in two ranges that do not overlap."""
    drawn = [
        slices(np.random.default_rng([2501, number]), size=side, count=SLICES_OF_PATIENT)
        for number in range(first, first + count)
    ]
    images = torch.from_numpy(np.concatenate([np.moveaxis(image, -1, 0) for image, _ in drawn]))
    masks = torch.from_numpy(np.concatenate([np.moveaxis(mask, -1, 0) for _, mask in drawn]))[:, None].float()
    normalised = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(SPREAD)[:, None, None]
    return Slices(normalised, masks)


def train_slices() -> Slices:
    """400 slices of 100 patients."""
    return patients(first=0, count=TRAIN_PATIENTS)


def held_out_slices(*, side: int = SIDE) -> Slices:
    """100 slices of 25 other patients."""
    return patients(first=TRAIN_PATIENTS, count=TEST_PATIENTS, side=side)


def trained(
    config: TumourResUNetConfig,
    data: Slices,
    *,
    seed: int,
    steps: int = STEPS,
    encoder: dict[str, Tensor] | None = None,
) -> TumourResUNet:
    """A network built and trained from `seed`; every network sees the same slices of a seed, epoch by epoch.

    Args:
        config: of the network.
        data: to train on.
        seed: of the weights and of the order.
        steps: number of updates.
        encoder: weights that the encoder starts from; None = random ones.
    """
    torch.manual_seed(seed)
    model = TumourResUNet(config).to(memory_format=torch.channels_last)
    if encoder is not None:
        model.load_reference(encoder)

    def sample(step: int) -> tuple[Tensor, Tensor]:
        rows = rows_of_step(len(data.images), seed=seed, step=step)
        return data.images[rows], data.masks[rows]

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return region_loss(network(batch[0]), batch[1]).total

    fit(model, sample, loss, steps=steps, learning_rate=LEARNING_RATE, seed=seed)
    return model


def rows_of_step(rows: int, *, seed: int, step: int) -> Tensor:
    """Which rows a step trains on: a new order in every epoch, rows that do not fill a batch left out."""
    epoch, number = divmod(step, rows // BATCH)
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    return torch.from_numpy(order[number * BATCH : (number + 1) * BATCH])


@dataclass(frozen=True)
class Scores:
    """How well every slice was segmented.

    Args:
        dice: of every slice; 1 where nothing was there and nothing was found.
        hd95: of every slice, in pixels.
        dice_of_patients: over the slices of each patient together.
        areas: pixels of lesions in every slice.
    """

    dice: tuple[float, ...]
    hd95: tuple[float, ...]
    dice_of_patients: tuple[float, ...]
    areas: tuple[int, ...]

    @property
    def mean_dice(self) -> float:
        """Over all slices."""
        return mean_of(self.dice)

    @property
    def mean_hd95(self) -> float:
        """Over all slices."""
        return mean_of(self.hd95)


@torch.no_grad()
def predicted(model: nn.Module, images: Tensor) -> NDArray[np.bool_]:
    """Where the probability is above a half: `(number, x, y)`."""
    return np.concatenate([(model(part)[:, 0] > 0).numpy() for part in images.split(25)])


def scores(model: nn.Module, data: Slices) -> Scores:
    """Of a network in evaluation."""
    found, true = predicted(model, data.images), data.masks[:, 0].numpy() > 0
    by_patient = range(0, len(true), SLICES_OF_PATIENT)
    return Scores(
        dice=tuple(dice(ours, theirs) for ours, theirs in zip(found, true, strict=True)),
        hd95=tuple(hd95(ours, theirs, (1.0, 1.0)) for ours, theirs in zip(found, true, strict=True)),
        dice_of_patients=tuple(
            dice(found[start : start + SLICES_OF_PATIENT], true[start : start + SLICES_OF_PATIENT])
            for start in by_patient
        ),
        areas=tuple(int(mask.sum()) for mask in true),
    )


def quartile_dice(runs: Sequence[Scores]) -> tuple[float, float]:
    """Mean Dice on the quarters of the slices with lesions whose lesions are smallest and largest.

    Args:
        runs: of one network after several trainings, on the same slices.
    """
    areas = np.array(runs[0].areas)
    lesions = np.flatnonzero(areas)
    order = lesions[np.argsort(areas[lesions], kind="stable")]
    quarter = max(1, len(order) // 4)
    of_all = np.array([run.dice for run in runs]).mean(axis=0)
    return float(of_all[order[:quarter]].mean()), float(of_all[order[-quarter:]].mean())
