"""How far a predicted mask is from the true one: overlap, distance of surfaces, and what was found of each lesion.

Overlap and surfaces are MONAI's. What is settled here is what they leave open: two empty masks agree (Dice 1, distance
0), and where one alone is empty the distance is the volume's diagonal.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
PERCENTILE = 95.0


def dice(prediction: Mask, target: Mask) -> float:
    """2 |P and G| / (|P| + |G|); 1 where both are empty.

    Raises:
        ValueError: masks of different shapes, or arrays that are not of booleans.
    """
    _check(prediction, target)
    total = int(prediction.sum()) + int(target.sum())
    return 2 * int((prediction & target).sum()) / total if total else 1.0


def hd95(prediction: Mask, target: Mask, spacing: Sequence[float], *, pooled: bool = False) -> float:
    """The 95th percentile of the distances between two surfaces, in the spacing's unit.

    A surface is what of a mask has a face neighbour outside it, the outside of the volume included. An axis of length
    1 is left out: the surface of a single slice is its outline.

    Args:
        prediction: `(*space)`.
        target: `(*space)`.
        spacing: distance of neighbours along each axis.
        pooled: the percentile of both directions' distances together (as medpy has it), not the larger of both
            directions' percentiles (as MONAI has it).

    Raises:
        ValueError: masks of different shapes, arrays that are not of booleans, or a spacing that is not positive.
    """
    _check(prediction, target)
    if len(spacing) != prediction.ndim or not all(0 < step < math.inf for step in spacing):
        raise ValueError(f"spacing must be a positive number for each of {prediction.ndim} axes, got {tuple(spacing)}")
    if not prediction.any() and not target.any():
        return 0.0
    if not prediction.any() or not target.any():
        sides = (size * step for size, step in zip(prediction.shape, spacing, strict=True))
        return math.sqrt(sum(side**2 for side in sides))
    there, back = _surface_distances(prediction, target, spacing)
    if pooled:
        return float(np.percentile(np.concatenate([there, back]), PERCENTILE))
    return float(max(np.percentile(there, PERCENTILE), np.percentile(back, PERCENTILE)))


def _surface_distances(prediction: Mask, target: Mask, spacing: Sequence[float]) -> tuple[Any, Any]:
    """From each surface voxel of one mask to the nearest of the other, in both directions."""
    import torch
    from monai.metrics.utils import get_edge_surface_distance

    axes = [axis for axis, size in enumerate(prediction.shape) if size > 1]
    if len(axes) < 2:
        axes = list(range(prediction.ndim))
    kept = tuple(0 if axis not in axes else slice(None) for axis in range(prediction.ndim))
    ours, theirs = (torch.from_numpy(np.ascontiguousarray(mask[kept])) for mask in (prediction, target))
    steps = [float(spacing[axis]) for axis in axes]
    with warnings.catch_warnings():
        # MONAI 1.6 warns of an argument that it passes to itself
        warnings.simplefilter("ignore", FutureWarning)
        _, (there, back), _ = get_edge_surface_distance(ours, theirs, spacing=steps, symmetric=True, class_index=1)
    return there.numpy().astype(np.float64), back.numpy().astype(np.float64)


@dataclass(frozen=True)
class Lesion:
    """A connected part of the true mask.

    Args:
        volume_ml: its volume.
        covered: the share of it that is predicted.
    """

    volume_ml: float
    covered: float


@dataclass(frozen=True)
class Found:
    """The lesions of a case.

    Args:
        lesions: those that are there.
        false: volumes in ml of predicted parts that touch none of them.
    """

    lesions: tuple[Lesion, ...]
    false: tuple[float, ...]


def lesions(prediction: Mask, target: Mask, spacing: Sequence[float]) -> Found:
    """What was found of each lesion: parts of a mask are connected through faces.

    Args:
        prediction: `(*space)`.
        target: `(*space)`.
        spacing: distance of neighbours along each axis, in mm.

    Raises:
        ValueError: masks of different shapes, or arrays that are not of booleans.
    """
    from scipy import ndimage

    _check(prediction, target)
    box = box_around(prediction, target)
    prediction, target = prediction[box], target[box]
    voxel_ml = math.prod(spacing) / 1000
    true, count = ndimage.label(target)
    sizes = np.bincount(true.ravel(), minlength=count + 1)[1:]
    covered = np.bincount(true[prediction], minlength=count + 1)[1:]
    parts, number = ndimage.label(prediction)
    part_sizes = np.bincount(parts.ravel(), minlength=number + 1)[1:]
    touching = np.bincount(parts[target], minlength=number + 1)[1:]
    return Found(
        tuple(Lesion(float(size * voxel_ml), float(hit / size)) for size, hit in zip(sizes, covered, strict=True)),
        tuple(float(size * voxel_ml) for size in part_sizes[touching == 0]),
    )


def box_around(*masks: NDArray[Any]) -> tuple[slice, ...]:
    """The smallest box with everything in some arrays that is not 0; an empty one where there is nothing."""
    box = []
    for axis in range(masks[0].ndim):
        others = tuple(other for other in range(masks[0].ndim) if other != axis)
        places = np.flatnonzero(np.any([mask.any(axis=others) for mask in masks], axis=0))
        box.append(slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0))
    return tuple(box)


def _check(prediction: Mask, target: Mask) -> None:
    if prediction.shape != target.shape:
        raise ValueError(f"the prediction has shape {prediction.shape} and the target {target.shape}: they must agree")
    if prediction.dtype != np.bool_ or target.dtype != np.bool_:
        raise ValueError(f"masks must be of booleans, got {prediction.dtype} and {target.dtype}: threshold them first")
