"""A network over a volume that is larger than what it takes: overlapping windows, blended where they overlap.

The probabilities equal those of MONAI's `sliding_window_inference` with Gaussian weights. What is different is memory
and copies: windows are taken from the volume as they are needed, of the sums only the slab that windows still reach is
kept, and finished slabs are handed on; the volume may be a file that is mapped into memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.tasks.volumes.grids import Array, Size

SIGMA = 0.125
"""Deviation of the weights over a window's side."""
SMALLEST_WEIGHT = 1e-3
Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Windows:
    """How a volume is cut.

    Args:
        size: of a window.
        overlap: share of a window's side that it has in common with the next.
        batch: windows that the network sees at a time.

    Raises:
        ValueError: an overlap outside [0, 1), or a size that is not positive.
    """

    size: Size
    overlap: float = 0.25
    batch: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap must be in [0, 1), got {self.overlap}")
        if min(self.size) < 1 or self.batch < 1:
            raise ValueError(f"windows must have a positive size and batch, got {self.size} and {self.batch}")

    def starts(self, shape: Size) -> tuple[list[int], list[int], list[int]]:
        """Where windows begin along each axis; the last ends with the volume."""
        x, y, z = (_starts(*sizes, self.overlap) for sizes in zip(shape, self.size, strict=True))
        return x, y, z

    def count(self, shape: Size) -> int:
        """Number of windows of a volume."""
        return math.prod(map(len, self.starts(shape)))

    def weights(self) -> Tensor:
        """`(x, y, z)`: a Gaussian around the middle of a window, 1 at most and never 0."""
        parts = []
        for side in self.size:
            middle = (side - 1) / 2
            deviation = SIGMA * side
            offsets = torch.arange(side, dtype=torch.float32) - middle
            parts.append(torch.exp(-0.5 * (offsets / deviation) ** 2))
        weights = parts[0][:, None, None] * parts[1][None, :, None] * parts[2][None, None, :]
        return weights.clamp_(min=SMALLEST_WEIGHT)


def _starts(side: int, window: int, overlap: float) -> list[int]:
    if window >= side:
        return [0]
    step = max(1, int(window * (1 - overlap)))
    count = math.ceil((side - window) / step) + 1
    return [min(number * step, side - window) for number in range(count)]


@torch.inference_mode()
def slide(
    predict: Predict,
    volume: Array,
    windows: Windows,
    *,
    device: torch.device,
    tick: Callable[[int], object] = lambda done: None,
) -> Iterator[tuple[int, Tensor]]:
    """Probabilities of a volume, slab by slab along its first axis.

    Args:
        predict: from `(batch, channels, x, y, z)` to probabilities `(batch, classes, x, y, z)` of the same space.
        volume: `(channels, x, y, z)` float32; smaller axes than a window's are filled with zeros at both ends.
        windows: how it is cut.
        device: where windows are sent.
        tick: called with the number of windows that have been seen since the last call.

    Yields:
        Where a slab begins, and its probabilities `(classes, depth, y, z)`, good until the next are asked for.
    """
    shape: Size = (volume.shape[1], volume.shape[2], volume.shape[3])
    starts, weights = windows.starts(shape), windows.weights().to(device)
    padding = [max(0, window - side) for window, side in zip(windows.size, shape, strict=True)]
    sums = _Sums(shape, windows, padding, weights)
    rows = starts[0]
    for number, start in enumerate(rows):
        places = [(start, y, z) for y in starts[1] for z in starts[2]]
        for first in range(0, len(places), windows.batch):
            chosen = places[first : first + windows.batch]
            inputs = _taken(volume, chosen, windows.size, padding).to(device, non_blocking=True)
            sums.add(predict(inputs), chosen)
            tick(len(chosen))
        end = rows[number + 1] if number + 1 < len(rows) else shape[0]
        yield sums.begin, sums.finished(end)
        sums.move_on(end)


class _Sums:
    """Weighted sums of the slab that windows still reach."""

    def __init__(self, shape: Size, windows: Windows, padding: list[int], weights: Tensor) -> None:
        self.shape, self.windows, self.padding, self.weights = shape, windows, padding, weights
        self.begin = 0
        self.total: Tensor | None = None
        self.weight: Tensor | None = None

    def add(self, probabilities: Tensor, places: list[Size]) -> None:
        """Add windows, all of which begin at the same place along the first axis."""
        low = [part // 2 for part in self.padding]
        inside = tuple(
            slice(begin, begin + min(size, side))
            for begin, size, side in zip(low, self.windows.size, self.shape, strict=True)
        )
        weights = self.weights[inside]
        if self.total is None or self.weight is None:
            # MONAI's order of axes; a slab is as deep as a window
            space = (weights.shape[0], *self.shape[1:])
            self.total = probabilities.new_zeros((probabilities.shape[1], *space), dtype=torch.float32)
            self.weight = probabilities.new_zeros(space, dtype=torch.float32)
        for window, (_, y, z) in zip(probabilities, places, strict=True):
            where = (slice(None), slice(y, y + weights.shape[1]), slice(z, z + weights.shape[2]))
            self.total[(slice(None), *where)].addcmul_(window[(slice(None), *inside)].float(), weights)
            self.weight[where] += weights

    def finished(self, end: int) -> Tensor:
        """What no later window reaches: everything before `end`."""
        assert self.total is not None
        assert self.weight is not None
        depth = end - self.begin
        return self.total[:, :depth].div_(self.weight[:depth])

    def move_on(self, end: int) -> None:
        """Keep the rest, from `end` on."""
        assert self.total is not None
        assert self.weight is not None
        depth = end - self.begin
        for kept in (self.total.movedim(0, 1), self.weight):
            rest = kept[depth:].clone()
            kept[: len(rest)] = rest
            kept[len(rest) :] = 0
        self.begin = end


def _taken(volume: Array, places: list[Size], size: Size, padding: list[int]) -> Tensor:
    """The windows at some places as one batch: the only copy of them."""
    batch = torch.empty((len(places), len(volume), *size), memory_format=torch.channels_last_3d)
    if any(padding):
        batch.zero_()
    low = [part // 2 for part in padding]
    for window, place in zip(batch, places, strict=True):
        part = volume[(slice(None), *(slice(begin, begin + side) for begin, side in zip(place, size, strict=True)))]
        x, y, z = (slice(begin, begin + side) for begin, side in zip(low, part.shape[1:], strict=True))
        if min(part.strides) < 0 or not part.flags.writeable:
            # torch takes neither axes that run backwards nor a file that is only read
            part = part.copy()
        window[:, x, y, z] = torch.from_numpy(part)
    return batch
