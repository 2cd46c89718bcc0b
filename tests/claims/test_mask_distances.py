"""Distances by brute force, worked out by hand, and the pairs of masks that they are for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from regard.claims._mask_distances import directed_distances, hd95_by_definition, random_pairs, surface


def box(shape: tuple[int, ...], low: tuple[int, ...], high: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def test_a_surface_has_a_face_neighbour_outside() -> None:
    whole = np.ones((5, 6, 7), bool)
    inner = box((5, 6, 7), (1, 1, 1), (4, 5, 6))
    assert np.array_equal(surface(whole), whole & ~inner)
    point = box((5, 5, 5), (2, 2, 2), (3, 3, 3))
    assert np.array_equal(surface(point), point)
    # a voxel with a diagonal neighbour alone outside is inside
    nearly = np.ones((5, 5, 5), bool)
    nearly[1, 1, 1] = False
    assert not surface(nearly)[2, 2, 2]


def test_distances_follow_the_spacing() -> None:
    first, second = box((9, 5, 5), (1, 2, 2), (2, 3, 3)), box((9, 5, 5), (4, 2, 1), (6, 3, 2))
    there, back = directed_distances(first, second, (2.0, 1.0, 0.5))
    assert there == pytest.approx([math.hypot(6, 0.5)])
    assert back == pytest.approx([math.hypot(6, 0.5), math.hypot(8, 0.5)])


@pytest.mark.parametrize("pooled", [False, True])
def test_empty_masks(pooled: bool) -> None:
    empty, full = np.zeros((3, 4, 5), bool), np.ones((3, 4, 5), bool)
    assert hd95_by_definition(empty, empty, (1, 1, 1), pooled=pooled) == 0
    diagonal = math.sqrt(6**2 + 4**2 + 2.5**2)
    assert hd95_by_definition(empty, full, (2, 1, 0.5), pooled=pooled) == pytest.approx(diagonal)
    assert hd95_by_definition(full, full, (2, 1, 0.5), pooled=pooled) == 0


def test_pairs_have_empty_masks_of_every_kind() -> None:
    kinds = {(bool(first.any()), bool(second.any())) for first, second, _ in random_pairs(60, seed=0)}
    assert kinds == {(True, True), (False, True), (True, False), (False, False)}
    spacings = {spacing for _, _, spacing in random_pairs(5, seed=0)}
    assert len(spacings) == 5
    assert all(len(set(spacing)) == 3 for spacing in spacings)
