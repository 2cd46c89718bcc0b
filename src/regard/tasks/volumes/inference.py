"""A network over prepared cases: probabilities on its own grid, and label maps in the voxels of the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from regard.tasks.task import device_of, float_type_of
from regard.tasks.volumes.grids import Array, Grid, Size, carry, cut_out, slabs
from regard.tasks.volumes.preparing import Prepared, room
from regard.tasks.volumes.regions import Region, labels_of_masks
from regard.tasks.volumes.settings import SegmentationSettings
from regard.tasks.volumes.windows import Windows, slide

Tick = Callable[[int], object]


def _silent(done: int) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class Inference:
    """How probabilities and label maps are made.

    Args:
        settings: what the user chose.
        labels: all labels, the background first, where classes are exclusive.
        regions: what the network's outputs are, where they are not.
    """

    settings: SegmentationSettings
    labels: tuple[int, ...]
    regions: tuple[Region, ...]

    @property
    def windows(self) -> Windows:
        """How a case is cut, with the axis first along which results come."""
        x, y, z = self.settings.window
        size: Size = (1, x, y) if self.settings.view == "slices" else (x, y, z)
        return Windows(size, self.settings.overlap, self.settings.window_batch)

    def count(self, shape: Size) -> int:
        """Number of windows of a case of some shape on the network's grid."""
        x, y, z = shape
        return self.windows.count((z, x, y) if self.settings.view == "slices" else shape)

    def foreground(self, model: nn.Module, image: Array, *, tick: Tick = _silent) -> Iterator[tuple[int, Array]]:
        """Probabilities of everything but the background, slab by slab along z for slices, else along x.

        Args:
            model: the network, in eval mode.
            image: `(channels, x, y, z)`.
            tick: called with a number of windows that are done.

        Yields:
            Where a slab begins, and `(outputs, x, y, z)` of it as float32.
        """
        slices, kind, device = self.settings.view == "slices", float_type_of(model), device_of(model)
        layout = torch.channels_last if slices else torch.channels_last_3d

        def probabilities(inputs: Tensor) -> Tensor:
            # a slice is (y, x) to the network, and (1, x, y) here
            inputs = inputs[:, :, 0].mT if slices else inputs
            logits = model(inputs.to(kind).contiguous(memory_format=layout)).float()
            made = logits.softmax(dim=1)[:, 1:] if self.settings.exclusive else logits.sigmoid()
            return made.mT[:, :, None] if slices else made

        ordered = image.transpose(0, 3, 1, 2) if slices else image
        for start, slab in slide(probabilities, ordered, self.windows, device=device, tick=tick):
            made = slab.cpu().numpy()
            yield start, made.transpose(0, 2, 3, 1) if slices else made

    def probabilities(
        self, model: nn.Module, image: Array, *, tick: Tick = _silent, scratch: Path | None = None
    ) -> Array:
        """`(outputs, x, y, z)` of everything but the background on the network's grid."""
        made: Array | None = None
        for start, slab in self.foreground(model, image, tick=tick):
            if made is None:
                shape = (len(slab), *image.shape[1:])
                made = room(shape, np.float32, memory_mb=self.settings.memory_mb, scratch=scratch)
            made[self._place(start, slab.shape)] = slab
        assert made is not None
        return made

    def _place(self, start: int, shape: Sequence[int]) -> tuple[slice, ...]:
        """Where a slab lies in `(outputs, x, y, z)`."""
        along = 3 if self.settings.view == "slices" else 1
        place = [slice(None)] * 4
        place[along] = slice(start, start + shape[along])
        return tuple(place)

    def label_map(
        self, model: nn.Module, case: Prepared, *, tick: Tick = _silent, scratch: Path | None = None
    ) -> Array:
        """`(x, y, z)` labels in the voxels of the files.

        Args:
            model: the network, in eval mode.
            case: what it sees.
            tick: called with a number of windows that are done.
            scratch: a folder for what would not fit into the budget of memory; None = a temporary one.
        """
        if case.moves_only:
            labels = np.empty(case.grid.shape, dtype=np.uint8)
            for start, slab in self.foreground(model, case.image, tick=tick):
                labels[self._place(start, slab.shape)[1:]] = self.labels_of(slab)
            return np.ascontiguousarray(carry(labels[None], case.grid, case.native, order=0)[0])
        return self.native_labels(self.probabilities(model, case.image, tick=tick, scratch=scratch), case)

    def native_labels(self, probabilities: Array, case: Prepared) -> Array:
        """Labels in the voxels of the files, from probabilities on the network's grid."""
        labels = np.empty(case.native.shape, dtype=np.uint8)
        for start, stop in slabs(case.native.shape):
            labels[start:stop] = self.labels_of(self._native(probabilities, case, start, stop))
        return labels

    def native_probabilities(self, probabilities: Array, case: Prepared, output: int) -> Array:
        """`(x, y, z)` probabilities of one output in the voxels of the files."""
        own = probabilities[output : output + 1]
        parts = [self._native(own, case, start, stop)[0] for start, stop in slabs(case.native.shape)]
        return np.concatenate(parts)

    def _native(self, probabilities: Array, case: Prepared, start: int, stop: int) -> Array:
        shape = case.native.shape
        part: Grid = cut_out(case.native, (start, 0, 0), (stop, shape[1], shape[2]))
        if case.moves_only:
            whole = carry(probabilities, case.grid, case.native)
            return np.ascontiguousarray(whole[:, start:stop])
        # beyond a margin that was left out there is nothing
        return carry(probabilities, case.grid, part, outside="zero" if self.settings.crop else "edge")

    def labels_of(self, foreground: Array) -> Array:
        """Labels of a part, from the probabilities `(outputs, x, y, z)` of everything but the background."""
        threshold = self.settings.threshold
        if not self.settings.exclusive:
            return labels_of_masks(foreground >= threshold, self.regions)
        labels = np.full(foreground.shape[1:], self.labels[1], dtype=np.uint8)
        largest, total = foreground[0], foreground[0]
        # output by output: to look along an axis of a few far apart numbers is many times slower
        for label, own in zip(self.labels[2:], foreground[1:], strict=True):
            labels[own > largest] = label
            largest, total = np.maximum(largest, own), total + own
        labels[total < threshold] = 0
        return labels
