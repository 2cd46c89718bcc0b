from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from regard.errors import UserError
from regard.tasks.images.labelled import Labelled, check_counts, held_out, held_out_patients, split_parts


def labelled(labels: list[int], parts: list[str] | None = None, classes: int = 2) -> Labelled:
    return Labelled(
        images=[Path(f"/photos/{label}/{index}.png") for index, label in enumerate(labels)],
        labels=np.array(labels, dtype=np.int64),
        parts=parts or (),
        classes=tuple(f"class {number}" for number in range(classes)),
        source="photos",
        root=Path("/photos"),
    )


def everything(found: Labelled) -> np.ndarray:
    return np.arange(len(found.labels))


def test_a_fifth_of_every_class_validates_and_at_least_one():
    labels = np.repeat([0, 1, 2, 3], [2, 3, 11, 25])
    validates = held_out(labels, 5)
    assert np.bincount(labels[validates]).tolist() == [1, 1, 2, 5]
    assert (validates == held_out(labels, 5)).all()


def test_images_in_one_place_are_split_and_none_is_lost():
    found = labelled([0] * 6 + [1] * 11)
    parts = split_parts(found, everything(found))
    assert {part: len(numbers) for part, numbers in parts.items()} == {"validation": 3, "test": 0, "train": 14}
    assert sorted(np.concatenate(list(parts.values()))) == list(range(17))


def test_given_parts_stay_as_they_are():
    found = labelled([0, 1] * 6, ["train"] * 6 + ["validation"] * 4 + ["test"] * 2)
    parts = split_parts(found, everything(found))
    assert {part: numbers.tolist() for part, numbers in parts.items()} == {
        "train": [0, 1, 2, 3, 4, 5],
        "validation": [6, 7, 8, 9],
        "test": [10, 11],
    }


def test_a_test_part_never_validates():
    found = labelled([0] * 5 + [1] * 5 + [0, 1] * 3, ["train"] * 10 + ["test"] * 6)
    parts = split_parts(found, everything(found))
    assert parts["test"].tolist() == [10, 11, 12, 13, 14, 15]
    assert len(parts["validation"]) == 2
    assert parts["validation"].max() < 10


def test_what_does_not_decode_is_in_no_part():
    found = labelled([0] * 6 + [1] * 6)
    parts = split_parts(found, np.array([0, 2, 3, 4, 7, 8, 9]))
    assert sorted(np.concatenate(list(parts.values()))) == [0, 2, 3, 4, 7, 8, 9]


@pytest.mark.parametrize(
    ("parts", "bad", "message"),
    [
        (None, {}, ""),
        (None, {1: "is empty"}, r"class 'class 0' in photos has 1 image, and at least 2 are needed .*: 0/1\.png"),
        (["train"] * 2 + ["test"] * 2, {}, "class 'class 1' in photos has 0 images, and at least 2 are needed"),
        (["train", "validation"] * 2, {}, ""),
        (
            ["train", "validation"] * 2,
            {2: "x"},
            "class 'class 1' in photos has 0 images, and at least 1 is needed to train",
        ),
    ],
)
def test_a_class_with_too_few_images_is_refused(parts, bad, message):
    found = labelled([0, 0, 1, 1], parts)
    if not message:
        check_counts(found, bad)
        assert not bad
        return
    with pytest.raises(UserError, match=message):
        check_counts(found, bad)


def test_patients_validate_as_a_whole_by_their_highest_class():
    patients = [str(number // 3) for number in range(90)]
    labels = np.array([int(number % 30 == 0) for number in range(90)], dtype=np.int64)
    validates = held_out_patients(labels, 2, patients)
    chosen = {patient for patient, is_chosen in zip(patients, validates, strict=True) if is_chosen}
    assert validates.sum() == 3 * len(chosen)
    # 27 patients without and 3 with a positive image
    assert len(chosen) == 5 + 1
    assert labels[validates].sum() == 1


def test_a_patient_is_in_one_part():
    found = replace(labelled([0, 1] * 10), patients=[str(number // 4) for number in range(20)])
    parts = split_parts(found, everything(found))
    assert {number // 4 for number in parts["train"]}.isdisjoint(number // 4 for number in parts["validation"])
    assert len(parts["train"]) + len(parts["validation"]) == 20
