from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice

from regard.tasks.volumes.metrics import dice, hd95, lesions

VOLUMES = 200


def random_pair(number: int):
    """Blobs on a small volume; every fifth pair has an empty mask, every twentieth two."""
    random = np.random.default_rng(number)
    shape = tuple(int(side) for side in random.integers(3, 12, size=3))
    spacing = tuple(float(step) for step in random.uniform(0.4, 4.0, size=3))
    masks = []
    for _ in range(2):
        mask = random.random(shape) < random.choice([0.02, 0.1, 0.5])
        mask[tuple(slice(0, int(side)) for side in random.integers(1, 5, size=3))] = True
        masks.append(mask)
    if number % 5 == 0:
        masks[number % 2][:] = False
    if number % 20 == 0:
        masks[0][:] = masks[1][:] = False
    return masks[0], masks[1], spacing


@pytest.mark.parametrize("start", range(0, VOLUMES, 50))
def test_dice_and_hd95_equal_monai(start) -> None:
    for number in range(start, start + 50):
        ours, theirs, spacing = random_pair(number)
        pair = [torch.from_numpy(mask)[None, None] for mask in (ours, theirs)]
        overlap = float(compute_dice(*(mask.float() for mask in pair), ignore_empty=False))
        assert dice(ours, theirs) == pytest.approx(overlap, abs=1e-4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            distance = float(
                compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=list(spacing))
            )
        if ours.any() and theirs.any():
            assert hd95(ours, theirs, spacing) == pytest.approx(distance, abs=1e-4)
        else:
            # MONAI has no number here
            assert not math.isfinite(distance) or distance == 0
            whole = math.sqrt(sum((side * step) ** 2 for side, step in zip(ours.shape, spacing, strict=True)))
            assert hd95(ours, theirs, spacing) == (0.0 if not ours.any() and not theirs.any() else whole)


def surface(mask):
    """Voxels with a face neighbour outside the mask, the outside of the volume included."""
    found = []
    for index in np.argwhere(mask):
        for axis in range(mask.ndim):
            for step in (-1, 1):
                other = index.copy()
                other[axis] += step
                inside = 0 <= other[axis] < mask.shape[axis]
                if not inside or not mask[tuple(other)]:
                    found.append(tuple(index))
    return np.array(sorted(set(found)), dtype=float)


@pytest.mark.parametrize("number", [1, 2, 3, 7, 11])
def test_both_percentiles_equal_the_definition(number) -> None:
    ours, theirs, spacing = random_pair(number)
    one, other = surface(ours) * spacing, surface(theirs) * spacing
    apart = np.linalg.norm(one[:, None] - other[None], axis=-1)
    there, back = apart.min(axis=1), apart.min(axis=0)
    assert hd95(ours, theirs, spacing) == pytest.approx(
        max(np.percentile(there, 95), np.percentile(back, 95)), abs=1e-5
    )
    pooled = np.percentile(np.concatenate([there, back]), 95)
    assert hd95(ours, theirs, spacing, pooled=True) == pytest.approx(pooled, abs=1e-5)


def test_a_single_slice_has_an_outline() -> None:
    square = np.zeros((9, 9, 1), dtype=bool)
    square[2:7, 2:7] = True
    shifted = np.roll(square, 1, axis=0)
    assert hd95(square, shifted, (1.0, 1.0, 5.0)) == hd95(square[..., 0], shifted[..., 0], (1.0, 1.0)) == 1.0


def test_lesions_are_parts_connected_through_faces() -> None:
    true, found = np.zeros((6, 6, 6), dtype=bool), np.zeros((6, 6, 6), dtype=bool)
    true[0, 0, :4] = True
    true[1, 1, 4] = True
    true[4:, 4:, 4:] = True
    found[0, 0, 2:] = True
    found[3, 0, 0] = True
    found[4, 4, 4] = True
    made = lesions(found, true, (1.0, 2.0, 0.5))
    assert [(lesion.volume_ml, lesion.covered) for lesion in made.lesions] == [
        (pytest.approx(0.004), 0.5),
        (pytest.approx(0.001), 0.0),
        (pytest.approx(0.008), 0.125),
    ]
    assert made.false == (pytest.approx(0.001),)


def test_what_is_no_pair_of_masks_is_refused() -> None:
    mask = np.ones((2, 3, 4), dtype=bool)
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) and the target \(2, 3, 5\)"):
        dice(mask, np.ones((2, 3, 5), dtype=bool))
    with pytest.raises(ValueError, match="booleans"):
        hd95(mask.astype(float), mask, (1, 1, 1))
    for spacing in [(1, 1), (1, 1, 0), (1, 1, -2), (1, 1, math.nan)]:
        with pytest.raises(ValueError, match="spacing must be a positive number for each of 3 axes"):
            hd95(mask, mask, spacing)
