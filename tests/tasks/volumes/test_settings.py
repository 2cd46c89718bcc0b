from __future__ import annotations

import pytest

from regard.tasks.volumes.settings import SegmentationSettings


def test_a_size_is_of_every_axis_that_the_view_has() -> None:
    assert SegmentationSettings(size=32).window == (32, 32, 32)
    assert SegmentationSettings(size=(128, 128, 144)).window == (128, 128, 144)
    assert SegmentationSettings(view="slices", size=96).window == (96, 96, 1)
    assert SegmentationSettings(view="slices", size=(240, 224)).window == (240, 224, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"size": (4, 5)},
        {"size": (4, 5, 2000)},
        {"view": "slices", "size": (4, 5, 6)},
        {"overlap": 1.0},
        {"threshold": 1.5},
        {"min_overlap": -0.1},
        {"spacing": -1.0},
        {"zoom": 1.0},
        {"low": 60.0, "high": 40.0},
        {"folds": 1},
        {"folds": 3, "fold": 3},
        {"window_batch": 0},
    ],
    ids=str,
)
def test_numbers_outside_their_range_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=next(name for name in wrong if name != "view")):
        SegmentationSettings(**wrong)


@pytest.mark.parametrize(
    ("settings", "channels", "pictures", "kind"),
    [
        ({}, 1, False, "minmax"),
        ({}, 4, False, "zscore"),
        ({"targets": "regions"}, 1, False, "zscore"),
        ({}, 3, True, "imagenet"),
        ({}, 1, True, "zscore"),
        ({"normalise": "none"}, 3, True, "none"),
    ],
    ids=str,
)
def test_what_auto_means(settings, channels, pictures, kind) -> None:
    assert SegmentationSettings(**settings).normalisation(channels=channels, pictures=pictures) == kind
