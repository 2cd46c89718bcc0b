"""Generated slices: shapes, ranges, what a lesion looks like in each channel, and what looks like one outside."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import ndimage

from regard.tasks.volumes.synthetic_slices import slices


def patients(number: int, **sizes: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [slices(np.random.default_rng([5, seed]), **sizes) for seed in range(number)]


@pytest.mark.parametrize(("size", "count"), [(32, 1), (37, 3), (96, 4), (101, 2)])
def test_sizes_and_ranges(size: int, count: int) -> None:
    image, mask = slices(np.random.default_rng(size), size=size, count=count)
    assert image.shape == (3, size, size, count)
    assert image.dtype == np.float32
    assert mask.shape == (size, size, count)
    assert mask.dtype == np.uint8
    assert image.min() >= 0
    assert image.max() <= 1
    assert set(np.unique(mask)) <= {0, 1}


def test_the_generator_decides() -> None:
    first, again, other = (slices(np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_there_are_none_one_or_two_lesions_of_very_different_sizes() -> None:
    masks = [mask for _, mask in patients(60)]
    areas = np.concatenate([mask.sum(axis=(0, 1)) for mask in masks])
    share = float((areas > 0).mean())
    assert 0.4 < share < 0.8
    sizes = areas[areas > 0]
    assert np.percentile(sizes, 90) > 8 * np.percentile(sizes, 10)
    counts = {ndimage.label(mask[..., number])[1] for mask in masks for number in range(4)}
    assert {0, 1, 2} <= counts


def test_lesions_run_through_neighbouring_slices() -> None:
    masks = [mask for _, mask in patients(40) if mask.any()]
    together = [(mask[..., :-1] & mask[..., 1:]).any() for mask in masks]
    assert np.mean(together) > 0.8


def test_channels_are_related_as_the_sequences_are() -> None:
    inside, around = [], []
    for image, mask in patients(60):
        cross = ndimage.generate_binary_structure(3, 1) & np.array([False, True, False])
        rings = [ndimage.binary_dilation(mask > 0, cross, iterations=number) for number in (2, 5)]
        near = rings[1] & ~rings[0]
        if mask.sum() > 400:
            inside.append(image[:, mask > 0].mean(axis=1))
            around.append(image[:, near].mean(axis=1))
    before, suppressed, after = (np.array(inside) - np.array(around)).mean(axis=0)
    assert before < -0.004
    assert suppressed > 0.08
    assert 0 < after < suppressed


def test_brightness_alone_does_not_tell_a_lesion() -> None:
    best = 0.0
    drawn = patients(60)
    bright = np.stack([image[1] for image, _ in drawn])
    true = np.stack([mask for _, mask in drawn]) > 0
    for threshold in np.linspace(0.4, 0.9, 26):
        found = bright > threshold
        best = max(best, 2 * (found & true).sum() / (found.sum() + true.sum()))
    assert best < 0.5


def test_is_fast() -> None:
    random = np.random.default_rng(0)
    slices(random)
    times = []
    for _ in range(10):
        start = time.process_time()
        slices(random)
        times.append(time.process_time() - start)
    assert min(times) < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 31}, "size must be at least 32 and count at least 1, got size=31"),
        ({"count": 0}, "got size=96 and count=0"),
    ],
)
def test_ill_sizes_are_named(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        slices(np.random.default_rng(0), **options)
