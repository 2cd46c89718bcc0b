from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regard.compare.images import patch_size, patches_per_side, training_batch
from regard.errors import UserError
from regard.tasks import image_files as images
from regard.tasks.image_files import load_images


def paint(path: Path, *, size: tuple[int, int] = (9, 5), mode: str = "RGB", shade: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = {"RGB": (shade, 2, 3), "L": shade, "1": 1, "RGBA": (1, 2, shade, 4), "LA": (shade, 9)}[mode]
    Image.new(mode, size, colour).save(path)


def test_the_digits_are_split_by_class():
    found = load_images(None, size=None)
    assert found.train.shape == (1442, 1, 8, 8)
    assert found.validation.shape == (355, 1, 8, 8)
    assert len(found.classes) == 10
    shares = np.bincount(found.validation_labels) / np.bincount(found.train_labels)
    assert shares.min() > 0.2
    assert shares.max() < 0.26
    assert 0.05 < found.chance() < 0.15
    assert load_images(None, size=16).train.shape == (1442, 1, 16, 16)


def test_a_folder_of_classes(image_folder):
    found = load_images(str(image_folder), size=None)
    assert found.classes == ("cats", "dogs", "newts")
    assert found.train.shape == (6 + 9 + 4, 3, 32, 32)
    assert np.bincount(found.validation_labels).tolist() == [1, 2, 1]
    assert "23 colour images of 3 classes" in found.description
    again = load_images(str(image_folder), size=None)
    assert (again.train == found.train).all()


def test_grey_images_have_one_channel_unless_one_has_colour(tmp_path):
    for name, mode in [("a/1", "L"), ("a/2", "1"), ("b/1", "LA"), ("b/2", "L")]:
        paint(tmp_path / f"{name}.png", mode=mode)
    assert load_images(str(tmp_path), size=8).train.shape == (2, 1, 8, 8)
    paint(tmp_path / "b" / "3.png", mode="RGBA")
    mixed = load_images(str(tmp_path), size=8)
    assert mixed.train.shape == (3, 3, 8, 8)


def test_what_does_not_decode_is_skipped_and_named(image_folder):
    (image_folder / "cats" / "notes.txt").write_text("not an image")
    (image_folder / "cats" / "broken.png").write_bytes((image_folder / "cats" / "0.png").read_bytes()[:60])
    (image_folder / ".DS_Store").mkdir()
    (image_folder / "dogs" / ".thumbs").write_bytes(b"x")
    found = load_images(str(image_folder), size=8)
    assert len(found.train) + len(found.validation) == 23
    assert found.notes == ("2 files skipped, not images: cats/broken.png, cats/notes.txt",)


def test_a_class_that_has_no_images_is_refused_with_what_did_not_decode(image_folder):
    (image_folder / "trees").mkdir()
    for number in range(7):
        (image_folder / "trees" / f"{number}.jpg").write_bytes(b"JFIF")
    with pytest.raises(UserError, match=r"class 'trees' in .* has 0 images, and at least 2 are needed") as caught:
        load_images(str(image_folder), size=8)
    assert "these do not decode: trees/0.jpg" in str(caught.value)
    assert str(caught.value).endswith("and 2 more")


def test_one_image_is_too_few_for_a_class(image_folder):
    paint(image_folder / "trees" / "one.png")
    with pytest.raises(UserError, match=r"class 'trees' in .* has 1 image"):
        load_images(str(image_folder), size=8)


@pytest.mark.parametrize(("make", "found"), [((), "no sub-folder"), (("cats",), "only 'cats'")])
def test_fewer_than_two_classes(tmp_path, make, found):
    for name in make:
        paint(tmp_path / name / "1.png")
    with pytest.raises(UserError, match=f"has {found}: at least two classes are needed"):
        load_images(str(tmp_path), size=8)


def test_what_is_not_a_folder(tmp_path):
    with pytest.raises(UserError, match=r"there is no folder"):
        load_images(str(tmp_path / "nothing"), size=8)
    paint(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a.png is not a folder: images come as one sub-folder per class"):
        load_images(str(tmp_path / "a.png"), size=8)


def test_an_image_that_would_exhaust_memory_is_skipped(image_folder, monkeypatch):
    paint(image_folder / "cats" / "bomb.png", size=(300, 300))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300 * 300 - 1)
    assert load_images(str(image_folder), size=8).notes == ("1 file skipped, not images: cats/bomb.png",)


def test_many_images_are_thinned_evenly(image_folder, monkeypatch):
    monkeypatch.setattr(images, "MAX_IMAGES", 12)
    found = load_images(str(image_folder), size=8)
    assert found.notes == ("10 of 23 images are used",)
    assert np.bincount(np.concatenate([found.train_labels, found.validation_labels])).tolist() == [3, 5, 2]


def test_hostile_names_are_made_harmless(tmp_path):
    for name in (b"<script>\x1b[31m", b"b\xff\n"):
        for number in range(2):
            paint(tmp_path / os.fsdecode(name) / f"{number}.png")
    found = load_images(str(tmp_path), size=8)
    assert found.classes == ("<script> [31m", "b\ufffd")


def test_batches_are_whole_passes_in_the_seeds_order():
    batches = [training_batch(11, seed=4, step=step, batch=5) for step in range(11)]
    everything = np.concatenate(batches)
    for start in range(0, 55, 11):
        assert sorted(everything[start : start + 11]) == list(range(11))
    assert (everything[:11] != everything[11:22]).any()
    assert (training_batch(11, seed=4, step=7, batch=5) == batches[7]).all()
    assert (training_batch(11, seed=5, step=7, batch=5) != batches[7]).any()


def test_a_batch_may_be_larger_than_the_set():
    assert np.bincount(training_batch(3, seed=0, step=0, batch=7)).min() >= 2


@pytest.mark.parametrize(("size", "patch", "side"), [(8, 2, 4), (16, 2, 8), (32, 4, 8), (64, 8, 8)])
def test_patches(size, patch, side):
    assert (patch_size(size), patches_per_side(size)) == (patch, side)
