from __future__ import annotations

import pytest

from regard.tasks.radiographs.settings import RadiographSettings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 7}, "image_size must be from 8 to 8,192, got 7"),
        ({"crop_top": 1.0}, r"crop_top must be in \[0, 1\), got 1.0"),
        ({"positive_share": -0.1}, r"positive_share must be in \[0, 1\), got -0.1"),
        ({"zoom": 1.0}, "zoom must be in"),
        ({"label_smoothing": 1.5}, "label_smoothing must be in"),
        ({"rotation": -1.0}, "rotation must not be negative, got -1.0"),
        ({"overlays": -1}, "overlays must not be negative, got -1"),
        ({"statistics": "imagenet"}, "set channels=3"),
        ({"class_weights": (1.0, 0.0)}, r"class_weights must be positive, got \[1.0, 0.0\]"),
    ],
)
def test_ill_settings_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RadiographSettings(**changes)
