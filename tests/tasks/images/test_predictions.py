from __future__ import annotations

import csv
import io

import numpy as np
import pytest
import torch
from odd_images import write_odd
from PIL import Image
from tiny_images import paint, write_images

from regard.errors import UserError
from regard.tasks.images import predictions
from regard.tasks.images.predictions import Predictions
from regard.tasks.images.store import View


def scores_of(pixels: np.ndarray) -> torch.Tensor:
    """The brighter, the surer of the last class."""
    bright = torch.from_numpy(pixels).float().mean(dim=(1, 2, 3)) / 255
    return torch.stack([torch.zeros_like(bright)] * 6 + [8 * bright], dim=1)


def made(paths, *, refuse: bool = False, classes: int = 7) -> Predictions:
    found = Predictions([f"c{number}" for number in range(classes)], View(8), 3, refuse=refuse)
    found.run(paths, scores_of)
    return found


def test_every_file_has_a_line_whatever_the_batch(tmp_path, monkeypatch):
    folder = write_images(tmp_path / "photos", {"a": 7})
    paths = sorted((folder / "a").iterdir())
    whole = made(paths).csv_text()
    monkeypatch.setattr(predictions, "ROWS", 3)
    assert made(paths).csv_text() == whole
    rows = list(csv.DictReader(io.StringIO(whole)))
    assert [row["file"] for row in rows] == [str(path) for path in paths]
    assert list(rows[0])[-3:] == ["class_5", "probability_5", "problem"]
    shares = [float(rows[0][name]) for name in ("probability", *(f"probability_{place}" for place in range(2, 6)))]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) <= 1.0005


def test_a_file_named_twice_is_told_once(tmp_path):
    paint(tmp_path / "a.png")
    assert len(made([tmp_path / "a.png"] * 3).answers) == 1


def test_a_page_shows_some_of_many(tmp_path, monkeypatch):
    folder = write_images(tmp_path / "photos", {"a": 7})
    monkeypatch.setattr(predictions, "MOST_SHOWN", 2)
    sheet = made(sorted((folder / "a").iterdir())).sheet({})
    assert (len(sheet.inputs), sheet.total) == (2, 7)
    assert sum(count for _, count in sheet.counts) == 7


@pytest.mark.parametrize(("name", "size"), [("1x1", (128, 128)), ("3x5000", (4, 128)), ("RGBA", (128, 96))])
def test_a_picture_is_small_and_can_be_seen(tmp_path, name, size):
    (found,) = made([write_odd(tmp_path, name)]).sheet({}).inputs
    with Image.open(io.BytesIO(found.thumbnail)) as image:
        assert (image.format, image.size) == ("JPEG", size)


def test_a_bad_image_among_good_ones_is_kept_apart_or_ends_it(tmp_path):
    paint(tmp_path / "a.png")
    bad = write_odd(tmp_path, "zero bytes")
    found = made([bad, tmp_path / "a.png"])
    assert found.bad == {bad: "is empty"}
    assert found.csv_text().splitlines()[-1] == f"{bad},,,,,,,,,,,is empty"
    with pytest.raises(UserError, match=r"nothing\.jpg is empty"):
        made([tmp_path / "a.png", bad], refuse=True)
