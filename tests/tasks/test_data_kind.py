from __future__ import annotations

import pytest

from regard.errors import UserError
from regard.tasks.data_kind import kind_of

FILES = {
    "a.txt": ("x", "language"),
    "a.jsonl": ("{}", "language"),
    "a.csv": ("date,a,b\n", "forecasting"),
    "e.csv": ("sequence,time,mark\n", "events"),
    "c.csv": ("series,time,label,x\n", "series_classification"),
    "a.ts": ("@data", "series_classification"),
    "a.npz": ("", "control"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_are_known_by_suffix_and_header(tmp_path, name):
    content, kind = FILES[name]
    (tmp_path / name).write_text(content)
    assert kind_of(tmp_path / name) == kind


FOLDERS = {
    "series_classification": ["X_TRAIN.ts", "X_TEST.ts"],
    "translation": ["train.en.gz", "train.de.gz", "val.en", "val.de"],
    "classification": ["cat/1.jpg", "dog/2.PNG"],
    "language": ["a.txt", "b/c.md", "notes.en"],
}


MEDICAL = {
    "decathlon": (["dataset.json"], "segmentation"),
    "pairs": (["images/a.nii.gz", "labels/a.nii.gz"], "segmentation"),
    "brats": (["B_001/B_001_t1.nii.gz", "B_001/B_001_seg.nii.gz"], "segmentation"),
    "lgg": (["p/p_1.tif", "p/p_1_mask.tif"], "segmentation"),
    "rsna": (["stage_2_train_labels.csv", "stage_2_train_images/a.dcm"], "medical_classification"),
}


@pytest.mark.parametrize("layout", MEDICAL)
def test_medical_layouts_are_known(tmp_path, layout):
    names, kind = MEDICAL[layout]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert kind_of(tmp_path) == kind


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("p1 a.png negative cohen", "medical_classification"),
        ("p1 b.dcm positive", "medical_classification"),
        ("to be or not", "language"),
    ],
    ids=["png", "dicom", "text"],
)
def test_a_list_of_radiographs_is_told_from_a_text(tmp_path, line, kind):
    (tmp_path / "train.txt").write_text(line + "\n")
    assert kind_of(tmp_path) == kind


def test_a_decathlon_list_stands_for_its_folder(tmp_path):
    (tmp_path / "dataset.json").write_text("{}")
    assert kind_of(tmp_path / "dataset.json") == "segmentation"


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders_are_known_by_what_is_in_them(tmp_path, kind):
    for name in FOLDERS[kind]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert kind_of(tmp_path) == kind


def test_a_pair_of_idx_files_is_images(tmp_path):
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        (tmp_path / name).write_text("x")
    assert kind_of(tmp_path) == "classification"


def test_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no file or folder"):
        kind_of(tmp_path / "no")
