"""What a training step sees: whole volumes, windows or slices, drawn at random."""

from __future__ import annotations

import numpy as np

from regard.errors import UserError
from regard.tasks.volumes.grids import Array
from regard.tasks.volumes.settings import SegmentationSettings
from regard.tasks.volumes.store import CaseStore

CENTRED = 0.5
"""Share of the windows that are centred on a voxel with a label."""


class Draws:
    """Draws from the cases of a part.

    Args:
        store: all cases.
        numbers: those to draw from.
        settings: what the network sees.
        drop: whether slices without a label are left out.

    Raises:
        UserError: no slice is left.
    """

    def __init__(self, store: CaseStore, numbers: list[int], settings: SegmentationSettings, *, drop: bool) -> None:
        self.store, self.numbers, self.settings = store, numbers, settings
        self.slices: list[tuple[int, int]] = []
        self.places: dict[int, Array] = {}
        if settings.view == "slices":
            for number in numbers:
                depth = range(store.targets[number].shape[2])
                self.slices += [(number, z) for z in (store.labelled_slices(number).tolist() if drop else depth)]
            if numbers and not self.slices:
                raise UserError("no slice has a label: set empty=keep to train on slices without any")
        if settings.view == "windows":
            self.places = {number: store.labelled_places(number) for number in numbers}

    def draw(self, random: np.random.Generator) -> tuple[Array, Array]:
        """An image `(channels, *space)` and its labels `(*space)`; of slices the space is (y, x)."""
        if self.settings.view == "slices":
            number, z = self.slices[int(random.integers(len(self.slices)))]
            image, labels = self.store.images[number][..., z], self.store.targets[number][..., z]
            image, labels = self._fitted(image.swapaxes(1, 2), labels.T, random)
            return image, labels
        number = self.numbers[int(random.integers(len(self.numbers)))]
        image, labels = self.store.images[number], self.store.targets[number]
        if self.settings.view == "whole":
            return np.asarray(image), np.asarray(labels)
        places = self.places[number]
        if len(places) and random.random() < CENTRED:
            return self._fitted(image, labels, random, places[int(random.integers(len(places)))])
        return self._fitted(image, labels, random)

    def _fitted(
        self, image: Array, labels: Array, random: np.random.Generator, centre: Array | None = None
    ) -> tuple[Array, Array]:
        """A part of the window's size: cut out at random or around a voxel, filled with zeros where it is smaller."""
        x, y, z = self.settings.window
        size = (y, x) if self.settings.view == "slices" else (x, y, z)
        cut, fill = [], []
        for axis, (side, window) in enumerate(zip(labels.shape, size, strict=True)):
            spare = max(0, side - window)
            start = int(random.integers(spare + 1))
            if centre is not None:
                start = int(np.clip(centre[axis] - window // 2, 0, spare))
            cut.append(slice(start, start + window))
            missing = max(0, window - side)
            fill.append((missing // 2, missing - missing // 2))
        image, labels = image[(slice(None), *cut)], labels[tuple(cut)]
        if any(any(pair) for pair in fill):
            image, labels = np.pad(image, [(0, 0), *fill]), np.pad(labels, fill)
        return np.asarray(image), np.asarray(labels)
