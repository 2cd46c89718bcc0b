"""Built-in data for segmentation: synthetic volumes and slices, written as NIfTI files in the Decathlon's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from regard.tasks.volumes.cases import DATASET
from regard.tasks.volumes.grids import Array
from regard.tasks.volumes.synthetic_brain import brain
from regard.tasks.volumes.synthetic_slices import slices

FOLDER = "sample"
VOLUMES, VOLUME_SIDE = 150, 48
PATIENTS, SLICES, SLICE_SIDE = 125, 4, 96
SPACING_MM = {"volumes": 4.0, "slices": 2.0}
_SEED = 20


def write_sample(folder: Path, kind: str, *, count: int | None = None) -> Path:
    """Write the sample that goes with a view.

    Args:
        folder: where the folder of the sample is made; one that is complete is taken as it is.
        kind: "volumes" (a brain in a skull with one lesion) or "slices" (some slices of each patient, three channels).
        count: number of cases; None = as many as training takes.

    Returns:
        The folder.
    """
    whole = folder / FOLDER
    if (whole / DATASET).is_file():
        return whole
    for name in ("imagesTr", "labelsTr"):
        (whole / name).mkdir(parents=True, exist_ok=True)
    entries = []
    for number in range(count or (VOLUMES if kind == "volumes" else PATIENTS)):
        random = np.random.default_rng([_SEED, number])
        image, mask = _case(random, kind)
        name = f"{kind[:-1]}_{number:03d}.nii.gz"
        _write(whole / "imagesTr" / name, image, SPACING_MM[kind])
        _write(whole / "labelsTr" / name, mask, SPACING_MM[kind])
        entries.append({"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"})
    described: dict[str, Any] = {
        "name": f"synthetic {kind}",
        "modality": {"0": "T1"} if kind == "volumes" else {"0": "pre-contrast", "1": "FLAIR", "2": "post-contrast"},
        "labels": {"0": "background", "1": "lesion"},
        "training": entries,
    }
    (whole / DATASET).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    return whole


def _case(random: np.random.Generator, kind: str) -> tuple[Array, Array]:
    """`(x, y, z)`, or with the channels last where there are some, as NIfTI has it; and the mask."""
    if kind == "volumes":
        return brain(random, size=VOLUME_SIDE)
    image, mask = slices(random, size=SLICE_SIDE, count=SLICES)
    return np.moveaxis(image, 0, -1), mask


def _write(path: Path, values: Array, spacing: float) -> None:
    import nibabel

    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -spacing * (np.array(values.shape[:3]) - 1) / 2
    stored = values if values.dtype == np.uint8 else values.astype(np.float32)
    image: Any = nibabel.Nifti1Image(stored, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
