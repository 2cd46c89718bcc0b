from __future__ import annotations

import numpy as np
import pytest

from regard.tasks.volumes.regions import BRATS, Region, labels_of_masks, region_masks, regions_of_labels


def test_brats_regions_are_nested_and_go_back_to_labels() -> None:
    labels = np.array([[0, 1, 2], [4, 0, 2]])
    whole, core, enhancing = region_masks(labels, BRATS)
    assert whole.tolist() == [[False, True, True], [True, False, True]]
    assert core.tolist() == [[False, True, False], [True, False, False]]
    assert enhancing.tolist() == [[False, False, False], [True, False, False]]
    assert np.array_equal(labels_of_masks(np.stack([whole, core, enhancing]), BRATS), labels)


def test_an_inner_region_outside_the_outer_one_still_has_its_label() -> None:
    masks = np.zeros((3, 1, 2), dtype=bool)
    masks[2, 0, 1] = True
    assert labels_of_masks(masks, BRATS).tolist() == [[0, 4]]


def test_every_label_is_a_region_of_its_own() -> None:
    regions = regions_of_labels({0: "background", 7: "liver", 3: "spleen"})
    assert regions == (Region("spleen", (3,)), Region("liver", (7,)))
    labels = np.array([0, 3, 7, 3])
    assert np.array_equal(labels_of_masks(region_masks(labels, regions), regions), labels)
    assert Region.from_plain(regions[0].plain()) == regions[0]


@pytest.mark.parametrize("labels", [(), (1, 1), (0, 1), (256,)], ids=str)
def test_regions_that_are_none_are_refused(labels) -> None:
    with pytest.raises(ValueError, match="labels"):
        Region("x", labels)


def test_masks_and_regions_must_agree() -> None:
    with pytest.raises(ValueError, match="2 masks and 3 regions"):
        labels_of_masks(np.zeros((2, 3), dtype=bool), BRATS)
