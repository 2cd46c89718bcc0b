"""Splitting items into what is trained on and what is held out, by a seed."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

SMALLEST_GROUP = 5
"""A class with fewer items gives none away."""


class ThreeParts(Protocol):
    """Settings of a split into three parts."""

    @property
    def validation_share(self) -> float:
        """Share of the items that validate."""

    @property
    def test_share(self) -> float:
        """Share that tests."""

    @property
    def split_seed(self) -> int:
        """Of the choice of items."""


def check_shares(settings: ThreeParts) -> None:
    """Refuse a split that would leave a part empty.

    Raises:
        ValueError: a share that is not positive, shares that leave nothing to train on, or a negative seed.
    """
    validation, test = settings.validation_share, settings.test_share
    if not (validation > 0 and test > 0 and validation + test < 1):
        raise ValueError(
            f"validation_share and test_share must be positive and together below 1, got {validation} and {test}"
        )
    if settings.split_seed < 0:
        raise ValueError(f"split_seed must not be negative, got {settings.split_seed}")


def hold_out(groups: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """Mark about a share of each group's items, drawn at random; at least one item of all, where there are two.

    Args:
        groups: each item's group, from 0.
        share: between 0 and 1.
        seed: of the choice.
    """
    random = np.random.default_rng(seed)
    held = np.zeros(len(groups), dtype=bool)
    for group in range(int(groups.max()) + 1):
        members = random.permutation(np.flatnonzero(groups == group))
        count = max(1, round(share * len(members))) if len(members) >= SMALLEST_GROUP else 0
        held[members[:count]] = True
    if not held.any() and len(groups) > 1:
        held[random.integers(len(groups))] = True
    return held


def three_parts(count: int, *, validation: float, test: float, seed: int) -> dict[str, NDArray[np.int64]]:
    """Numbers of items that train, validate and test, each part sorted and not empty.

    Args:
        count: number of items; at least 3.
        validation: share of the items.
        test: share of the items.
        seed: of the choice.

    Raises:
        ValueError: fewer than 3 items.
    """
    if count < 3:
        raise ValueError(f"3 parts need at least 3 items, got {count}")
    order = np.random.default_rng(seed).permutation(count)
    held = max(1, round(validation * count)), max(1, round(test * count))
    held = min(held[0], count - 2), min(held[1], count - 1 - min(held[0], count - 2))
    ends = held[0], sum(held)
    return {
        "train": np.sort(order[ends[1] :]),
        "validation": np.sort(order[: ends[0]]),
        "test": np.sort(order[ends[0] : ends[1]]),
    }
