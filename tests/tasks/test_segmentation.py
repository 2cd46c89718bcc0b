"""Segmentation as a task: what it reads, draws, measures and writes."""

from __future__ import annotations

import io

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from volume_files import affine, brats, decathlon, lgg, oblique, read, write

from regard.errors import UserError
from regard.models.medical.agunet import AGUNet, AGUNetConfig
from regard.models.medical.segmenter import Segmenter
from regard.tasks.evaluation import evaluate
from regard.tasks.segmentation import Segmentation, SegmentationSettings
from regard.tasks.task import rng


class Oracle(nn.Module):
    """Scores by a threshold on the first channel."""

    def __init__(self, value: float, outputs: int = 2) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))
        self.outputs_count = outputs

    def forward(self, x):
        score = 30 * (x[:, :1] - self.value)
        if self.outputs_count == 2:
            return torch.cat([-score, score], dim=1)
        return score.expand(-1, self.outputs_count, *x.shape[2:])

    def outputs(self, x):
        return (self(x),)


def task_of(path, **settings) -> Segmentation:
    task = Segmentation(SegmentationSettings(**settings))
    task.read(path)
    return task


# --------------------------------------------------------------------------------------------------- reading


def test_a_decathlon_folder_is_read_and_split_by_patient(tmp_path) -> None:
    task = task_of(decathlon(tmp_path, cases=10), size=8)
    assert task.labels == {0: "background", 1: "box"}
    assert task.model_fields() == {"in_channels": 1, "num_classes": 2}
    assert task.parts() == ("validation", "train", "all")
    assert (
        "10 volumes of 10 patients with 1 channel; box; 8 train, 2 validation (fold 0 of 5, by patient)"
        in task.described
    )
    held = [
        [int(batch) for batch in task_of(tmp_path, size=8, fold=fold).evaluation_batches("validation", 1)]
        for fold in range(5)
    ]
    assert sorted(number for numbers in held for number in numbers) == list(range(10))
    again = Segmentation(task.settings)
    again.restore(task.facts())
    assert (again.channels, again.labels, again.regions) == (task.channels, task.labels, task.regions)


def test_brats_folders_have_nested_regions(tmp_path) -> None:
    task = task_of(brats(tmp_path, cases=5), view="slices", targets="regions", size=8)
    assert [region.name for region in task.regions] == ["WT", "TC", "ET"]
    assert task.model_fields() == {"in_channels": 4, "num_classes": 3}
    images, targets = task.batch(rng(0, 0), 3)
    assert (images.shape, targets.shape) == ((3, 4, 8, 8), (3, 3, 8, 8))
    assert (targets[:, 0] >= targets[:, 1]).all()
    assert (targets[:, 1] >= targets[:, 2]).all()
    exclusive = task_of(tmp_path, view="slices", targets="classes", size=8)
    assert exclusive.model_fields() == {"in_channels": 4, "num_classes": 4}
    assert set(exclusive.batch(rng(0, 0), 8)[1].unique().tolist()) <= {0, 1, 2, 3}


def test_slices_of_a_patient_stay_together(tmp_path) -> None:
    task = task_of(lgg(tmp_path, patients=5, slices=3), view="slices", targets="regions", size=32)
    assert task.model_fields() == {"in_channels": 3, "num_classes": 1}
    validation = [int(number) for number in task.evaluation_batches("validation", 1)]
    assert len(validation) == 3
    assert {number // 3 for number in validation} == {validation[0] // 3}
    assert any("5 masks with no label at all" in note for note in task.notes)
    assert "15 slices of 5 patients with 3 channels" in task.described


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"folds": 9}, "6 patients, too few for 9 folds"),
        ({"regions": "brats", "targets": "regions"}, None),
    ],
    ids=["folds", "regions"],
)
def test_settings_that_do_not_fit_the_data(settings, told, tmp_path) -> None:
    decathlon(tmp_path, cases=6)
    if told is None:
        assert task_of(tmp_path, size=8, **settings).model_fields()["num_classes"] == 3
        return
    with pytest.raises(UserError, match=told):
        task_of(tmp_path, size=8, **settings)


def test_masks_that_are_all_empty_teach_nothing(tmp_path) -> None:
    folder = decathlon(tmp_path, cases=6)
    for path in (folder / "labelsTr").iterdir():
        write(path, np.zeros((12, 10, 8), dtype=np.uint8))
    with pytest.raises(UserError, match="every mask is empty"):
        task_of(folder, size=8)


def test_bad_cases_are_refused_or_listed(tmp_path) -> None:
    folder = decathlon(tmp_path, cases=8)
    image, _ = read(folder / "imagesTr" / "box_03.nii.gz")
    image = np.array(image)
    image[2, 2, 2] = np.nan
    write(folder / "imagesTr" / "box_03.nii.gz", image)
    with pytest.raises(
        UserError, match=r"box_03.nii.gz has 1 voxel that are no finite numbers|box_03.nii.gz has 1 voxel"
    ):
        task_of(folder, size=8)
    task = task_of(folder, size=8, on_bad_image="skip")
    assert [name for name, _ in task.bad] == ["box_03"]
    assert "1 case skipped" in task.notes[0]
    assert len(list(task.evaluation_batches("all", 1))) == 7


def test_networks_must_suit_the_view(tmp_path) -> None:
    network = AGUNet(AGUNetConfig(in_channels=1, num_classes=2, filters=(4, 8, 8)))
    with pytest.raises(UserError, match="set view to whole or windows"):
        Segmentation(SegmentationSettings(view="slices")).check_network(network, 1)
    with pytest.raises(UserError, match=r"size must be a multiple of 4 and at least \d+ for this network, got 18"):
        Segmentation(SegmentationSettings(size=18)).check_network(network, 1)
    with pytest.raises(UserError, match="Linear is no network for segmentation"):
        Segmentation(SegmentationSettings()).check_network(nn.Linear(1, 1), 1)
    Segmentation(SegmentationSettings(size=24)).check_network(network, 1)
    assert issubclass(AGUNet, Segmenter)


# --------------------------------------------------------------------------------------------------- training


def test_batches_depend_on_the_step_alone_and_reach_the_network(tmp_path) -> None:
    task = task_of(decathlon(tmp_path, cases=6, shape=(16, 16, 16)), size=16)
    images, targets = task.batch(rng(3, 7), 2)
    again, same = task.batch(rng(3, 7), 2)
    assert torch.equal(images, again)
    assert torch.equal(targets, same)
    assert not torch.equal(images, task.batch(rng(3, 8), 2)[0])
    assert (images.shape, targets.shape, targets.dtype) == ((2, 1, 16, 16, 16), (2, 16, 16, 16), torch.int64)
    network = AGUNet(AGUNetConfig(in_channels=1, num_classes=2, filters=(4, 8)))
    loss = task.loss(network, (images, targets))
    loss.backward()
    assert 0 < float(loss.detach()) < 1
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("loss", ["dice", "dice_ce"])
@pytest.mark.parametrize("targets", ["classes", "regions"])
def test_a_perfect_network_has_the_smallest_loss(loss, targets, tmp_path) -> None:
    settings = {"size": 12, "loss": loss, "targets": targets, "normalise": "minmax", "flip": False, "intensity": 0.0}
    task = task_of(decathlon(tmp_path, cases=6, shape=(12, 12, 12)), **settings)
    batch = task.batch(rng(0, 0), 2)
    outputs = task.model_fields()["num_classes"]
    good, bad = (float(task.loss(Oracle(value, outputs), batch).detach()) for value in (0.55, 0.9))
    assert good < 0.1
    assert bad > good + 0.1


# --------------------------------------------------------------------------------------------------- measuring


def test_an_oracle_is_measured_in_the_voxels_of_the_files(tmp_path) -> None:
    task = task_of(decathlon(tmp_path, cases=6, where=oblique()), view="windows", size=8, normalise="minmax")
    oracle = Oracle(0.55).eval()
    metrics = evaluate(task, oracle, "all", 1)
    assert metrics["dice"] > 0.99
    assert metrics["hd95"] < 0.5
    extras = task.extras(oracle, "validation")
    assert dict(extras.files).keys() == {"cases.csv", "lesions.csv"}
    assert dict(extras.files)["cases.csv"].count("\n") == 1 + len(task._parts["validation"])
    assert {table[0].split(",")[0].split(":")[0] for table in extras.tables} >= {"By region", "By lesion", "By patient"}
    assert len(extras.pictures) == 3 * min(3, len(task._parts["validation"]))
    assert all(picture.title.startswith("box_") for picture in extras.pictures)


def test_figures_are_measured_anew_for_another_network(tmp_path) -> None:
    task = task_of(decathlon(tmp_path, cases=6), size=8, view="windows", normalise="minmax")
    good, bad = Oracle(0.55).eval(), Oracle(0.99).eval()
    first = evaluate(task, good, "validation", 1)["dice"]
    assert evaluate(task, bad, "validation", 1)["dice"] < 0.5 < first
    rows = dict(task.extras(good, "validation").files)["cases.csv"].splitlines()[1:]
    assert float(rows[0].split(",")[3]) > 0.9


# --------------------------------------------------------------------------------------------------- predicting


def trained(tmp_path, **settings) -> Segmentation:
    return task_of(decathlon(tmp_path / "data", cases=6), view="windows", size=8, normalise="minmax", **settings)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_mask_has_the_grid_of_its_input(suffix, tmp_path) -> None:
    task, out = trained(tmp_path), tmp_path / "out"
    out.mkdir()
    values = np.random.default_rng(0).normal(0, 0.1, (9, 11, 13)).astype(np.float32)
    values[2:5, 3:7, 4:9] += 5
    image = nibabel.Nifti1Image(values, oblique()[:, [1, 2, 0, 3]])
    image.set_sform(image.affine, code=2)
    image.set_qform(image.affine, code=1)
    nibabel.save(image, tmp_path / f"scan{suffix}")
    (written,) = task.predict(Oracle(0.55).eval(), [tmp_path / f"scan{suffix}"], out)
    assert written == out / "scan_mask.nii.gz"
    made = nibabel.load(written)
    assert np.array_equal(np.asarray(made.dataobj), values > 2)
    assert made.get_data_dtype() == np.uint8
    assert np.array_equal(made.affine, nibabel.load(tmp_path / f"scan{suffix}").affine)
    assert (int(made.header["sform_code"]), int(made.header["qform_code"])) == (2, 1)
    (page,) = task.leaves
    assert page.rows == (("box", "60", f"{60 * 1.0 * 1.5 * 2.5 / 1000:.2f}", "1"),)
    assert [picture.title.split(",")[0] for picture in page.pictures] == ["axial", "coronal", "sagittal"]


def test_probabilities_are_written_on_request(tmp_path) -> None:
    task, out = trained(tmp_path, probabilities=True), tmp_path / "out"
    out.mkdir()
    source = tmp_path / "data" / "imagesTr" / "box_00.nii.gz"
    mask, probability = task.predict(Oracle(0.55).eval(), [source], out)
    assert probability.name == "box_00_box_probability.nii.gz"
    values, where = read(probability)
    assert np.array_equal(values >= 0.5, read(mask)[0] > 0)
    assert np.array_equal(where, read(source)[1])
    assert 0 <= values.min() <= values.max() <= 1


def test_progress_is_told_window_by_window(tmp_path) -> None:
    task, seen = trained(tmp_path), []
    task.watch = lambda name, done, total: seen.append((name, done, total))
    (tmp_path / "out").mkdir()
    source = tmp_path / "data" / "imagesTr" / "box_00.nii.gz"
    task.predict(Oracle(0.55).eval(), [source], tmp_path / "out")
    assert {(name, total) for name, _, total in seen} == {("box_00", sum(done for _, done, _ in seen))}


def test_brats_inputs_are_folders_or_files(tmp_path) -> None:
    folder = brats(tmp_path / "data", cases=5)
    task = task_of(folder, view="slices", targets="regions", size=8)
    case = folder / "BraTS20_Training_002"
    files = sorted(path for path in case.iterdir() if "_seg" not in path.name)
    for number, inputs in enumerate(([case], files)):
        out = tmp_path / f"out{number}"
        out.mkdir()
        (written,) = task.predict(Oracle(0.5, 3).eval(), inputs, out)
        assert written.name == "BraTS20_Training_002_mask.nii.gz"
        assert read(written)[0].shape == (12, 10, 6)
    with pytest.raises(UserError, match="lacks the modality t1ce"):
        task.predict(Oracle(0.5, 3).eval(), [path for path in files if "t1ce" not in path.name], tmp_path)


def test_slices_get_masks_of_their_own_kind(tmp_path) -> None:
    folder = lgg(tmp_path / "data")
    task = task_of(folder, view="slices", targets="regions", size=32, probabilities=True)
    (tmp_path / "out").mkdir()
    source = folder / "TCGA_CS_4940_19930414"
    written = task.predict(Oracle(0.5, 1).eval(), [source], tmp_path / "out")
    masks = [path for path in written if path.name.endswith("_mask.png")]
    assert len(masks) == 3
    drawn = np.asarray(Image.open(masks[0]))
    original = np.asarray(Image.open(source / masks[0].name.replace("_mask.png", ".tif")))
    assert drawn.shape == original.shape[:2]
    assert set(np.unique(drawn)) == {0, 255}
    red = (original[..., 0] / 255 - 0.485) / 0.229
    assert np.array_equal(drawn > 0, red >= 0.5)
    assert len(task.leaves) == 3
    assert task.leaves[0].header[-2:] == ("share", "parts")
    Image.open(io.BytesIO(task.leaves[0].pictures[0].png)).verify()


@pytest.mark.parametrize("on_bad_image", ["refuse", "skip"])
def test_an_input_that_cannot_be_used(on_bad_image, tmp_path) -> None:
    task = trained(tmp_path, on_bad_image=on_bad_image)
    (tmp_path / "out").mkdir()
    good = tmp_path / "data" / "imagesTr" / "box_00.nii.gz"
    series = write(tmp_path / "series.nii.gz", np.ones((8, 8, 8, 3), dtype=np.float32), affine())
    if on_bad_image == "refuse":
        with pytest.raises(UserError, match=r"series.nii.gz is a 4-D volume \(3\), and the network takes 1"):
            task.predict(Oracle(0.5).eval(), [good, series], tmp_path / "out")
        return
    written = task.predict(Oracle(0.5).eval(), [good, series], tmp_path / "out")
    assert [path.name for path in written] == ["box_00_mask.nii.gz"]
    assert task.bad[0][0] == "series"
    with pytest.raises(UserError, match="no case that can be used"):
        task.predict(Oracle(0.5).eval(), [series], tmp_path / "out")


def test_a_constant_volume_is_predicted_with_a_note(tmp_path) -> None:
    task = trained(tmp_path)
    (tmp_path / "out").mkdir()
    flat = write(tmp_path / "flat.nii.gz", np.full((8, 8, 8), 7, dtype=np.int16))
    (mask,) = task.predict(Oracle(0.5).eval(), [flat], tmp_path / "out")
    assert not read(mask)[0].any()
    assert "is constant" in task.leaves[0].notes[0]


def test_an_example_has_the_shape_of_a_batch(tmp_path) -> None:
    assert trained(tmp_path).example(2)["x"].shape == (2, 1, 8, 8, 8)
    sliced = Segmentation(SegmentationSettings(view="slices", size=(16, 8)))
    sliced.restore({"channels": ["a", "b"], "labels": {"0": "b", "1": "x"}, "regions": [["x", [1]]], "pictures": False})
    assert sliced.example(3)["x"].shape == (3, 2, 8, 16)
    with pytest.raises(ValueError, match="no channels"):
        sliced.restore({"channels": [], "labels": {"0": "b"}, "regions": [], "pictures": False})
