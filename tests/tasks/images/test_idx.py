from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from tiny_images import idx

from regard.errors import UserError
from regard.tasks.images.idx import idx_pairs, read_idx


def write_pair(
    folder: Path, images: np.ndarray, labels: np.ndarray, *, stem: str = "train", zipped: bool = True
) -> None:
    folder.mkdir(exist_ok=True)
    end = ".gz" if zipped else ""
    (folder / f"{stem}-images-idx3-ubyte{end}").write_bytes(idx(images, zipped=zipped))
    (folder / f"{stem}-labels-idx1-ubyte{end}").write_bytes(idx(labels, zipped=zipped))


def some(shape: tuple[int, int] = (6, 6), count: int = 15) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(3).integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, np.arange(count) % 3


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pair_is_read_as_it_is(tmp_path, zipped):
    images, labels = some()
    write_pair(tmp_path, images, labels, zipped=zipped)
    found = read_idx(idx_pairs(tmp_path))
    assert (found.images[:, 0] == images).all()
    assert (found.labels == labels).all()
    assert (found.classes, found.parts, found.are_files) == (("0", "1", "2"), (), False)


def test_a_training_and_a_test_pair_stay_apart(tmp_path):
    images, labels = some()
    write_pair(tmp_path, images, labels)
    more, numbers = some(count=6)
    write_pair(tmp_path, more, numbers, stem="t10k")
    found = read_idx(idx_pairs(tmp_path))
    assert list(found.parts) == ["train"] * 15 + ["test"] * 6
    assert (found.images[15:, 0] == more).all()
    write_pair(tmp_path, *some(shape=(7, 7)), stem="t10k")
    with pytest.raises(UserError, match="the test images are of different sizes"):
        read_idx(idx_pairs(tmp_path))


def test_a_lone_test_pair_is_everything(tmp_path):
    write_pair(tmp_path, *some(), stem="t10k")
    assert read_idx(idx_pairs(tmp_path)).parts == ()


def test_where_there_is_no_pair_there_is_none(tmp_path):
    assert idx_pairs(tmp_path) == {}
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"")
    assert idx_pairs(tmp_path) == {}


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
def test_a_damaged_file_is_refused(tmp_path, damage, message):
    write_pair(tmp_path, *some())
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message) as refused:
        read_idx(idx_pairs(tmp_path))
    assert "train-images-idx3-ubyte.gz" in str(refused.value)


def test_unequal_numbers_and_too_few_classes_are_refused(tmp_path):
    images, labels = some()
    write_pair(tmp_path, images, labels[:-1])
    with pytest.raises(UserError, match=r"has 15 images and .* 14 labels"):
        read_idx(idx_pairs(tmp_path))
    for wrong in (labels * 0, np.arange(15), labels[:0]):
        write_pair(tmp_path, images[: len(wrong)], wrong)
        with pytest.raises(UserError, match="at least two classes are needed, each with two images"):
            read_idx(idx_pairs(tmp_path))


def test_labels_may_begin_above_0(tmp_path):
    images, labels = some()
    write_pair(tmp_path, images, labels + 1)
    assert read_idx(idx_pairs(tmp_path)).classes == ("0", "1", "2", "3")
