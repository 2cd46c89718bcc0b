from __future__ import annotations

import numpy as np
import pytest

from regard.compare.images import patch_size, patches_per_side, training_batch


def test_batches_are_whole_passes_in_the_seeds_order():
    batches = [training_batch(11, seed=4, step=step, batch=5) for step in range(11)]
    everything = np.concatenate(batches)
    for start in range(0, 55, 11):
        assert sorted(everything[start : start + 11]) == list(range(11))
    assert (everything[:11] != everything[11:22]).any()
    assert (training_batch(11, seed=4, step=7, batch=5) == batches[7]).all()
    assert (training_batch(11, seed=5, step=7, batch=5) != batches[7]).any()


def test_a_batch_may_be_larger_than_the_set():
    assert np.bincount(training_batch(3, seed=0, step=0, batch=7)).min() >= 2


@pytest.mark.parametrize(("size", "patch", "side"), [(8, 2, 4), (16, 2, 8), (32, 4, 8), (64, 8, 8)])
def test_patches(size, patch, side):
    assert (patch_size(size), patches_per_side(size)) == (patch, side)
