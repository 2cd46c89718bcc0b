"""Images made by tests: folders of classes, and IDX files."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
from PIL import Image


def write_images(folder: Path, classes: dict[str, int], *, size: int = 16, grey: bool = False) -> Path:
    """A folder of class sub-folders; class k has a bright stripe in row k."""
    random = np.random.default_rng(7)
    for number, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = random.integers(0, 60, (size, size, 3), dtype=np.uint8)
            pixels[2 * number : 2 * number + 2] = 250
            image = Image.fromarray(pixels).convert("L" if grey else "RGB")
            image.save(os.path.join(folder / name, f"{index}.png"))
    return folder


def paint(path: Path, *, size: tuple[int, int] = (9, 5), mode: str = "RGB", shade: int = 100) -> None:
    """An image of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = {"RGB": (shade, 2, 3), "L": shade, "1": 1, "RGBA": (1, 2, shade, 4), "LA": (shade, 9)}[mode]
    Image.new(mode, size, colour).save(path)


def idx(array: np.ndarray, *, zipped: bool = False) -> bytes:
    """The content of an IDX file of bytes."""
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    return gzip.compress(content) if zipped else content
