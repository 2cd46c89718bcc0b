"""Random changes of a training image with its target, by MONAI: flips, turns, zoom, shifts and intensities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from regard.tasks.volumes.grids import Array
from regard.tasks.volumes.settings import SegmentationSettings

PROBABILITY = 0.5


class Augmentation:
    """What the settings ask for, on images `(channels, *space)` and labels `(*space)`.

    Args:
        settings: what the user chose.
    """

    def __init__(self, settings: SegmentationSettings) -> None:
        self.settings = settings
        self._transform: Any = None

    def __bool__(self) -> bool:
        chosen = self.settings
        return chosen.flip or any((chosen.rotate, chosen.zoom, chosen.shift, chosen.intensity))

    def __call__(self, image: Array, labels: Array, random: np.random.Generator) -> tuple[Array, Array]:
        """Change both alike; what happens depends on `random` alone.

        Args:
            image: `(channels, *space)` float32.
            labels: `(*space)`.
            random: source of all choices.
        """
        if self._transform is None:
            self._transform = self._built(image.ndim - 1, image.shape[1:])
        self._transform.set_random_state(seed=int(random.integers(2**31)))
        made = self._transform({"image": np.ascontiguousarray(image), "label": np.ascontiguousarray(labels[None])})
        return _plain(made["image"]), _plain(made["label"])[0].astype(labels.dtype)

    def _built(self, axes: int, space: tuple[int, ...]) -> Any:
        from monai.transforms.compose import Compose
        from monai.transforms.intensity.dictionary import RandScaleIntensityd, RandShiftIntensityd
        from monai.transforms.spatial.dictionary import RandAffined, RandFlipd

        chosen, both = self.settings, ("image", "label")
        steps: list[Any] = []
        if chosen.flip:
            steps += [RandFlipd(both, prob=PROBABILITY, spatial_axis=axis) for axis in range(min(2, axes))]
        if chosen.rotate or chosen.zoom or chosen.shift:
            turns = 1 if axes == 2 else 3
            steps.append(
                RandAffined(
                    both,
                    prob=PROBABILITY,
                    rotate_range=[math.radians(chosen.rotate)] * turns,
                    scale_range=[chosen.zoom] * axes,
                    translate_range=[chosen.shift * side for side in space],
                    mode=("bilinear", "nearest"),
                    padding_mode="zeros",
                )
            )
        if chosen.intensity:
            steps.append(RandScaleIntensityd("image", factors=chosen.intensity, prob=1.0))
            steps.append(RandShiftIntensityd("image", offsets=chosen.intensity, prob=1.0))
        return Compose(steps)


def _plain(values: Any) -> Array:
    """What MONAI returns, a tensor with a history, as an array."""
    return np.asarray(values.numpy() if hasattr(values, "numpy") else values)
