"""Generated heads: masses on the shell, spheres away from it, and nothing that depends on more than the seed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from regard.tasks.volumes.synthetic_brain import LARGEST_SHARE, SMALLEST_SHARE, brain


@pytest.mark.parametrize(("size", "distractors"), [(48, 0), (37, 1), (48, 3), (24, 0)])
def test_shapes_types_and_volumes(size: int, distractors: int) -> None:
    shares = []
    for seed in range(12):
        image, mask = brain(np.random.default_rng(seed), size=size, distractors=distractors)
        assert image.shape == mask.shape == (size,) * 3
        assert (image.dtype, mask.dtype) == (np.float32, np.uint8)
        assert np.isfinite(image).all()
        assert -0.3 < image.min() < image.max() < 1.3
        assert set(np.unique(mask)) == {0, 1}
        assert ndimage.label(mask)[1] == 1
        shares.append(mask.mean())
    assert SMALLEST_SHARE <= min(shares) < max(shares) <= LARGEST_SHARE
    assert max(shares) > 5 * min(shares)


def test_numbers_depend_on_the_seed_alone() -> None:
    first, again = (brain(np.random.default_rng(5), distractors=2) for _ in range(2))
    other = brain(np.random.default_rng(6), distractors=2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_masses_rest_on_the_shell_and_are_bright() -> None:
    for seed in range(8):
        image, mask = brain(np.random.default_rng(seed))
        around = ndimage.binary_dilation(mask, iterations=2) & (mask == 0)
        # the shell is as bright as nothing else
        assert (image[around] > 0.8).sum() > 5
        core = ndimage.binary_erosion(mask)
        if core.sum() > 20:
            assert image[core].mean() > 0.55


def test_spheres_are_bright_and_touch_neither_shell_nor_mass() -> None:
    for seed in range(8):
        plain, mask = brain(np.random.default_rng(seed))
        image, same = brain(np.random.default_rng(seed), distractors=2)
        assert np.array_equal(mask, same)
        labels, number = ndimage.label(image - plain > 0.2)
        spheres = [part for part in range(1, number + 1) if (labels == part).sum() > 10]
        assert len(spheres) == 2
        near = ndimage.binary_dilation(np.isin(labels, spheres), iterations=2)
        assert not (near & (plain > 0.8)).any()
        assert not mask[np.isin(labels, spheres)].any()


def test_ill_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="at least 24, got 23"):
        brain(np.random.default_rng(0), size=23)
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        brain(np.random.default_rng(0), distractors=-1)
