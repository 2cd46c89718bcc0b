from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from volume_files import brats, decathlon, lgg, write

from regard.errors import UserError
from regard.tasks.volumes.cases import brats_case_of, brats_images, find_cases, fold_of, layout_of
from regard.tasks.volumes.regions import BRATS


def test_a_decathlon_folder_is_found_by_its_list(tmp_path) -> None:
    folder = decathlon(tmp_path, cases=3, channels=2)
    found = find_cases(folder)
    assert [case.name for case in found.cases] == ["box_00", "box_01", "box_02"]
    assert found.channels == ("m0", "m1")
    assert found.labels == {0: "background", 1: "box"}
    assert found.cases[1].mask == folder / "labelsTr" / "box_01.nii.gz"
    assert find_cases(folder / "dataset.json") == found


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"training": [{"image": "../../etc/passwd", "label": "x"}]}, "outside the folder"),
        ({"training": [{"image": "a.nii.gz"}]}, "label"),
        ({"training": 3}, "no list of a Medical Decathlon task"),
        ({"labels": {"0": "background", "999": "x"}}, "labels outside 0 to 255"),
    ],
    ids=["outside", "no label", "no list", "label"],
)
def test_a_list_that_is_none_is_refused(change, told, tmp_path) -> None:
    folder = decathlon(tmp_path, cases=1)
    described = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(described | change))
    with pytest.raises(UserError, match=told):
        find_cases(folder)
    assert layout_of(folder)


def test_brats_folders_have_four_channels_in_order(tmp_path) -> None:
    found = find_cases(brats(tmp_path, cases=3))
    assert [case.name for case in found.cases] == [f"BraTS20_Training_00{number}" for number in (1, 2, 3)]
    assert [path.name.split("_")[-1] for path in found.cases[0].images] == [
        "t1.nii.gz",
        "t1ce.nii.gz",
        "t2.nii.gz",
        "flair.nii.gz",
    ]
    assert found.regions == BRATS
    assert found.channels == ("t1", "t1ce", "t2", "flair")


def test_a_mask_with_an_irregular_name_is_found(tmp_path) -> None:
    folder = brats(tmp_path, cases=2) / "BraTS20_Training_002"
    (folder / "BraTS20_Training_002_seg.nii.gz").rename(folder / "W39_1998.09.19_Segm.nii.gz")
    assert [case.mask.name for case in find_cases(tmp_path).cases][1] == "W39_1998.09.19_Segm.nii.gz"


def test_a_missing_modality_is_named_and_a_missing_mask_left_out(tmp_path) -> None:
    folder = brats(tmp_path, cases=2) / "BraTS20_Training_002"
    (folder / "BraTS20_Training_002_seg.nii.gz").unlink()
    assert find_cases(tmp_path).without_mask == ("BraTS20_Training_002",)
    assert brats_images(folder) is not None
    (folder / "BraTS20_Training_002_t1ce.nii.gz").unlink()
    for call in (lambda: find_cases(tmp_path), lambda: brats_images(folder)):
        with pytest.raises(UserError, match=r"BraTS20_Training_002 lacks the modality t1ce"):
            call()
    assert brats_images(tmp_path) is None
    assert brats_case_of(folder / "BraTS20_Training_002_flair.nii.gz") == ("BraTS20_Training_002", "flair")
    assert brats_case_of(folder / "scan.nii.gz") is None


def test_slices_belong_to_patients(tmp_path) -> None:
    found = find_cases(lgg(tmp_path, patients=3, slices=12))
    assert len(found.cases) == 36
    assert Counter(case.patient for case in found.cases) == {
        f"TCGA_CS_{number}_19930414": 12 for number in (4940, 4941, 4942)
    }
    own = [case.name.rsplit("_", 1)[-1] for case in found.cases[:12]]
    assert own == [str(number) for number in range(1, 13)]
    (tmp_path / "TCGA_CS_4940_19930414" / "TCGA_CS_4940_19930414_3_mask.tif").unlink()
    assert len(find_cases(tmp_path).without_mask) == 1


def test_folders_of_images_and_labels_are_paired(tmp_path) -> None:
    for name in ("a", "b"):
        write(tmp_path / "images" / f"{name}.nii.gz", np.ones((3, 3, 3), dtype=np.uint8))
    write(tmp_path / "labels" / "a.nii", np.ones((3, 3, 3), dtype=np.uint8))
    found = find_cases(tmp_path)
    assert [case.name for case in found.cases] == ["a"]
    assert found.without_mask == ("b",)


def test_other_folders_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        find_cases(tmp_path / "none")
    (tmp_path / "a.txt").write_text("x")
    assert not layout_of(tmp_path)
    with pytest.raises(UserError, match=r"Medical Decathlon.*BraTS.*TCGA LGG.*images and labels"):
        find_cases(tmp_path)


def test_folds_deal_out_patients_evenly_and_always_alike() -> None:
    patients = [f"p{number}" for number in range(13)]
    folds = fold_of([*patients, *patients], 5)
    assert sorted(Counter(folds.values()).values()) == [2, 2, 3, 3, 3]
    assert folds == fold_of(reversed(patients), 5)
    assert folds != {name: number % 5 for number, name in enumerate(patients)}
