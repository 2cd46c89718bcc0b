"""Slices for claims: split by patient, the same batches for every network, scores by hand, and textures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from regard.claims._textures import CLASSES, textures
from regard.claims._tumour_slices import (
    BATCH,
    SLICES_OF_PATIENT,
    Scores,
    Slices,
    patients,
    quartile_dice,
    rows_of_step,
    scores,
)


class Threshold(nn.Module):
    """Finds what is above 0 in the first channel."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :1]


def test_patients_are_numbered() -> None:
    several, alone = patients(first=3, count=2, side=32), patients(first=4, count=1, side=32)
    assert several.images.shape == (2 * SLICES_OF_PATIENT, 3, 32, 32)
    assert several.masks.shape == (2 * SLICES_OF_PATIENT, 1, 32, 32)
    assert torch.equal(several.images[SLICES_OF_PATIENT:], alone.images)
    assert not torch.equal(several.images[:SLICES_OF_PATIENT], alone.images)


def test_an_epoch_sees_every_row_once() -> None:
    rows = torch.cat([rows_of_step(5 * BATCH, seed=1, step=step) for step in range(5)])
    assert sorted(rows.tolist()) == list(range(5 * BATCH))
    assert not torch.equal(rows_of_step(40, seed=1, step=0), rows_of_step(40, seed=2, step=0))
    assert len(rows_of_step(BATCH + 3, seed=1, step=7)) == BATCH


def test_scores_by_hand() -> None:
    images, masks = torch.full((SLICES_OF_PATIENT, 3, 32, 32), -1.0), torch.zeros(SLICES_OF_PATIENT, 1, 32, 32)
    images[0, 0, 4:6, 4:8] = 1
    masks[0, 0, 4:6, 6:10] = 1
    images[1, 0, 9, 9] = 1
    found = scores(Threshold(), Slices(images, masks))
    assert found.dice == (0.5, 0.0, 1.0, 1.0)
    assert found.hd95 == pytest.approx((2.0, 32 * 2**0.5, 0.0, 0.0))
    assert found.dice_of_patients == pytest.approx((2 * 4 / 17,))
    assert found.areas == (8, 0, 0, 0)
    assert found.mean_dice == 0.625


def test_quarters_are_of_slices_with_lesions() -> None:
    areas = (0, 8, 1, 7, 2, 0, 6, 3, 5, 4)
    first = Scores(tuple(area / 10 for area in areas), (), (), areas)
    second = Scores(tuple(area / 5 for area in areas), (), (), areas)
    assert quartile_dice([first]) == pytest.approx((0.15, 0.75))
    assert quartile_dice([first, second]) == pytest.approx((0.225, 1.125))


def test_textures_differ_in_direction_and_wavelength() -> None:
    images, labels = textures(np.random.default_rng(0), number=60, side=48)
    assert images.shape == (60, 3, 48, 48)
    assert images.dtype == torch.float32
    assert set(labels.tolist()) == set(range(CLASSES))
    spectra = torch.fft.fft2(images.mean(dim=1)).abs()
    spectra[:, 0, 0] = 0
    peaks = spectra.flatten(1).argmax(dim=1)
    frequencies = torch.fft.fftfreq(48)
    radius = torch.hypot(frequencies[peaks // 48], frequencies[peaks % 48])
    fine = radius[labels < CLASSES // 2]
    coarse = radius[labels >= CLASSES // 2]
    assert fine.min() > coarse.max()
