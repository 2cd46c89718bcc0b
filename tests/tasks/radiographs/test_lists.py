from __future__ import annotations

import re
from pathlib import Path

import pytest

from regard.errors import UserError
from regard.tasks.radiographs.lists import covidx_lists, read_covidx, read_rsna


def covidx(folder: Path, **parts: str):
    for part, text in parts.items():
        (folder / f"{part}.txt").write_text(text)
    return read_covidx(folder, covidx_lists(folder))


def test_lists_name_patients_files_and_classes(tmp_path) -> None:
    for place in ("train/a.png", "b two.png", "test/c.jpg"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(b"")
    found = covidx(
        tmp_path,
        train="1 a.png positive rsna\n\n1 b two.png negative cohen\n2 missing.png positive\n",
        test="7 c.jpg negative ricord\n",
    )
    names = [str(path.relative_to(tmp_path)) for path in found.images]
    assert names == ["train/a.png", "b two.png", "train/missing.png", "test/c.jpg"]
    assert found.classes == ("negative", "positive")
    assert found.labels.tolist() == [1, 0, 1, 0]
    assert found.patients == ["1", "1", "2", "7"]
    assert found.parts == ["train", "train", "train", "test"]


def test_the_finding_that_is_looked_for_comes_last(tmp_path) -> None:
    found = covidx(tmp_path, train="1 a COVID-19 x\n2 b normal x\n3 c pneumonia x\n4 d other x\n", val="5 e normal x\n")
    assert found.classes == ("normal", "pneumonia", "COVID-19", "other")
    assert found.parts[-1] == "validation"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 a.png positive x\n2 b.png\n", r"train\.txt, line 2: a line is 'patient filename class source', got '2 b.p"),
        ("1 ../a.png positive x\n", r"line 1: \.\./a\.png lies outside of the folder"),
        ("1 /etc/a.png positive x\n", "lies outside of the folder"),
        ("\n \n", r"train\.txt name no image"),
    ],
)
def test_ill_lists_are_one_line(tmp_path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as told:
        covidx(tmp_path, train=text)
    assert "\n" not in str(told.value)


def test_a_list_that_is_no_text_is_one_line(tmp_path) -> None:
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match=r"cannot read .*train\.txt"):
        read_covidx(tmp_path, covidx_lists(tmp_path))


def rsna(folder: Path, text: str):
    (folder / "stage_2_train_labels.csv").write_text(text)
    return read_rsna(folder)


def test_a_patient_with_any_box_has_pneumonia(tmp_path) -> None:
    (tmp_path / "stage_2_train_images").mkdir()
    (tmp_path / "stage_2_train_images" / "c.png").write_bytes(b"")
    found = rsna(tmp_path, "patientId,x,y,width,height,Target\na,,,,,0\nb,1,2,3,4,1\nb,5,6,7,8,1\nc,,,,,0\n")
    assert found.patients == ["a", "b", "c"]
    assert found.labels.tolist() == [0, 1, 0]
    assert found.classes == ("no pneumonia", "pneumonia")
    assert [path.name for path in found.images] == ["a.dcm", "b.dcm", "c.png"]
    assert found.parts == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patientId,x\na,1\n", "has no column Target"),
        ("", "has no column Target, patientId"),
        ("patientId,Target\n", "names no patient"),
        ("patientId,Target\na,2\n", "line 2: Target must be 0 or 1, got '2'"),
        ("patientId,Target\n../a,1\n", re.escape("the patient must be a name, got '../a'")),
    ],
)
def test_ill_tables_are_one_line(tmp_path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rsna(tmp_path, text)


def detailed(folder: Path, text: str):
    (folder / "stage_2_detailed_class_info.csv").write_text(text)
    return read_rsna(folder, detailed=True)


def test_the_detailed_table_has_three_classes(tmp_path) -> None:
    rows = "a,Lung Opacity\na,Lung Opacity\nb,Normal\nc,No Lung Opacity / Not Normal\n"
    found = detailed(tmp_path, "patientId,class\n" + rows)
    assert found.patients == ["a", "b", "c"]
    assert [found.classes[number] for number in found.labels] == [
        "Lung Opacity",
        "Normal",
        "No Lung Opacity / Not Normal",
    ]
    # what is looked for comes last
    assert found.classes[-1] == "Lung Opacity"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patientId,Target\na,1\n", "has no column class"),
        ("patientId,class\na,ill\n", "line 2: class must be one of Normal, .*, got 'ill'"),
        ("patientId,class\na,Normal\na,Lung Opacity\n", "line 3: a has two classes"),
        ("patientId,class\n", r"detailed_class_info\.csv names no patient"),
    ],
)
def test_ill_detailed_tables_are_one_line(tmp_path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        detailed(tmp_path, text)
    (tmp_path / "stage_2_detailed_class_info.csv").unlink()
    with pytest.raises(UserError, match=r"cannot read .*detailed_class_info\.csv"):
        read_rsna(tmp_path, detailed=True)
