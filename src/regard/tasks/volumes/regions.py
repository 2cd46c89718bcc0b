"""Regions of a label map: which labels belong to each, and back from regions to labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LabelMap = NDArray[np.integer[Any]]
Masks = NDArray[np.bool_]
LARGEST_LABEL = 255
"""Masks are written as bytes."""


@dataclass(frozen=True)
class Region:
    """Some labels under one name.

    Args:
        name: as tables and files call it.
        labels: the labels that belong to it.

    Raises:
        ValueError: no label, one twice, or the background among them.
    """

    name: str
    labels: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.labels or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"region {self.name!r} must have labels, each once, got {self.labels}")
        if min(self.labels) < 1 or max(self.labels) > LARGEST_LABEL:
            raise ValueError(f"labels of a region are 1 to {LARGEST_LABEL}, got {self.labels}")

    def plain(self) -> list[Any]:
        """As JSON data."""
        return [self.name, list(self.labels)]

    @classmethod
    def from_plain(cls, stored: Sequence[Any]) -> Region:
        """What `plain` gave.

        Raises:
            ValueError, TypeError: something else.
        """
        name, labels = stored
        return cls(str(name), tuple(int(label) for label in labels))


BRATS = (Region("WT", (1, 2, 4)), Region("TC", (1, 4)), Region("ET", (4,)))
"""Whole tumour, tumour core and enhancing tumour; the label 3 is not used."""
BRATS_LABELS = frozenset((0, 1, 2, 4))


def regions_of_labels(names: Mapping[int, str]) -> tuple[Region, ...]:
    """One region per label but the background, in the order of the labels."""
    return tuple(Region(names[label], (label,)) for label in sorted(names) if label != 0)


def region_masks(labels: LabelMap, regions: Sequence[Region]) -> Masks:
    """Where each region is.

    Args:
        labels: `(*space)` numbers.
        regions: whose masks.

    Returns:
        `(regions, *space)`.
    """
    return np.stack([np.isin(labels, region.labels) for region in regions])


def labels_of_masks(masks: Masks, regions: Sequence[Region]) -> NDArray[np.uint8]:
    """A label map from masks of regions; of those that hold a voxel, the one with the fewest labels names it.

    A voxel in a region gets the label that no smaller region has: with `BRATS`, 4 in ET, 1 in the rest of TC and 2 in
    the rest of WT.

    Args:
        masks: `(regions, *space)`.
        regions: as the masks are ordered.

    Raises:
        ValueError: another number of masks than of regions.
    """
    if len(masks) != len(regions):
        raise ValueError(f"there are {len(masks)} masks and {len(regions)} regions")
    labels = np.zeros(masks.shape[1:], dtype=np.uint8)
    named: set[int] = set()
    order = sorted(range(len(regions)), key=lambda number: len(regions[number].labels))
    for number in order:
        own = [label for label in regions[number].labels if label not in named]
        named.update(own)
        if own:
            labels[masks[number] & (labels == 0)] = own[0]
    return labels
