from __future__ import annotations

import numpy as np
import pytest
from volume_files import affine, decathlon, write

from regard.errors import UserError
from regard.tasks.volumes.cases import find_cases
from regard.tasks.volumes.drawing import Draws
from regard.tasks.volumes.preparing import Preparation
from regard.tasks.volumes.settings import SegmentationSettings
from regard.tasks.volumes.store import CaseStore


def store_of(folder, *, cache=None, skip=False, **settings) -> CaseStore:
    chosen = SegmentationSettings(**{"view": "slices", "size": 8, **settings})
    preparation = Preparation(chosen, 1, "minmax")
    return CaseStore(find_cases(folder).cases, preparation, allowed=frozenset((0, 1)), cache=cache, skip=skip)


def test_cases_are_prepared_once_with_their_masks(tmp_path) -> None:
    store = store_of(decathlon(tmp_path / "data", cases=3, where=affine((1, 0, 2), (-1, 1, 1))))
    assert len(store) == 3
    for number in range(3):
        assert store.images[number].shape == (1, 10, 12, 8)
        assert store.targets[number].shape == (10, 12, 8)
        assert store.native_labels(number).shape == (12, 10, 8)
        assert store.targets[number].sum() == store.native_labels(number).sum() > 0
        # the box is brighter than what is around it, wherever the axes run
        inside = store.images[number][0][store.targets[number] > 0]
        assert inside.min() > np.median(store.images[number])
    assert store.labels == [frozenset((0, 1))] * 3


def test_what_exceeds_the_budget_is_kept_in_files(tmp_path) -> None:
    folder = decathlon(tmp_path / "data", cases=3)
    plain = store_of(folder)
    (tmp_path / "cache").mkdir()
    small = store_of(folder, cache=tmp_path / "cache", memory_mb=0)
    assert all(isinstance(image, np.memmap) for image in small.images)
    for number in range(3):
        assert np.array_equal(plain.images[number], small.images[number])
        assert np.array_equal(plain.targets[number], small.targets[number])


def test_a_bad_case_is_named_or_left_out(tmp_path) -> None:
    folder = decathlon(tmp_path / "data", cases=3)
    write(folder / "labelsTr" / "box_01.nii.gz", np.zeros((12, 10, 7), dtype=np.uint8))
    with pytest.raises(UserError, match=r"box_01.nii.gz has shape \(12, 10, 7\)"):
        store_of(folder)
    store = store_of(folder, skip=True)
    assert list(store.bad) == [1]
    assert "box_01" in store.bad[1]
    assert store.images[2].size


def test_slices_are_drawn_with_or_without_those_that_are_empty(tmp_path) -> None:
    store = store_of(decathlon(tmp_path / "data", cases=2))
    labelled = [(number, z) for number in range(2) for z in range(8) if store.targets[number][:, :, z].any()]
    settings = SegmentationSettings(view="slices", size=(16, 8))
    dropped = Draws(store, [0, 1], settings, drop=True)
    assert dropped.slices == labelled
    assert len(Draws(store, [0, 1], settings, drop=False).slices) == 16
    image, labels = dropped.draw(np.random.default_rng(0))
    # (y, x) of a window that is 16 along x and 8 along y
    assert (image.shape, labels.shape) == ((1, 8, 16), (8, 16))
    assert (image[:, :, :2] == 0).all()
    assert (image[:, :, -2:] == 0).all()
    store.targets = [np.zeros_like(target) for target in store.targets]
    with pytest.raises(UserError, match="empty=keep"):
        Draws(store, [0, 1], settings, drop=True)


def test_windows_are_often_centred_on_what_is_labelled(tmp_path) -> None:
    store = store_of(decathlon(tmp_path / "data", cases=2, shape=(24, 24, 24)), view="windows")
    draws = Draws(store, [0], SegmentationSettings(view="windows", size=4), drop=False)
    random = np.random.default_rng(0)
    hits = [bool(draws.draw(random)[1].any()) for _ in range(200)]
    assert 0.45 < np.mean(hits) < 0.8
    image, labels = draws.draw(random)
    assert (image.shape, labels.shape) == ((1, 4, 4, 4), (4, 4, 4))
    few = store.labelled_places(0)
    assert store.targets[0][tuple(few.T)].all()
    assert len(few) <= 512


def test_whole_volumes_are_drawn_as_they_are(tmp_path) -> None:
    store = store_of(decathlon(tmp_path / "data", cases=2), view="whole", size=8)
    draws = Draws(store, [1], SegmentationSettings(size=8), drop=False)
    image, labels = draws.draw(np.random.default_rng(0))
    assert np.array_equal(image, store.images[1])
    assert np.array_equal(labels, store.targets[1])
