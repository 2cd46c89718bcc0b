from __future__ import annotations

import csv
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from odd_images import BAD, GOOD, write_odd
from PIL import Image
from tiny_images import idx, paint, write_images
from torch import nn

from regard.errors import UserError
from regard.models.vision.davit import DaViT
from regard.models.vision.vit import ViT
from regard.tasks.classification import Classification, ClassificationSettings
from regard.tasks.evaluation import evaluate
from regard.tasks.task import rng

CLASSES = {"cats": 7, "dogs": 11, "newts": 5}


@pytest.fixture
def image_folder(tmp_path) -> Path:
    return write_images(tmp_path / "photos", CLASSES)


def read(path: Path | None, **settings) -> Classification:
    task = Classification(ClassificationSettings(**settings))
    task.read(path)
    return task


class Linear(nn.Module):
    """The smallest classifier."""

    def __init__(self, task: Classification) -> None:
        super().__init__()
        fields = task.model_fields()
        pixels = fields["in_channels"] * fields["image_size"] ** 2
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(pixels, fields["num_classes"]))

    def forward(self, images):
        return self.inner(images)


def everything(task: Classification, part: str):
    batches = list(task.evaluation_batches(part, 4))
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


# --------------------------------------------------------------------------------------------------- what is read


def test_the_sample_is_the_digits():
    task = read(None)
    assert task.model_fields() == {"in_channels": 1, "image_size": 8, "num_classes": 10}
    images, labels = everything(task, "train")
    assert images.shape == (1442, 1, 8, 8)
    assert labels.shape == (1442,)
    assert task.described == (
        "scikit-learn's digits: 1,797 grey images of 10 classes, 8 by 8 pixels; 355 validation, 1,442 train"
    )
    assert read(None, image_size=12).model_fields()["image_size"] == 12


def test_a_folder_is_normalised_by_its_training_part(image_folder):
    task = read(image_folder, image_size=8)
    assert task.classes == list(CLASSES)
    assert task.model_fields() == {"in_channels": 3, "image_size": 8, "num_classes": 3}
    images, labels = everything(task, "train")
    assert images.shape == (19, 3, 8, 8)
    assert torch.bincount(labels).tolist() == [6, 9, 4]
    torch.testing.assert_close(images.mean(dim=(0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(images.std(dim=(0, 2, 3), unbiased=False), torch.ones(3), rtol=0, atol=1e-5)
    validation, _ = everything(task, "validation")
    assert validation.shape == (4, 3, 8, 8)
    assert validation.mean(dim=(0, 2, 3)).abs().amax() > 1e-4
    assert len(everything(task, "all")[0]) == 23
    assert task.parts() == ("validation", "train", "all")
    assert task.on_request() == ("all",)


def test_the_default_size_is_32(image_folder):
    assert read(image_folder).model_fields()["image_size"] == 32


def test_folders_for_parts_stay_apart(tmp_path):
    for part, count in (("train", 6), ("val", 3), ("test", 4)):
        write_images(tmp_path / part, {"a": count, "b": count})
    task = read(tmp_path, image_size=8)
    assert task.parts() == ("validation", "test", "train", "all")
    assert [len(everything(task, part)[0]) for part in task.parts()] == [6, 8, 12, 26]
    assert "6 validation, 8 test, 12 train" in task.described


def test_idx_files_keep_their_size_and_every_image(tmp_path):
    random = np.random.default_rng(3)
    images, labels = random.integers(0, 256, (15, 6, 6), dtype=np.uint8), np.repeat([0, 1, 2], [4, 6, 5])
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(images))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(labels))
    task = read(tmp_path)
    assert task.model_fields() == {"in_channels": 1, "image_size": 6, "num_classes": 3}
    normal, numbers = everything(task, "all")
    pixels = (normal * task.normal.spread[0] + task.normal.mean[0]) * 255
    assert (pixels[:, 0].round().int().numpy() == images).all()
    assert (numbers.numpy() == labels).all()
    assert everything(read(tmp_path, image_size=4), "train")[0].shape == (12, 1, 4, 4)


def test_grey_images_have_one_channel_unless_one_has_colour_or_more_are_wanted(tmp_path):
    write_images(tmp_path / "grey", {"a": 3, "b": 3}, grey=True)
    assert read(tmp_path / "grey").model_fields()["in_channels"] == 1
    assert read(tmp_path / "grey", channels=3).model_fields()["in_channels"] == 3
    paint(tmp_path / "grey" / "b" / "colour.png")
    assert read(tmp_path / "grey").model_fields()["in_channels"] == 3
    assert read(tmp_path / "grey", channels=1).model_fields()["in_channels"] == 1


def test_what_does_not_decode_is_skipped_and_named_or_refused(image_folder):
    (image_folder / "cats" / "notes.txt").write_text("not an image")
    (image_folder / "cats" / "broken.png").write_bytes((image_folder / "cats" / "0.png").read_bytes()[:60])
    task = read(image_folder, image_size=8)
    assert len(everything(task, "all")[0]) == 23
    (note,) = task.notes
    assert note.startswith("2 files skipped: cats/broken.png (does not decode: ")
    assert note.endswith("cats/notes.txt (is not an image)")
    assert [name for name, _ in task.bad] == ["cats/broken.png", "cats/notes.txt"]
    with pytest.raises(UserError, match=r"photos has 2 files that cannot be used: cats/broken\.png \(does not") as told:
        read(image_folder, image_size=8, on_bad_image="refuse")
    assert "\n" not in str(told.value)


def test_many_bad_files_are_counted(image_folder):
    for number in range(9):
        (image_folder / "newts" / f"{number} bad.jpg").write_bytes(b"")
    task = read(image_folder, image_size=8)
    assert task.notes[0].endswith("and 4 more")
    assert len(task.bad) == 9


def test_a_class_without_images_is_refused(image_folder):
    (image_folder / "trees").mkdir()
    (image_folder / "trees" / "a.jpg").write_bytes(b"JFIF")
    with pytest.raises(UserError, match=r"class 'trees' in .* has 0 images, .*; these do not decode: trees/a\.jpg"):
        read(image_folder)


def test_odd_images_are_trained_on(tmp_path):
    for label in ("a", "b"):
        for name in (*GOOD, *BAD):
            write_odd(tmp_path / label / name.replace(" ", "_"), name)
    task = read(tmp_path, image_size=16, augment="strong")
    assert len(everything(task, "all")[0]) == 2 * len(GOOD)
    assert len(task.bad) == 2 * len(BAD)
    images, _ = task.batch(rng(0, 0), 99)
    assert images.isfinite().all()


def test_images_beyond_the_budget_are_decoded_again_and_equal(tmp_path):
    write_images(tmp_path / "photos", {"a": 20, "b": 20}, size=96)
    small, large = (read(tmp_path / "photos", image_size=64, memory_mb=megabytes) for megabytes in (0, 100))
    assert "40 are decoded whenever they are needed" in small.described
    assert "decoded" not in large.described
    assert small.facts() == large.facts()
    for one, two in (
        (small.batch(rng(0, 1), 8), large.batch(rng(0, 1), 8)),
        (everything(small, "all"), everything(large, "all")),
    ):
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])


# --------------------------------------------------------------------------------------------------- facts


def test_facts_come_back_and_decide_size_and_statistics(image_folder, tmp_path):
    task = read(image_folder, image_size=8)
    other = Classification(ClassificationSettings())
    other.restore(task.facts())
    assert other.facts() == task.facts()
    assert other.model_fields() == task.model_fields()
    other.read(write_images(tmp_path / "more", {"cats": 3, "dogs": 4, "newts": 3}, size=11))
    assert everything(other, "train")[0].shape == (7, 3, 8, 8)
    assert other.facts() == task.facts()


def test_a_trained_network_is_measured_on_some_of_its_classes_and_on_single_images(image_folder, tmp_path):
    task = read(image_folder, image_size=8)
    task.read(write_images(tmp_path / "one", {"newts": 1}))
    assert everything(task, "all")[1].tolist() == [2]
    task.read(write_images(tmp_path / "two", {"dogs": 2, "newts": 2}))
    assert everything(task, "all")[1].tolist() == [1, 1, 2, 2]


def test_other_classes_are_refused(image_folder, tmp_path):
    task = read(image_folder, image_size=8)
    write_images(tmp_path / "other", {"cats": 3, "dogs": 3, "toads": 3})
    with pytest.raises(UserError, match=r"has the classes cats, dogs, toads, .* trained on cats, dogs, newts"):
        task.read(tmp_path / "other")


def test_grey_and_colour_are_brought_to_what_the_network_knows(image_folder, tmp_path):
    colour = read(image_folder, image_size=8)
    grey_folder = write_images(tmp_path / "grey", CLASSES, grey=True)
    grey = read(grey_folder, image_size=8)
    assert (colour.normal.channels, grey.normal.channels) == (3, 1)
    first, _ = everything(grey, "validation")
    colour.read(grey_folder)
    images, _ = everything(colour, "validation")
    assert images.shape == (4, 3, 8, 8)
    mean, spread = (torch.tensor(values)[:, None, None] for values in (colour.normal.mean, colour.normal.spread))
    pixels = images * spread + mean
    own = first * grey.normal.spread[0] + grey.normal.mean[0]
    torch.testing.assert_close(pixels, own.expand(-1, 3, -1, -1))
    grey.read(image_folder)
    images, _ = everything(grey, "validation")
    assert images.shape == (4, 1, 8, 8)
    assert images.isfinite().all()


def test_statistics_come_from_where_they_are_wanted(image_folder):
    assert read(image_folder, statistics="imagenet").normal.mean == (0.485, 0.456, 0.406)
    given = {"shape": [3, 16, 16], "mean": [0.1, 0.2, 0.3], "spread": [0.4, 0.5, 0.6]}
    for settings, expected in (
        ({}, (3, 16, (0.1, 0.2, 0.3))),
        ({"image_size": 8}, (3, 8, (0.1, 0.2, 0.3))),
        ({"channels": 1}, (1, 16, None)),
    ):
        task = Classification(ClassificationSettings(**settings))
        task.start_from(given)
        task.read(image_folder)
        assert (task.normal.channels, task.normal.size) == expected[:2]
        assert expected[2] in (None, task.normal.mean)


def test_another_size_is_taken_where_the_network_takes_it(image_folder):
    task = read(image_folder, image_size=8)
    davit = DaViT(replace(DaViT.SMALL, in_channels=3, num_classes=3))
    task.resize(davit, 12)
    task.read(image_folder)
    assert everything(task, "validation")[0].shape == (4, 3, 12, 12)
    vit = ViT(replace(ViT.SMALL, in_channels=3, num_classes=3))
    with pytest.raises(UserError, match="takes images of 12 pixels per side, not 16") as refused:
        task.resize(vit, 16)
    assert "\n" not in str(refused.value)
    for size in (0, 10**6):
        with pytest.raises(UserError, match="--image-size must be from 1 to 8,192"):
            task.resize(davit, size)


# --------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    "settings",
    [{}, {"augment": "none"}, {"augment": "strong"}, {"augment": "none", "mixup": 0.8}, {"cutmix": 1.0, "mixup": 0.2}],
)
def test_batches_depend_on_seed_and_step_alone(image_folder, settings):
    task = read(image_folder, image_size=8, **settings)
    images, labels = task.batch(rng(1, 5), 7)
    torch.rand(3)
    again, same = read(image_folder, image_size=8, **settings).batch(rng(1, 5), 7)
    assert torch.equal(images, again)
    assert torch.equal(labels, same)
    assert not torch.equal(images, task.batch(rng(1, 6), 7)[0])
    assert images.shape == (7, 3, 8, 8)
    assert labels.dtype == (torch.float32 if "mixup" in settings else torch.int64)


def test_without_augmentation_batches_repeat_no_image(image_folder):
    task = read(image_folder, image_size=8, augment="none")
    images, _ = task.batch(rng(1, 5), 7)
    assert len({image.numpy().tobytes() for image in images}) == 7
    assert len(task.batch(rng(0, 0), 999)[0]) == 19


def test_digits_are_augmented_only_where_it_is_asked_for():
    plain = read(None)
    whole, _ = everything(plain, "train")
    known = {image.numpy().tobytes() for image in whole}
    assert all(image.numpy().tobytes() in known for image in plain.batch(rng(0, 0), 9)[0])
    light = read(None, augment="light")
    assert not all(image.numpy().tobytes() in known for image in light.batch(rng(0, 0), 9)[0])
    assert light._augmentation is not None
    assert not light._augmentation.flip
    assert read(None, augment="light", flip=True)._augmentation.flip


def test_targets_are_smoothed_as_asked_for(image_folder):
    task = read(image_folder, image_size=8, label_smoothing=0.2)
    model = Linear(task)
    images, labels = task.batch(rng(0, 0), 6)
    scores = model(images)
    targets = 0.8 * F.one_hot(labels, 3) + 0.2 / 3
    expected = -(targets * scores.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(task.loss(model, (images, labels)), expected)
    torch.testing.assert_close(task.loss(model, (images, F.one_hot(labels, 3).float())), expected)


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_scores_add_up_whatever_the_batch(image_folder, rows):
    task = read(image_folder, image_size=8)
    model = Linear(task).eval()
    images, labels = everything(task, "train")
    with torch.no_grad():
        scores = model(images)
    metrics = evaluate(task, model, "train", rows)
    assert metrics["accuracy"] == pytest.approx(float((scores.argmax(dim=1) == labels).float().mean()))
    assert metrics["loss"] == pytest.approx(float(F.cross_entropy(scores, labels)), rel=1e-5)
    assert 0 <= metrics["calibration_error"] <= 1


def test_a_network_in_bfloat16_is_given_bfloat16(image_folder):
    task = read(image_folder, image_size=8)
    model = Linear(task).to(torch.bfloat16)
    batch = task.batch(rng(0, 0), 4)
    assert task.loss(model, batch).dtype == torch.float32
    assert evaluate(task, model, "validation", 4)["loss"] == pytest.approx(
        evaluate(task, model.float(), "validation", 4)["loss"], rel=0.05
    )


def test_extras_are_of_the_part_that_is_asked_for(image_folder):
    task = read(image_folder, image_size=8)
    extras = task.extras(Linear(task).eval(), "train")
    title, header, rows = extras.tables[0]
    assert "train" in title
    assert header == ("class", "cats", "dogs", "newts")
    assert sum(int(cell) for row in rows for cell in row[1:]) == 19


def test_training_images_in_great_number_are_measured_on_request(image_folder, monkeypatch):
    monkeypatch.setattr("regard.tasks.images.classifier.QUICK", 10)
    task = read(image_folder, image_size=8)
    assert task.on_request() == ("all", "train")
    assert "train" in task.parts()


# --------------------------------------------------------------------------------------------------- results


@pytest.fixture
def trained(image_folder):
    task = read(image_folder, image_size=8)
    return task, Linear(task).eval()


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_predictions_are_one_table(trained, image_folder, tmp_path):
    task, model = trained
    out = tmp_path / "out"
    out.mkdir()
    paint(tmp_path / "one, odd.png", shade=200)
    paint(tmp_path / "grey.png", mode="L", shade=200)
    (image_folder / "cats" / "._0.png").write_bytes(b"what another system keeps")
    (image_folder / "cats" / "folder.png").mkdir()
    (image_folder / "cats" / "notes.txt").write_text("no image")
    (written,) = task.predict(model, [tmp_path / "one, odd.png", image_folder / "cats", tmp_path / "grey.png"], out)
    rows = rows_of(written)
    assert list(rows[0]) == [
        "file", "class", "probability", "class_2", "probability_2", "class_3", "probability_3", "problem",
    ]  # fmt: skip
    assert [Path(row["file"]).name for row in rows] == [
        "one, odd.png",
        *(f"{number}.png" for number in range(7)),
        "grey.png",
    ]
    with Image.open(tmp_path / "one, odd.png") as opened:
        pixels = np.asarray(opened.convert("RGB").resize((8, 8), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    mean, spread = (np.array(values)[:, None, None] for values in (task.normal.mean, task.normal.spread))
    sure = model(torch.from_numpy((pixels[None] / 255 - mean) / spread).float()).softmax(dim=1)[0].detach()
    for place, number in enumerate(sure.argsort(descending=True).tolist()):
        end = f"_{place + 1}" if place else ""
        assert rows[0][f"class{end}"] == task.classes[number]
        assert float(rows[0][f"probability{end}"]) == pytest.approx(float(sure[number]), abs=1e-4)
    assert task.sheet is not None
    assert [found.name for found in task.sheet.inputs] == [row["file"] for row in rows]
    assert sum(count for _, count in task.sheet.counts) == 9


def test_predictions_agree_with_the_evaluation(tmp_path):
    folder = write_images(tmp_path / "photos", {"a": 8, "b": 8}, size=50)
    task = read(folder, image_size=12, crop_share=0.8)
    model = Linear(task).eval()
    task.predict(model, [folder], tmp_path)
    images, _ = everything(task, "all")
    with torch.no_grad():
        sure = model(images).softmax(dim=1).max(dim=1).values
    rows = {Path(row["file"]).relative_to(folder).as_posix(): row for row in rows_of(tmp_path / "predictions.csv")}
    names = [f"{label}/{number}.png" for label in "ab" for number in range(8)]
    assert [float(rows[name]["probability"]) for name in names] == pytest.approx(sure.tolist(), abs=1e-4)


@pytest.mark.parametrize("name", GOOD)
def test_an_odd_image_has_a_prediction(trained, tmp_path, name):
    task, model = trained
    path = write_odd(tmp_path / "odd", name)
    (written,) = task.predict(model, [path], tmp_path)
    (row,) = rows_of(written)
    assert row["class"] in CLASSES
    assert row["problem"] == ""
    (found,) = task.sheet.inputs
    assert found.thumbnail.startswith(b"\xff\xd8")
    assert len(found.thumbnail) < 20_000


@pytest.mark.parametrize(("name", "why"), BAD.items(), ids=BAD)
def test_a_bad_image_is_one_clear_line(trained, tmp_path, name, why):
    task, model = trained
    path = write_odd(tmp_path / "odd", name)
    with pytest.raises(UserError, match=f"{path.name} {why}") as refused:
        task.predict(model, [path], tmp_path)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "predictions.csv").exists()
    good = write_odd(tmp_path / "odd", "1x1")
    (written,) = task.predict(model, [path, good], tmp_path)
    rows = rows_of(written)
    assert [bool(row["class"]) for row in rows] == [True, False]
    assert rows[1]["problem"]
    assert task.bad == list(task.sheet.bad) == [(str(path), rows[1]["problem"])]
    task.settings = replace(task.settings, on_bad_image="refuse")
    with pytest.raises(UserError, match=f"{path.name} {why}"):
        task.predict(model, [good, path], tmp_path)


def test_several_bad_images_alone_are_one_line(trained, tmp_path):
    task, model = trained
    paths = [write_odd(tmp_path / "odd", name) for name in BAD]
    with pytest.raises(UserError, match=r"cut\.jpg does not decode: .*; nor does any of the 4 others"):
        task.predict(model, paths, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no images in it"):
        task.predict(model, [tmp_path / "empty"], tmp_path)


def test_a_name_that_is_not_utf8_is_told_as_far_as_it_can_be(trained, tmp_path):
    task, model = trained
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    paint(tmp_path / "plain.png")
    (tmp_path / "plain.png").rename(path)
    (written,) = task.predict(model, [path], tmp_path)
    assert rows_of(written)[0]["file"].endswith("caf\ufffd.png")


def test_real_idx_files(shared_data):
    found = sorted((shared_data / "mnist").rglob("*images*idx3*ubyte*"))
    if not found:
        pytest.skip("no MNIST files")
    task = read(found[0].parent)
    assert task.model_fields() == {"in_channels": 1, "image_size": 28, "num_classes": 10}


def test_real_image_folders(shared_data):
    folder = shared_data / "cifar10-subset"
    if not folder.is_dir():
        pytest.skip("no CIFAR-10 images")
    task = read(folder)
    assert task.model_fields() == {"in_channels": 3, "image_size": 32, "num_classes": 10}
    assert len(everything(task, "test")[0]) == 1000
    assert task.bad == []
