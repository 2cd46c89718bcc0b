from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import NormalizeIntensity, ScaleIntensity, ScaleIntensityRangePercentiles

from regard.tasks.volumes.normalising import normalise, scales


@pytest.fixture
def volume():
    values = np.random.default_rng(0).gamma(2.0, 100.0, size=(2, 11, 7, 5)).astype(np.float32)
    values[:, :3] = 0
    return values


def test_the_zscore_of_what_is_not_zero_equals_monai(volume) -> None:
    theirs = NormalizeIntensity(nonzero=True, channel_wise=True)(torch.from_numpy(volume.copy()))
    np.testing.assert_allclose(normalise(volume, scales(volume, "zscore")), theirs.numpy(), atol=1e-4)


def test_minmax_equals_monai(volume) -> None:
    ours = normalise(volume, scales(volume, "minmax"))
    theirs = ScaleIntensity(channel_wise=True)(torch.from_numpy(volume))
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def test_clipped_minmax_equals_monai(volume) -> None:
    ours = normalise(volume, scales(volume, "minmax", low=2.0, high=97.0))
    theirs = ScaleIntensityRangePercentiles(2, 97, 0, 1, clip=True, channel_wise=True)(torch.from_numpy(volume))
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)


@pytest.mark.parametrize("kind", ["zscore", "minmax"])
@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_constant_channel_becomes_zero(kind, value) -> None:
    values = np.full((1, 3, 3, 3), value, dtype=np.float32)
    made = scales(values, kind)
    assert made[0].spread == 0
    assert (normalise(values, made) == 0).all()


def test_bytes_of_an_image_become_what_published_networks_saw() -> None:
    values = np.array([0.0, 255.0, 128.0], dtype=np.float32).reshape(3, 1, 1, 1)
    made = normalise(values, scales(values, "imagenet")).ravel()
    expected = [(0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (128 / 255 - 0.406) / 0.225]
    np.testing.assert_allclose(made, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="3 channels, got 2"):
        scales(values[:2], "imagenet")


def test_none_changes_nothing(volume) -> None:
    assert np.array_equal(normalise(volume, scales(volume, "none")), volume)
