"""Small NIfTI files and folders for tests."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]
"""All 48 ways in which the axes of a file can run."""


def affine(
    order: tuple[int, ...] = (0, 1, 2),
    signs: tuple[int, ...] = (1, 1, 1),
    spacing: tuple[float, ...] = (1.0, 2.0, 3.0),
    origin: tuple[float, ...] = (-7.0, 11.0, 5.0),
) -> Array:
    made = np.eye(4)
    made[:3, :3] = 0
    for column, (row, sign) in enumerate(zip(order, signs, strict=True)):
        made[row, column] = sign * spacing[column]
    made[:3, 3] = origin
    return made


def oblique(
    angles: tuple[float, float, float] = (0.2, -0.1, 0.3), spacing: tuple[float, ...] = (1.0, 1.5, 2.5)
) -> Array:
    made = np.eye(4)
    rotation = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        one, other = [index for index in range(3) if index != axis]
        turn[one, one] = turn[other, other] = np.cos(angle)
        turn[one, other], turn[other, one] = -np.sin(angle), np.sin(angle)
        rotation = rotation @ turn
    made[:3, :3] = rotation @ np.diag(spacing)
    made[:3, 3] = (3.0, -20.0, 8.0)
    return made


def write(path: Path, values: Array, where: Array | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine() if where is None else where), path)
    return path


def read(path: Path) -> tuple[Array, Array]:
    image: Any = nibabel.load(path)
    return np.asarray(image.dataobj), image.affine


def cube(random: np.random.Generator, shape: tuple[int, int, int]) -> tuple[Array, Array]:
    """Noise with one bright box, and the box."""
    image = random.normal(0, 0.2, shape).astype(np.float32) + 1
    mask = np.zeros(shape, dtype=np.uint8)
    start = [int(random.integers(1, side // 2)) for side in shape]
    mask[tuple(slice(begin, begin + side // 3) for begin, side in zip(start, shape, strict=True))] = 1
    image[mask > 0] += 2
    return image, mask


def decathlon(
    folder: Path,
    *,
    cases: int = 6,
    shape: tuple[int, int, int] = (12, 10, 8),
    channels: int = 1,
    where: Array | None = None,
) -> Path:
    """Boxes in noise in the Decathlon's layout."""
    entries = []
    for number in range(cases):
        image, mask = cube(np.random.default_rng(number), shape)
        stored = image if channels == 1 else np.stack([image + channel for channel in range(channels)], axis=-1)
        name = f"box_{number:02d}.nii.gz"
        write(folder / "imagesTr" / name, stored, where)
        write(folder / "labelsTr" / name, mask, where)
        entries.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    described = {
        "modality": {str(channel): f"m{channel}" for channel in range(channels)},
        "labels": {"0": "background", "1": "box"},
        "training": entries,
    }
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def brats(folder: Path, *, cases: int = 3, shape: tuple[int, int, int] = (12, 10, 6)) -> Path:
    """Nested boxes as BraTS names its files."""
    for number in range(1, cases + 1):
        random = np.random.default_rng(number)
        image, mask = cube(random, shape)
        labels = mask * 2
        inner = np.argwhere(mask)
        labels[tuple(inner[0])], labels[tuple(inner[1])] = 1, 4
        name = f"BraTS20_Training_{number:03d}"
        for channel, modality in enumerate(("t1", "t1ce", "t2", "flair")):
            stored = np.round(100 * (image + channel)).astype(np.int16)
            stored[0] = 0
            write(folder / name / f"{name}_{modality}.nii.gz", stored)
        write(folder / name / f"{name}_seg.nii.gz", labels.astype(np.int16))
    return folder


def lgg(folder: Path, *, patients: int = 5, slices: int = 3, side: int = 32) -> Path:
    """Slices with masks as TCGA LGG has them."""
    from PIL import Image

    for number in range(patients):
        random = np.random.default_rng(number)
        name = f"TCGA_CS_{4940 + number}_19930414"
        place = folder / name
        place.mkdir(parents=True)
        for index in range(1, slices + 1):
            image = random.integers(0, 200, (side, side, 3)).astype(np.uint8)
            mask = np.zeros((side, side), dtype=np.uint8)
            if index > 1:
                mask[5 : 5 + index, 7:13] = 255
            Image.fromarray(image).save(place / f"{name}_{index}.tif")
            Image.fromarray(mask).save(place / f"{name}_{index}_mask.tif")
    return folder
