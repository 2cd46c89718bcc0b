"""`train`, `predict` and `evaluate` for volumes and slices, from files to files."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from volume_files import brats, decathlon, lgg, read, write

from regard.tasks import checkpoint

TINY = ("--set", "filters=[4,8],size=16", "--steps", "2", "--batch", "1", "--accelerator", "cpu")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("REGARD_LEADERS_FOLDER", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def volumes(tmp_path) -> Path:
    return decathlon(tmp_path / "data", cases=6, shape=(17, 14, 12))


@pytest.fixture
def run(regard, volumes) -> Path:
    ran = regard("train", "agunet", "--data", str(volumes), "--out", "run", *TINY)
    assert ran.status == 0, ran.err
    return Path("run")


def test_a_network_is_trained_evaluated_and_predicts(regard, run, volumes):
    assert {"model.safetensors", "report.html", "cases.csv", "lesions.csv"} <= set(os.listdir(run))
    assert "Views" in (run / "report.html").read_text()
    ran = regard("evaluate", str(run), "--out", "measured", "--json", "m.json")
    assert ran.status == 0, ran.err
    assert "6 volumes of 6 patients with 1 channel; box; 4 train, 2 validation" in ran.out
    metrics = json.loads(Path("m.json").read_text())
    assert set(metrics) == {"validation"}
    assert set(metrics["validation"]) == {"dice", "hd95", "lesion_f1"}
    with Path("measured/cases.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2
    assert np.mean([float(row["dice"]) for row in rows]) == pytest.approx(metrics["validation"]["dice"], abs=1e-5)
    source = volumes / "imagesTr" / "box_00.nii.gz"
    before = source.read_bytes()
    ran = regard("predict", str(run), str(source), "--out", "masks", "--probabilities", "--overlap", "0.5")
    assert ran.status == 0, ran.err
    assert sorted(os.listdir("masks")) == ["box_00.html", "box_00_box_probability.nii.gz", "box_00_mask.nii.gz"]
    assert read(Path("masks/box_00_mask.nii.gz"))[0].shape == (17, 14, 12)
    page = Path("masks/box_00.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "axial, slice" in page
    assert source.read_bytes() == before


def test_nibabels_own_samples_are_predicted(regard, run, refused):
    samples = Path(nibabel.__file__).parent / "tests" / "data"
    if not (samples / "anatomical.nii").is_file():
        pytest.skip("this nibabel carries no sample volumes")
    ran = regard("predict", str(run), str(samples / "anatomical.nii"), "--out", "masks")
    assert ran.status == 0, ran.err
    made, where = read(Path("masks/anatomical_mask.nii.gz"))
    source = nibabel.load(samples / "anatomical.nii")
    assert made.shape == source.shape
    assert np.array_equal(where, source.affine)
    line = refused("predict", str(run), str(samples / "functional.nii"), "--out", "masks")
    assert "functional.nii is a 4-D volume (20), and the network takes 1" in line


def test_folds_are_trained_apart_and_summed_up(regard, volumes):
    for fold in (0, 1):
        ran = regard(
            "train",
            "agunet",
            "--data",
            str(volumes),
            "--folds",
            "2",
            "--fold",
            str(fold),
            "--out",
            f"folds/{fold}",
            *TINY,
        )
        assert ran.status == 0, ran.err
        assert f"fold {fold} of 2" in ran.out
        assert checkpoint.load(Path(f"folds/{fold}")).task.settings.fold == fold
    ran = regard("evaluate", "folds", "--out", "measured", "--json", "m.json")
    assert ran.status == 0, ran.err
    assert "±" in ran.out
    metrics = json.loads(Path("m.json").read_text())
    assert list(metrics) == ["0", "1"]
    rows = list(csv.reader(Path("measured/folds.csv").read_text().splitlines()))
    assert rows[0] == ["metric", "0", "1", "mean ± standard deviation"]
    assert float(rows[1][-1].split(" ")[0]) == pytest.approx(
        np.mean([values["dice"] for values in metrics.values()]), rel=1e-3
    )
    cases = list(csv.DictReader(Path("measured/cases.csv").read_text().splitlines()))
    assert sorted(row["case"] for row in cases) == [f"box_{number:02d}" for number in range(6)]
    assert {row["fold"] for row in cases} == {"0", "1"}
    assert "Folds" in Path("measured/report.html").read_text()


def test_folds_that_are_none_are_refused(regard, refused, run, volumes):
    assert "fold must be from 0" in refused("train", "agunet", "--data", str(volumes), "--folds", "3", "--fold", "3")
    Path("some/first").mkdir(parents=True)
    run.rename("some/first/run")
    assert "there is no checkpoint some" in refused("evaluate", "some")
    shutil.copytree("some/first/run", "some/first/again")
    assert "--part must be validation" in refused("evaluate", "some/first", "--part", "all")


def test_slices_of_brats_and_lgg_are_trained_on(regard, tmp_path):
    small = "size=64,decoder_widths=[8,8,8,8,8],aspp_channels=8"
    for name, folder, regions in (
        ("b", brats(tmp_path / "brats", cases=5, shape=(32, 32, 6)), 3),
        ("l", lgg(tmp_path / "lgg", patients=5), 1),
    ):
        ran = regard(
            "train", "braintumor", "--data", str(folder), "--out", name, "--set", small, *TINY[2:], "--batch", "2"
        )
        assert ran.status == 0, ran.err
        loaded = checkpoint.load(Path(name))
        assert loaded.model.config.num_classes == regions
        assert loaded.task.settings.view == "slices"
    case = tmp_path / "brats" / "BraTS20_Training_001"
    ran = regard("predict", "b", str(case), "--out", "masks")
    assert ran.status == 0, ran.err
    assert set(np.unique(read(Path("masks/BraTS20_Training_001_mask.nii.gz"))[0])) <= {0, 1, 2, 4}


def damage(folder: Path, what: str) -> None:
    image, mask = folder / "imagesTr" / "box_02.nii.gz", folder / "labelsTr" / "box_02.nii.gz"
    values, where = read(image)
    labels, _ = read(mask)
    values, labels = np.array(values), np.array(labels)
    if what == "nan":
        values[3, 3, 3] = np.nan
        write(image, values, where)
    elif what == "shape":
        write(mask, labels[:-1], where)
    elif what == "affine":
        write(mask, labels, where + np.eye(4)[:, [3, 0, 1, 2]] * 3)
    elif what == "label":
        labels[0, 0, 0] = 9
        write(mask, labels, where)
    elif what == "gzip":
        image.write_bytes(image.read_bytes()[:-400])
    elif what == "4-D":
        write(image, np.stack([values] * 2, axis=-1), where)
    elif what == "missing":
        image.unlink()


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("nan", "box_02.nii.gz has 1 voxel that are no finite numbers"),
        ("shape", "labelsTr/box_02.nii.gz has shape (16, 14, 12)"),
        ("affine", "different affines"),
        ("label", "labelsTr/box_02.nii.gz has the label 9, and the labels are 0, 1"),
        ("gzip", "box_02.nii.gz is truncated or damaged"),
        ("4-D", "box_02.nii.gz is a 4-D volume (2), and the network takes 1"),
        ("missing", "imagesTr/box_02.nii.gz is not there"),
    ],
)
def test_a_bad_file_is_named_in_one_line(what, told, refused, volumes):
    damage(volumes, what)
    line = refused("train", "agunet", "--data", str(volumes), "--out", "run", *TINY)
    assert told in line
    assert not Path("run").exists()


def test_options_of_masks_are_for_masks(refused, regard, tmp_path, run, volumes):
    source = str(volumes / "imagesTr" / "box_00.nii.gz")
    assert "overlap must be in [0, 1)" in refused("predict", str(run), source, "--out", "m", "--overlap", "1")
    assert "there is no file" in refused("predict", str(run), "none.nii.gz", "--out", "m")
    line = refused("predict", str(run), source, source, "--out", "m")
    assert "two inputs would both become" in line
    text = tmp_path / "text.txt"
    text.write_text("the dog sleeps and the fox runs\n" * 30)
    tiny = "dim=8,num_layers=1,num_heads=2,length=16,evaluation_tokens=64"
    ran = regard(
        "train", "lightning", "--data", str(text), "--out", "words", "--set", tiny, "--steps", "1", "--batch", "2"
    )
    assert ran.status == 0, ran.err
    assert "--overlap is for segmentation" in refused("predict", "words", str(text), "--out", "m", "--overlap", "0.5")
    assert "no slices" not in refused("evaluate", str(run), "--data", str(text))
