from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_images import paint, write_images

from regard.errors import UserError
from regard.tasks.images import arrays
from regard.tasks.images.arrays import load_images, split


@pytest.fixture
def image_folder(tmp_path) -> Path:
    return write_images(tmp_path / "photos", {"cats": 7, "dogs": 11, "newts": 5})


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
    monkeypatch.setattr(arrays, "MAX_IMAGES", 12)
    found = load_images(str(image_folder), size=8)
    assert found.notes == ("10 of 23 images are used",)
    assert np.bincount(np.concatenate([found.train_labels, found.validation_labels])).tolist() == [3, 5, 2]


def test_hostile_names_are_made_harmless(tmp_path):
    for name in (b"<script>\x1b[31m", b"b\xff\n"):
        for number in range(2):
            paint(tmp_path / os.fsdecode(name) / f"{number}.png")
    found = load_images(str(tmp_path), size=8)
    assert found.classes == ("<script> [31m", "b\ufffd")


def test_a_split_has_every_image_once_and_every_class_in_both_parts():
    labels = np.repeat([0, 1, 2], [2, 3, 11])
    pixels = np.arange(16, dtype=np.uint8)[:, None, None, None]
    found = split(pixels, labels, ("a", "b", "c"), "here", "some", ())
    assert np.bincount(found.validation_labels).tolist() == [1, 1, 2]
    assert np.bincount(found.train_labels).tolist() == [1, 2, 9]
    together = np.concatenate([found.train, found.validation]).reshape(-1)
    assert sorted(together) == list(range(16))
    assert (labels[found.train.reshape(-1)] == found.train_labels).all()
    assert (labels[found.validation.reshape(-1)] == found.validation_labels).all()
    assert found.description == "some, 4 of them for validation"
