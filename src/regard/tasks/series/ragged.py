"""Rows of unequal length as one flat array, and stretches of it as a padded batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def padded(
    flat: NDArray[Any], starts: NDArray[np.int64], lengths: NDArray[np.int64], width: int = 0
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Stretches `(rows, width, ...)` of `flat`, zero behind each one's end, and a mask that is True at real places.

    Args:
        flat: values along axis 0.
        starts: where each stretch begins.
        lengths: of each stretch; none reaches beyond `flat`.
        width: 0 = the longest stretch.
    """
    places = np.arange(width or int(lengths.max()))
    mask = places < lengths[:, None]
    values = flat[np.minimum(starts[:, None] + places, len(flat) - 1)]
    values[~mask] = 0
    return values, mask


def starts_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where rows of these lengths begin in the flat array."""
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)[:-1]))


def grouped(keys: list[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The different keys in the order in which they come first, and the number of each item's key."""
    codes: dict[str, int] = {}
    numbers = np.array([codes.setdefault(key, len(codes)) for key in keys], dtype=np.int64)
    return list(codes), numbers


def in_order(
    codes: NDArray[np.int64], groups: int, times: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
    """The order of rows by group, inside it by time or as they come; the groups' sizes; and whether a time went back.

    Args:
        codes: each row's group.
        groups: number of groups.
        times: each row's time.
    """
    order = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes, minlength=groups).astype(np.int64)
    if times is None:
        return order, sizes, False
    went_back = bool(((np.diff(times[order]) < 0) & (np.diff(codes[order]) == 0)).any())
    return np.lexsort((np.arange(len(codes)), times, codes)) if went_back else order, sizes, went_back
