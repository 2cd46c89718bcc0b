"""From masks to maps: roots, parts, and saliency in pixels."""

from __future__ import annotations

import pytest
import torch

from regard.models.vision.dependency_parsing import parse_masks


def two_halves() -> torch.Tensor:
    """Patches of a 3 x 4 grid: the left half sends to patch 5, the right half to patch 6, which sends to 5 a little."""
    mask = torch.full((12, 12), 1e-4)
    for child in range(12):
        mask[5 if child % 4 < 2 else 6, child] = 1.0
    mask[5, 6] = 0.01
    return mask


def test_a_parse_is_maps_of_patches() -> None:
    masks = torch.stack((two_halves(), two_halves().flip(0, 1)))
    parse = parse_masks(masks, grid=(3, 4), patch_size=2, image_size=(5, 8))
    assert parse.roots.tolist() == [5, 6]
    assert parse.parents.shape == (2, 12)
    assert parse.parents[0].tolist() == [5, 5, 6, 6, 5, 5, 5, 6, 5, 5, 6, 6]
    assert parse.depths()[0].tolist() == [[1, 1, 2, 2], [1, 0, 1, 2], [1, 1, 2, 2]]
    parts = parse.parts(2)
    assert parts.shape == (2, 3, 4)
    assert parts[0].tolist() == [[5, 5, 2, 3], [5, 5, 5, 7], [5, 5, 10, 11]]
    assert parse.parts()[0, 0].tolist() == [0, 1, 6, 6]


def test_saliency_has_the_images_pixels() -> None:
    parse = parse_masks(two_halves()[None], grid=(3, 4), patch_size=2, image_size=(5, 8))
    assert parse.saliency.shape == (1, 5, 8)
    assert parse.saliency[0, 0].tolist() == pytest.approx([0, 0, 0, 0.25, 0.75, 1, 1, 1])


def test_roots_may_be_given() -> None:
    parse = parse_masks(two_halves()[None], grid=(3, 4), patch_size=2, image_size=(6, 8), roots=[6])
    assert parse.roots.tolist() == [6]
    assert float(parse.saliency[0, 0, 0]) == 1
    assert float(parse.saliency[0, 0, 7]) == 0


def test_masks_that_are_not_finite_are_refused() -> None:
    mask = two_halves()
    mask[0, 0] = torch.nan
    with pytest.raises(ValueError, match="a dependency mask must be finite"):
        parse_masks(mask[None], grid=(3, 4), patch_size=2, image_size=(6, 8))
