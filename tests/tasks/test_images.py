from __future__ import annotations

import csv
import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_images import idx, paint, write_images
from torch import nn

from regard.errors import UserError
from regard.tasks.evaluation import evaluate
from regard.tasks.images import Images, ImageSettings
from regard.tasks.task import rng

CLASSES = {"cats": 7, "dogs": 11, "newts": 5}


@pytest.fixture
def image_folder(tmp_path) -> Path:
    return write_images(tmp_path / "photos", CLASSES)


def read(path: Path | None, **settings) -> Images:
    task = Images(ImageSettings(**settings))
    task.read(path)
    return task


class Linear(nn.Module):
    """The smallest classifier."""

    def __init__(self, task: Images) -> None:
        super().__init__()
        fields = task.model_fields()
        pixels = fields["in_channels"] * fields["image_size"] ** 2
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(pixels, fields["num_classes"]))

    def forward(self, images):
        return self.inner(images)


def everything(task: Images, part: str):
    batches = list(task.evaluation_batches(part, 4))
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


# --------------------------------------------------------------------------------------------------- what is read


def test_the_sample_is_the_digits():
    task = read(None)
    assert task.model_fields() == {"in_channels": 1, "image_size": 8, "num_classes": 10}
    images, labels = everything(task, "train")
    assert images.shape == (1442, 1, 8, 8)
    assert labels.shape == (1442,)
    assert "1,797 handwritten digits" in task.described
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


def test_the_default_size_is_32(image_folder):
    assert read(image_folder).model_fields()["image_size"] == 32


def write_idx(folder: Path, images: np.ndarray, labels: np.ndarray, *, zipped: bool) -> Path:
    folder.mkdir(exist_ok=True)
    end = ".gz" if zipped else ""
    (folder / f"train-images-idx3-ubyte{end}").write_bytes(idx(images, zipped=zipped))
    (folder / f"train-labels-idx1-ubyte{end}").write_bytes(idx(labels, zipped=zipped))
    return folder


def some_idx(folder: Path, *, zipped: bool = True, shape: tuple[int, int] = (6, 6)) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    images = random.integers(0, 256, (15, *shape), dtype=np.uint8)
    labels = np.repeat([0, 1, 2], [4, 6, 5])
    write_idx(folder, images, labels, zipped=zipped)
    return images, labels


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files_are_read_as_they_are(tmp_path, zipped):
    images, labels = some_idx(tmp_path / "idx", zipped=zipped)
    task = read(tmp_path / "idx")
    assert task.classes == ["0", "1", "2"]
    assert task.model_fields() == {"in_channels": 1, "image_size": 6, "num_classes": 3}
    found = []
    for part in ("train", "validation"):
        normal, numbers = everything(task, part)
        pixels = (normal * task.spread[0] + task.mean[0]) * 255
        found += [
            (label, image.round().int().tolist()) for label, image in zip(numbers.tolist(), pixels[:, 0], strict=True)
        ]
    assert sorted(found) == sorted((int(label), image.tolist()) for label, image in zip(labels, images, strict=True))


def test_idx_files_are_resized_to_squares(tmp_path):
    some_idx(tmp_path / "idx")
    assert everything(read(tmp_path / "idx", image_size=4), "train")[0].shape == (12, 1, 4, 4)
    some_idx(tmp_path / "wide", shape=(6, 9))
    assert everything(read(tmp_path / "wide"), "train")[0].shape == (12, 1, 6, 6)


def shorter(content: bytes) -> bytes:
    return gzip.compress(gzip.decompress(content)[:-3])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "is no IDX file"),
        (shorter, r"its header says 2051 with shape \(15, 6, 6\) and it has 537 bytes"),
        (lambda content: gzip.compress(b""), "is no IDX file"),
        (lambda content: b"", "is no IDX file"),
        (lambda content: idx(np.zeros(9)), "its header says 2049"),
        # the first bytes of gzip, then nothing that it knows
        (lambda content: content[:10] + b"\xff" * 50, "is no IDX file"),
        (lambda content: b"\0\0\x08\x03" + b"\xff" * 12, "is no IDX file"),
    ],
)
def test_a_damaged_idx_file_is_refused(tmp_path, damage, message):
    some_idx(tmp_path / "idx")
    path = tmp_path / "idx" / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message) as refused:
        read(tmp_path / "idx")
    assert "train-images-idx3-ubyte.gz" in str(refused.value)


def test_idx_files_of_unequal_numbers_or_too_few_classes_are_refused(tmp_path):
    images, labels = some_idx(tmp_path / "idx")
    write_idx(tmp_path / "idx", images, labels[:-1], zipped=True)
    with pytest.raises(UserError, match=r"has 15 images and .* 14 labels"):
        read(tmp_path / "idx")
    for some in (labels * 0, np.arange(15), labels[:0]):
        write_idx(tmp_path / "idx", images[: len(some)], some, zipped=True)
        with pytest.raises(UserError, match="at least two classes are needed, each with two images"):
            read(tmp_path / "idx")


def test_idx_labels_may_begin_above_0(tmp_path):
    images, labels = some_idx(tmp_path / "idx")
    write_idx(tmp_path / "idx", images, labels + 1, zipped=False)
    (tmp_path / "idx" / "train-images-idx3-ubyte.gz").unlink()
    (tmp_path / "idx" / "train-labels-idx1-ubyte.gz").unlink()
    assert read(tmp_path / "idx").classes == ["0", "1", "2", "3"]


# --------------------------------------------------------------------------------------------------- facts


def test_facts_come_back_and_decide_size_and_statistics(image_folder, tmp_path):
    task = read(image_folder, image_size=8)
    other = Images(ImageSettings())
    other.restore(task.facts())
    assert other.facts() == task.facts()
    assert other.model_fields() == task.model_fields()
    other.read(write_images(tmp_path / "more", {"cats": 3, "dogs": 4, "newts": 3}, size=11))
    assert everything(other, "train")[0].shape == (7, 3, 8, 8)
    assert other.facts() == task.facts()


def test_other_classes_are_refused(image_folder, tmp_path):
    task = read(image_folder, image_size=8)
    write_images(tmp_path / "other", {"cats": 3, "dogs": 3, "toads": 3})
    with pytest.raises(UserError, match=r"has the classes cats, dogs, toads, .* trained on cats, dogs, newts"):
        task.read(tmp_path / "other")


def test_grey_and_colour_are_brought_to_what_the_network_knows(image_folder, tmp_path):
    colour = read(image_folder, image_size=8)
    grey_folder = write_images(tmp_path / "grey", CLASSES, grey=True)
    grey = read(grey_folder, image_size=8)
    assert (colour.shape, grey.shape) == ((3, 8, 8), (1, 8, 8))
    first, _ = everything(grey, "validation")
    colour.read(grey_folder)
    images, _ = everything(colour, "validation")
    assert images.shape == (4, 3, 8, 8)
    pixels = images * torch.tensor(colour.spread)[:, None, None] + torch.tensor(colour.mean)[:, None, None]
    torch.testing.assert_close(pixels, (first * grey.spread[0] + grey.mean[0]).expand(-1, 3, -1, -1))
    grey.read(image_folder)
    images, _ = everything(grey, "validation")
    assert images.shape == (4, 1, 8, 8)
    assert images.isfinite().all()


def test_a_negative_size_is_refused():
    with pytest.raises(ValueError, match="image_size must not be negative, got -1"):
        ImageSettings(image_size=-1)


# --------------------------------------------------------------------------------------------------- training


def test_batches_depend_on_seed_and_step_alone_and_repeat_no_image(image_folder):
    task = read(image_folder, image_size=8)
    images, labels = task.batch(rng(1, 5), 7)
    again, same = task.batch(rng(1, 5), 7)
    assert torch.equal(images, again)
    assert torch.equal(labels, same)
    assert not torch.equal(images, task.batch(rng(1, 6), 7)[0])
    assert len({image.numpy().tobytes() for image in images}) == 7
    assert len(task.batch(rng(0, 0), 999)[0]) == 19


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
    assert metrics["loss"] == pytest.approx(float(task.loss(model, (images, labels)).detach()), rel=1e-5)


def test_the_confusion_table_counts_every_image(image_folder):
    task = read(image_folder, image_size=8)
    model = Linear(task).eval()
    ((title, header, rows),) = task.extras(model, "train").tables
    assert "train" in title
    assert header == ("class", "cats", "dogs", "newts")
    counts = np.array([[int(cell) for cell in row[1:]] for row in rows])
    images, labels = everything(task, "train")
    answers = model(images).argmax(dim=1)
    for truth in range(3):
        for answer in range(3):
            assert counts[truth, answer] == int(((labels == truth) & (answers == answer)).sum())


def test_many_classes_have_no_table(tmp_path):
    task = read(write_images(tmp_path / "many", {f"class {number:02}": 2 for number in range(21)}), image_size=4)
    assert task.extras(Linear(task).eval(), "validation").tables == ()


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
    assert [Path(row["file"]).name for row in rows] == [
        "one, odd.png",
        *(f"{number}.png" for number in range(7)),
        "grey.png",
    ]
    with Image.open(tmp_path / "one, odd.png") as opened:
        pixels = np.asarray(opened.convert("RGB").resize((8, 8), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    normal = (pixels / 255 - np.array(task.mean)[:, None, None]) / np.array(task.spread)[:, None, None]
    sure = model(torch.from_numpy(normal[None]).float()).softmax(dim=1)[0].detach()
    assert rows[0]["class"] == task.classes[int(sure.argmax())]
    assert float(rows[0]["probability"]) == pytest.approx(float(sure.max()), abs=1e-4)


def test_what_cannot_be_predicted_is_refused_and_nothing_written(trained, tmp_path):
    task, model = trained
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"text\.png does not decode as an image"):
        task.predict(model, [tmp_path / "text.png"], tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no images in it"):
        task.predict(model, [tmp_path / "empty"], tmp_path)
    assert not (tmp_path / "predictions.csv").exists()


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
