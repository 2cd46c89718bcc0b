from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from tiny_images import paint, write_images

from regard.errors import UserError
from regard.tasks.images.folders import images_below, labelled_files


def test_a_sub_folder_is_a_class_and_hidden_files_are_none(tmp_path):
    write_images(tmp_path / "photos", {"b": 2, "a": 3})
    paint(tmp_path / "photos" / "a" / "deeper" / "x.png")
    (tmp_path / "photos" / ".thumbs").mkdir()
    (tmp_path / "photos" / "a" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "photos" / "readme.txt").write_text("x")
    found = labelled_files(tmp_path / "photos")
    assert found.classes == ("a", "b")
    assert found.parts == ()
    assert found.are_files
    assert [found.name(number) for number in range(len(found.images))] == [
        "a/0.png", "a/1.png", "a/2.png", "a/deeper/x.png", "b/0.png", "b/1.png",
    ]  # fmt: skip
    assert found.labels.tolist() == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (("train", "val"), ("train", "validation")),
        (("train", "valid", "test"), ("train", "validation", "test")),
        (("Training", "Validation"), ("train", "validation")),
        (("train", "test"), ("train", "test")),
    ],
)
def test_folders_for_parts_are_known_by_their_names(tmp_path, names, parts):
    for name in names:
        write_images(tmp_path / name, {"a": 2, "b": 3})
    found = labelled_files(tmp_path)
    assert found.classes == ("a", "b")
    assert dict(zip(*np.unique(found.parts, return_counts=True), strict=True)) == dict.fromkeys(parts, 5)


def test_classes_may_be_named_like_parts_where_there_is_no_training_part(tmp_path):
    write_images(tmp_path, {"test": 2, "val": 2})
    assert labelled_files(tmp_path).classes == ("test", "val")
    write_images(tmp_path, {"train": 2, "ship": 2})
    assert labelled_files(tmp_path).classes == ("ship", "test", "train", "val")


def test_a_class_without_training_images_is_refused(tmp_path):
    write_images(tmp_path / "train", {"a": 2, "b": 2})
    write_images(tmp_path / "val", {"a": 2, "c": 2})
    with pytest.raises(UserError, match="has no training images of 'c', but some for validation"):
        labelled_files(tmp_path)
    write_images(tmp_path / "other" / "train", {"a": 2})
    with pytest.raises(UserError, match="train has only 'a'"):
        labelled_files(tmp_path / "other")


def test_one_class_is_enough_to_evaluate(tmp_path):
    write_images(tmp_path, {"a": 2})
    assert labelled_files(tmp_path, fewest=1).classes == ("a",)
    with pytest.raises(UserError, match="has only 'a': at least two classes are needed"):
        labelled_files(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_is_closed_is_told(tmp_path):
    write_images(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "a").chmod(0)
    try:
        with pytest.raises(UserError, match=r"cannot read .*a: Permission denied"):
            labelled_files(tmp_path)
    finally:
        (tmp_path / "a").chmod(0o700)


def test_of_a_folder_what_is_named_like_an_image_is_predicted(tmp_path):
    write_images(tmp_path / "photos", {"a": 2})
    for name in ("notes.txt", ".hidden.png"):
        (tmp_path / "photos" / name).write_text("x")
    (tmp_path / "photos" / "folder.png").mkdir()
    assert [path.name for path in images_below(tmp_path / "photos")] == ["0.png", "1.png"]
    assert images_below(Path("any.txt")) == [Path("any.txt")]
    (tmp_path / "photos" / "z.DCM").write_bytes(b"")
    assert [path.name for path in images_below(tmp_path / "photos", {".dcm"})] == ["z.DCM"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no images in it"):
        images_below(tmp_path / "empty")
