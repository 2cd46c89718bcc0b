from __future__ import annotations

import csv
import gc
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_dicom import write_dicom
from tiny_images import write_images
from torch import nn

from regard.errors import UserError
from regard.models.medical.medusa import Medusa
from regard.tasks.checkpoint import Header, header_of
from regard.tasks.evaluation import evaluate
from regard.tasks.fit import fit
from regard.tasks.hardware import Hardware
from regard.tasks.medical_classification import MedicalClassification, RadiographSettings, class_weights, positive_class
from regard.tasks.radiographs.synthetic import write_sample
from regard.tasks.recipe import Recipe
from regard.tasks.runs import Wishes, plan
from regard.tasks.task import rng


def read(path: Path | None, **settings) -> MedicalClassification:
    task = MedicalClassification(RadiographSettings(**{"image_size": 24, **settings}))
    task.read(path)
    return task


@pytest.fixture
def lists(tmp_path) -> Path:
    folder = tmp_path / "covidx"
    folder.mkdir()
    write_sample(folder, train=60, test=20, size=32)
    return folder


class Linear(nn.Module):
    """The smallest classifier."""

    def __init__(self, task: MedicalClassification) -> None:
        super().__init__()
        fields = task.model_fields()
        pixels = fields["in_channels"] * fields["image_size"] ** 2
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(pixels, fields["num_classes"]))

    def forward(self, images):
        return self.inner(images)


def everything(task: MedicalClassification, part: str):
    batches = list(task.evaluation_batches(part, 7))
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


# --------------------------------------------------------------------------------------------------- what is read


def test_lists_are_split_by_patient(lists) -> None:
    task = read(lists)
    assert task.parts() == ("validation", "test", "train", "all")
    assert task.classes == ["negative", "positive"]
    assert task.model_fields() == {"in_channels": 1, "image_size": 24, "num_classes": 2}
    found = task.found(lists, None)
    whose = {
        part: {found.patients[number] for number in numbers} for part, numbers in task._parts.items() if part != "all"
    }
    for one, two in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert whose[one].isdisjoint(whose[two])
    assert len(everything(task, "test")[0]) == 20
    assert 0.1 < len(everything(task, "validation")[0]) / 60 < 0.3
    assert task.notes == []


def test_the_sample_is_generated_and_goes_with_the_task(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(
        "regard.tasks.medical_classification.write_sample",
        lambda folder: write_sample(folder, train=40, test=10, size=32),
    )
    task = MedicalClassification(RadiographSettings(image_size=24, memory_mb=0))
    task.read(None, cache=tmp_path)
    assert task.described.startswith("generated chest radiographs: 50 grey images of 2 classes, 24 by 24 pixels")
    assert len(task.batch(rng(0, 0), 8)[0]) == 8
    assert len(list(tmp_path.iterdir())) == 1
    del task
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_class_folders_may_hold_dicom(tmp_path) -> None:
    pytest.importorskip("pydicom")
    random = np.random.default_rng(0)
    for name in ("normal", "pneumonia"):
        (tmp_path / name).mkdir()
        for number in range(6):
            pixels = random.integers(0, 4096, (30, 20), dtype=np.uint16)
            write_dicom(tmp_path / name / f"{number}.dcm", pixels)
        Image.fromarray(random.integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(tmp_path / name / "colour.png")
    write_dicom(tmp_path / "normal" / "report.dcm", None)
    task = read(tmp_path)
    assert task.model_fields()["in_channels"] == 1
    assert task.notes == ["1 file skipped: normal/report.dcm (is DICOM without pixel data)"]
    assert len(everything(task, "all")[0]) == 14
    with pytest.raises(UserError, match=r"report\.dcm \(is DICOM without pixel data\)"):
        read(tmp_path, on_bad_image="refuse")


def test_the_pneumonia_challenge_is_read(tmp_path) -> None:
    images = tmp_path / "stage_2_train_images"
    images.mkdir()
    rows = ["patientId,x,y,width,height,Target"]
    for number in range(20):
        target = number % 4 == 0
        rows += [f"p{number},,,,,{int(target)}"] * (2 if target else 1)
        shade = np.full((12, 12), 20 + 10 * number, dtype=np.uint8)
        Image.fromarray(shade).save(images / f"p{number}.png")
    (tmp_path / "stage_2_train_labels.csv").write_text("\n".join(rows))
    task = read(tmp_path)
    assert task.classes == ["no pneumonia", "pneumonia"]
    assert torch.bincount(everything(task, "all")[1]).tolist() == [15, 5]


def test_the_top_is_cut_off_and_three_channels_are_equal(tmp_path) -> None:
    pixels = np.full((50, 40), 60, dtype=np.uint8)
    pixels[:4] = 255
    pixels[:, 20:] = 100
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    whole, cut = (everything(read(tmp_path, crop_top=share), "all")[0] for share in (0.0, 0.08))
    assert whole.unique().numel() > 3
    task = read(tmp_path, channels=3, statistics="imagenet")
    colours = everything(task, "all")[0]
    restored = colours * torch.tensor(task.normal.spread)[:, None, None] + torch.tensor(task.normal.mean)[:, None, None]
    torch.testing.assert_close(restored[:, 0], restored[:, 2])
    assert restored.amax() <= 101 / 255
    assert cut.shape == whole.shape


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"test.txt": "1 a.png positive x\n"}, r"has test\.txt, but no train\.txt"),
        ({"train.txt": "1 a.png positive x\n"}, "class 'positive' in .* has 0 images"),
        ({}, "has no sub-folder: at least two classes are needed"),
    ],
)
def test_ill_folders_are_one_line(tmp_path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read(tmp_path)


def write_lists(folder: Path, **parts: list[tuple[str, str]]) -> Path:
    """Lists of patients and classes, each with an image of its own."""
    for part, rows in parts.items():
        lines = []
        for number, (patient, label) in enumerate(rows):
            Image.fromarray(np.full((9, 9), 5 * number, dtype=np.uint8)).save(folder / f"{part}{number}.png")
            lines.append(f"{patient} {part}{number}.png {label} made")
        (folder / f"{part}.txt").write_text("\n".join(lines))
    return folder


def test_a_class_of_one_patient_cannot_be_trained_on(tmp_path) -> None:
    rows = [(str(number), "negative") for number in range(9)] + [("x", "positive")] * 5
    with pytest.raises(UserError, match="has no training image of positive once a fifth of the patients validates"):
        read(write_lists(tmp_path, train=rows))


def test_shared_patients_and_empty_classes_are_told(tmp_path) -> None:
    rows = [(str(number), ("negative", "positive")[number % 2]) for number in range(20)]
    task = read(write_lists(tmp_path, train=rows, test=[("0", "negative"), ("2", "negative")]))
    assert task.notes == [
        "the test part has no image of positive: what needs one is not told",
        "2 patients of the training part also measured on: figures may be too good",
    ] or task.notes[1].startswith("1 patient")


# --------------------------------------------------------------------------------------------------- batches, loss


@pytest.mark.parametrize(("share", "positive"), [(0.3, 5), (0.01, 1), (0.99, 15)])
def test_a_fixed_share_of_a_batch_is_positive(lists, share: float, positive: int) -> None:
    task = read(lists, positive_share=share)
    for step in range(3):
        images, labels = task.batch(rng(0, step), 16)
        assert images.shape == (16, 1, 24, 24)
        assert int(labels.sum()) == positive
    one, two = task.batch(rng(1, 2), 16), task.batch(rng(1, 2), 16)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


def test_without_a_share_or_views_images_come_as_they_are(lists) -> None:
    task = read(lists, positive_share=0.0, augment=False)
    images, labels = task.batch(rng(0, 0), 1000)
    everywhere, truth = everything(task, "train")
    assert len(images) == len(everywhere)
    assert torch.bincount(labels).tolist() == torch.bincount(truth).tolist()
    assert {tuple(row.flatten().tolist()) for row in images} == {tuple(row.flatten().tolist()) for row in everywhere}


def test_the_loss_is_weighted_and_smoothed(lists) -> None:
    task = read(lists, class_weights=(1.0, 3.0), label_smoothing=0.1)
    model = Linear(task)
    images, labels = task.batch(rng(0, 0), 12)
    expected = F.cross_entropy(model(images), labels, weight=torch.tensor([1.0, 3.0]), label_smoothing=0.1)
    torch.testing.assert_close(task.loss(model, (images, labels)), expected)
    counts = torch.bincount(everything(task, "train")[1])
    balanced = class_weights("balanced", counts.numpy())
    torch.testing.assert_close(balanced * counts, torch.full((2,), counts.sum() / 2))
    assert class_weights("none", counts.numpy()) is None
    with pytest.raises(UserError, match="class_weights has 3 numbers and there are 2 classes"):
        read(lists, class_weights=(1.0, 2.0, 3.0))


def test_the_positive_class_is_found_or_named() -> None:
    assert positive_class(["COVID-19", "normal", "pneumonia"], "") == 0
    assert positive_class(["a", "b", "c"], "") == 2
    assert positive_class(["a", "b", "c"], "b") == 1
    with pytest.raises(UserError, match="positive_class must be one of a, b, got 'c'"):
        positive_class(["a", "b"], "c")


# --------------------------------------------------------------------------------------------------- figures


def test_figures_and_pages_agree_with_scikit_learn(lists) -> None:
    from sklearn.metrics import accuracy_score, roc_auc_score

    task = read(lists)
    model = Linear(task)
    images, labels = everything(task, "test")
    with torch.no_grad():
        scores = model(images)
    found = evaluate(task, model, "test", 6)
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, scores.argmax(dim=1)))
    assert found["auc"] == pytest.approx(roc_auc_score(labels, scores[:, 1] - scores[:, 0]), abs=0.01)
    assert {"sensitivity positive", "PPV negative", "loss", "calibration_error"} <= set(found)
    extras = task.extras(model, "test")
    assert extras.tables[0][0] == "Confusion on test: rows are true classes"
    assert [line[0] for line in extras.lines] == ["Reliability on test", "ROC of positive on test"]


# --------------------------------------------------------------------------------------------------- results


def small(task: MedicalClassification) -> Medusa:
    fields = task.model_fields()
    return Medusa(
        replace(
            Medusa.SMALL,
            depths=(1, 1),
            widths=(4, 6),
            heads_at=(0, 1),
            stem="small",
            body_width=2,
            body_levels=1,
            in_channels=fields["in_channels"],
            num_classes=fields["num_classes"],
        )
    )


def test_predictions_have_pictures_of_the_global_map(lists, tmp_path) -> None:
    task, out = read(lists, overlays=3), tmp_path / "out"
    out.mkdir()
    write_dicom(lists / "test" / "z.dcm", np.arange(30, dtype=np.uint16).reshape(5, 6))
    (lists / "test" / "bad.png").write_bytes(b"no")
    written = task.predict(small(task), [lists / "test"], out)
    assert [path.name for path in written] == [
        "predictions.csv",
        *(f"attention-00{number}-test-0000{number - 1}.png" for number in (1, 2, 3)),
    ]
    with written[0].open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 22
    assert [Path(row["file"]).name for row in rows if row["problem"]] == ["bad.png"]
    assert {row["class"] for row in rows if not row["problem"]} <= set(task.classes)
    assert any(row["file"].endswith("z.dcm") for row in rows)
    with Image.open(written[1]) as picture:
        assert picture.mode == "RGB"
    assert task.sheet is not None
    assert task.sheet.total == 21
    assert [shown.overlay[:4] for shown in task.sheet.inputs[:4]] == [b"\x89PNG"] * 3 + [b""]


def test_networks_without_maps_predict_alone(lists, tmp_path) -> None:
    task = read(lists)
    plain = Medusa(replace(small(task).config, attention="none"))
    for model in (plain, Linear(task)):
        assert [path.name for path in task.predict(model, [lists / "test"], tmp_path)] == ["predictions.csv"]


def test_a_run_trains_keeps_the_best_and_restores(lists, tmp_path) -> None:
    task, folder = read(lists), tmp_path / "run"
    folder.mkdir()
    model = small(task)
    recipe = Recipe(steps=4, batch=8, evaluate_every=2)
    quiet = Hardware(progress=False)
    outcome = fit(task, model, model_name="medusa", config=model.config, recipe=recipe, folder=folder, hardware=quiet)
    assert outcome.progress.step == 4
    assert "sensitivity positive" in (folder / "evaluations.csv").read_text()
    header: Header = header_of(task, "medusa", model.config)
    stored = json.loads(json.dumps(header.facts))
    other = MedicalClassification(RadiographSettings(image_size=24))
    other.restore(stored)
    other.read(lists)
    assert torch.equal(everything(other, "test")[0], everything(task, "test")[0])
    (lists / "train.txt").unlink()
    other.read(lists)
    assert other.parts() == ("test", "all")


def test_a_run_is_planned_from_a_folder_alone(lists, tmp_path) -> None:
    wishes = Wishes(system="medusa", task=None, data=str(lists), settings={"image_size": "40"}, recipe={"batch": 4})
    planned = plan(wishes, cache=tmp_path)
    assert planned.task.name == "medical_classification"
    assert planned.config == replace(Medusa.SMALL, num_classes=2)
    assert (planned.recipe.steps, planned.recipe.batch) == (Medusa.recipe["steps"], 4)
    small_images = replace(wishes, settings={"image_size": "24"})
    with pytest.raises(UserError, match=r"image_size=24 does not suit the network: .* the total stride 32, got"):
        plan(small_images, cache=tmp_path)


def test_other_sizes_are_taken_where_the_network_does(lists) -> None:
    task = read(lists)
    task.resize(small(task), 40)
    assert task.model_fields()["image_size"] == 40
    with pytest.raises(UserError, match="this network takes images of 40 pixels per side, not 1"):
        task.resize(small(task), 1)
    assert task.example(2)["images"].shape == (2, 1, 40, 40)


def test_pretrained_statistics_are_taken_where_channels_fit(lists, tmp_path) -> None:
    given = read(write_images(tmp_path / "other", {"a": 4, "b": 4})).facts()
    task = MedicalClassification(RadiographSettings(image_size=24))
    task.start_from(given)
    task.read(lists)
    assert list(task.normal.mean) == given["mean"]
    assert task.normal.size == 24
