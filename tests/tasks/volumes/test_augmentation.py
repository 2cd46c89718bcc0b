from __future__ import annotations

import numpy as np
import pytest

from regard.tasks.volumes.augmentation import Augmentation
from regard.tasks.volumes.settings import SegmentationSettings


def pair(axes: int):
    random = np.random.default_rng(0)
    labels = np.zeros((16, 14, 12)[:axes], dtype=np.uint8)
    labels[tuple(slice(2, 7) for _ in range(axes))] = 1
    image = (labels + random.normal(0, 0.01, labels.shape))[None].astype(np.float32)
    return image, labels


@pytest.mark.parametrize("axes", [2, 3])
def test_image_and_labels_change_alike_and_by_the_seed_alone(axes) -> None:
    image, labels = pair(axes)
    change = Augmentation(SegmentationSettings(rotate=20.0, zoom=0.1, shift=0.05, intensity=0.0))
    changed = 0
    for seed in range(12):
        one = change(image, labels, np.random.default_rng(seed))
        again = change(image, labels, np.random.default_rng(seed))
        assert np.array_equal(one[0], again[0])
        assert np.array_equal(one[1], again[1])
        assert (one[0].dtype, one[1].dtype, one[0].shape) == (np.float32, np.uint8, image.shape)
        agree = ((one[0][0] > 0.5) == (one[1] > 0)).mean()
        assert agree > 0.95
        changed += not np.array_equal(one[1], labels)
    assert changed >= 6


def test_intensities_change_and_labels_do_not() -> None:
    image, labels = pair(3)
    made, same = Augmentation(SegmentationSettings(flip=False, intensity=0.2))(image, labels, np.random.default_rng(1))
    assert np.array_equal(same, labels)
    slope, offset = np.polyfit(image.ravel(), made.ravel(), 1)
    np.testing.assert_allclose(made, slope * image + offset, atol=1e-4)
    assert 0.8 <= slope <= 1.2
    assert -0.2 <= offset <= 0.2
    assert slope != 1


def test_flips_leave_up_and_down() -> None:
    image, labels = pair(3)
    change = Augmentation(SegmentationSettings(intensity=0.0))
    made = [change(image, labels, np.random.default_rng(seed))[1] for seed in range(20)]
    kinds = {tuple(np.argwhere(found).min(axis=0).tolist()) for found in made}
    assert kinds == {(2, 2, 2), (9, 2, 2), (2, 7, 2), (9, 7, 2)}


def test_nothing_to_do() -> None:
    assert not Augmentation(SegmentationSettings(flip=False, intensity=0.0))
    assert Augmentation(SegmentationSettings())
