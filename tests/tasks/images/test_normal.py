from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from regard.tasks.images.normal import Normal
from regard.tasks.images.settings import ClassificationSettings


def test_bytes_are_normalised_by_channel():
    normal = Normal(3, 2, (0.5, 0.25, 0.0), (0.5, 1.0, 2.0))
    pixels = np.array([[[[255, 0]], [[51, 102]], [[204, 255]]]], dtype=np.uint8)
    expected = torch.tensor([[[[1.0, -1.0]], [[-0.05, 0.15]], [[0.4, 0.5]]]])
    torch.testing.assert_close(normal.of(pixels), expected)


def test_facts_come_back():
    normal = Normal(1, 28, (0.13,), (0.3,))
    assert Normal.from_facts(normal.facts()) == normal


@pytest.mark.parametrize(
    "facts",
    [
        {"shape": [3, 8, 9]},
        {"shape": [2, 8, 8]},
        {"shape": [1, 0, 0]},
        {"shape": [1, 10**9, 10**9]},
        {"shape": "wide"},
        {"mean": [0.1, 0.2]},
        {"mean": [math.nan]},
        {"spread": [0.0]},
        {"spread": [math.inf]},
        {"spread": None},
    ],
)
def test_facts_that_no_image_has_are_refused(facts):
    good = {"shape": [1, 8, 8], "mean": [0.5], "spread": [0.5]}
    assert Normal.from_facts(good).size == 8
    with pytest.raises((KeyError, TypeError, ValueError)):
        Normal.from_facts({**good, **facts})
    del good["mean"]
    with pytest.raises(KeyError):
        Normal.from_facts(good)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": -1}, "image_size must not be negative, got -1"),
        ({"image_size": 10**6}, "image_size must be at most 8,192"),
        ({"mixup": -0.1}, "mixup must not be negative"),
        ({"cutmix": math.nan}, "cutmix must not be negative"),
        ({"memory_mb": -5}, "memory_mb must not be negative"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"crop_share": 0.0}, r"crop_share must be in \(0, 1\], got 0.0"),
        ({"statistics": "imagenet", "channels": 1}, "statistics=imagenet is of colour images"),
    ],
)
def test_settings_outside_their_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ClassificationSettings(**changes)
