"""Small data, small settings, and mechanisms from outside."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from regard.compare.settings import Settings


@pytest.fixture
def text_file(tmp_path) -> Path:
    """Some thousand bytes in which the next byte can be learnt."""
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {number}: the cat sat on the mat\n" for number in range(200)), encoding="utf-8")
    return path


@pytest.fixture
def series_file(tmp_path) -> Path:
    """A hundred hours of three channels: a wave, a noisy slope, and one that stands still until the last rows."""
    path = tmp_path / "series.csv"
    path.write_text("\n".join(["date,wave,slope,still", *series_lines(100)]) + "\n", encoding="utf-8")
    return path


def series_lines(rows: int) -> list[str]:
    """Lines of a CSV file."""
    random = np.random.default_rng(5)
    return [
        f"2026-01-{1 + hour // 24:02d} {hour % 24:02d}:00,{10 + math.sin(hour / 3):.6f},"
        f"{hour / 9 + random.normal():.6f},{3 if hour < 90 else 4}"
        for hour in range(rows)
    ]


@pytest.fixture
def settings() -> Callable[..., Settings]:
    """Settings of a race that takes no time."""

    def make(**changed) -> Settings:
        small = {
            "task": "text",
            "mechanisms": ("softmax",),
            "lengths": (8, 16),
            "steps": 3,
            "seeds": 1,
            "train_length": 16,
            "batch": 2,
            "dim": 12,
            "num_layers": 2,
            "num_heads": 3,
        }
        return Settings(**{**small, **changed})

    return make


def write_images(folder: Path, classes: dict[str, int], *, size: int = 16, grey: bool = False) -> Path:
    """A folder of class sub-folders; class k has a bright stripe in row k."""
    from PIL import Image

    random = np.random.default_rng(7)
    for number, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = random.integers(0, 60, (size, size, 3), dtype=np.uint8)
            pixels[2 * number : 2 * number + 2] = 250
            image = Image.fromarray(pixels).convert("L" if grey else "RGB")
            image.save(os.path.join(folder / name, f"{index}.png"))
    return folder


@pytest.fixture
def image_folder(tmp_path) -> Path:
    return write_images(tmp_path / "photos", {"cats": 7, "dogs": 11, "newts": 5})
