"""Result files of a prediction: masks and probabilities in the voxels of the input, and what its page shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from regard.errors import UserError
from regard.tasks.task import Leaf, Picture
from regard.tasks.volumes.cases import BRATS_CHANNELS, Case, brats_case_of, brats_images, refuse_missing
from regard.tasks.volumes.grids import Array
from regard.tasks.volumes.metrics import box_around
from regard.tasks.volumes.pictures import legend_of, scene
from regard.tasks.volumes.preparing import Preparation
from regard.tasks.volumes.reading import Stored, is_nifti, is_slice, named, open_file, stem
from regard.tasks.volumes.regions import Region, region_masks
from regard.wording import shown

SHOWN_SIDE = 256
"""Voxels along a side beyond which a volume is made coarser for its page."""


def inputs_as_cases(inputs: Sequence[Path]) -> list[Case]:
    """The cases that a user names: files, folders with one BraTS case, or folders of files.

    Raises:
        UserError: a folder without any, or a case that lacks a modality.
    """
    made: list[Case] = []
    grouped: dict[tuple[Path, str], dict[str, Path]] = {}
    for path in inputs:
        if path.is_dir():
            made += _of_folder(path)
            continue
        part = brats_case_of(path)
        if part is None:
            made.append(Case(stem(path), stem(path), (path,), None))
        else:
            grouped.setdefault((path.parent, part[0]), {})[part[1]] = path
    for (folder, name), found in grouped.items():
        refuse_missing(folder, name, found)
        made.append(Case(name, name, tuple(found[channel] for channel in BRATS_CHANNELS), None))
    return made


def _of_folder(folder: Path) -> list[Case]:
    try:
        case = brats_images(folder)
        if case is not None:
            return [Case(folder.name, folder.name, case, None)]
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot read {shown(folder)}: {error.strerror}") from None
    chosen = [path for path in files if (is_nifti(path) or is_slice(path)) and not stem(path).endswith("_mask")]
    if not chosen:
        raise UserError(f"{shown(folder)} has no volumes or slices in it")
    return [Case(stem(path), stem(path), (path,), None) for path in chosen]


def write_labels(labels: Array, like: Stored, path: Path) -> Path:
    """A label map with the grid of its input: NIfTI for a volume, PNG for a slice (0 and 255 where there is one label).

    Args:
        labels: `(x, y, z)` bytes.
        like: the input.
        path: without suffix.
    """
    if like.pixels is None:
        return _write_nifti(labels, like, path)
    plane = labels[:, :, 0].T
    drawn = plane * 255 if plane.max() <= 1 else plane
    target = path.with_name(path.name + ".png")
    Image.fromarray(np.ascontiguousarray(drawn).astype(np.uint8)).save(target)
    return target


def write_probabilities(values: Array, like: Stored, path: Path) -> Path:
    """Probabilities with the grid of their input: NIfTI as float32, or PNG with 255 for certainty."""
    if like.pixels is None:
        return _write_nifti(values.astype(np.float32), like, path)
    target = path.with_name(path.name + ".png")
    Image.fromarray(np.ascontiguousarray(np.round(255 * values[:, :, 0].T)).astype(np.uint8)).save(target)
    return target


def _write_nifti(values: Array, like: Stored, path: Path) -> Path:
    import nibabel

    header = like.image.header.copy()
    header.set_data_dtype(values.dtype)
    header.set_slope_inter(1, 0)
    for name in ("cal_min", "cal_max"):
        header[name] = 0
    kind: Any = nibabel.Nifti2Image if isinstance(like.image, nibabel.Nifti2Image) else nibabel.Nifti1Image
    target = path.with_name(path.name + ".nii.gz")
    nibabel.save(kind(values, like.image.affine, header), target)
    return target


def leaf(
    case: Case, like: Stored, labels: Array, regions: Sequence[Region], preparation: Preparation, notes: Sequence[str]
) -> Leaf:
    """The page of a case: three orthogonal views with the mask, and the volume of every region.

    Args:
        case: its files.
        like: the first of them.
        labels: `(x, y, z)` predicted labels.
        regions: what is coloured and measured.
        preparation: how the files are read.
        notes: sentences below the table.
    """
    pictures = case_pictures(case, like, labels, regions, preparation)
    header, rows = volumes_table(labels, like, regions)
    name = case.name.replace("/", "_")
    return Leaf(name, case.name, pictures, header, rows, legend_of(regions), tuple(notes))


def case_pictures(
    case: Case,
    like: Stored,
    labels: Array,
    regions: Sequence[Region],
    preparation: Preparation,
    *,
    truth: Array | None = None,
    title: str = "",
) -> tuple[Picture, ...]:
    """The views of a case.

    Args:
        case: its files.
        like: the first of them.
        labels: `(x, y, z)` predicted labels.
        regions: what is coloured.
        preparation: how the files are read.
        truth: `(x, y, z)` true labels, drawn as an outline.
        title: before each view's own.
    """
    values, grid = preparation.coarse(case.images[-1], SHOWN_SIDE)
    flat = like.pixels is not None
    drawn = scene(values, grid, labels, like.grid, regions, truth=truth, flat=flat)
    return tuple(Picture(": ".join(filter(None, (title, name))), png) for name, png in drawn.views())


def volumes_table(
    labels: Array, like: Stored, regions: Sequence[Region]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Header and rows: the voxels and the volume of every region, and the number of its parts."""
    from scipy.ndimage import label as connected

    flat = like.pixels is not None
    rows, boxed = [], labels[box_around(labels)]
    for region, mask in zip(regions, region_masks(boxed, regions), strict=True):
        count = int(mask.sum())
        parts = int(connected(mask)[1])
        size = f"{count / labels.size:.2%}" if flat else f"{count * like.grid.voxel_ml:.2f}"
        rows.append((region.name, f"{count:,}", size, str(parts)))
    return ("region", "pixels" if flat else "voxels", "share" if flat else "ml", "parts"), tuple(rows)


def first_of(case: Case) -> Stored:
    """The first file of a case, opened.

    Raises:
        UserError: it cannot be used.
    """
    path = case.images[0]
    return named(path, lambda: open_file(path))
