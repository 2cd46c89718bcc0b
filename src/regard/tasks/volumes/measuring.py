"""Figures of predicted masks: by case and region, by lesion, by patient, and the tables that sum them up."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np

from regard.tasks.volumes.grids import Array, Grid
from regard.tasks.volumes.metrics import Found, dice, hd95, lesions
from regard.tasks.volumes.regions import Region, region_masks

NONE = "-"
Table = tuple[str, tuple[str, ...], tuple[tuple[str, ...], ...]]


@dataclass(frozen=True)
class Figures:
    """How well one region of one case was found.

    Args:
        case: its name.
        patient: whose it is.
        region: its name.
        dice: overlap.
        hd95: 95th percentile of the distances of surfaces, in mm.
        both_ml: volume that is predicted and true.
        predicted_ml: volume that is predicted.
        true_ml: volume that is true.
        found: its lesions.
    """

    case: str
    patient: str
    region: str
    dice: float
    hd95: float
    both_ml: float
    predicted_ml: float
    true_ml: float
    found: Found

    @property
    def sensitivity(self) -> float:
        """Share of the true volume that is predicted; NaN where there is none."""
        return self.both_ml / self.true_ml if self.true_ml else math.nan

    @property
    def precision(self) -> float:
        """Share of the predicted volume that is true; NaN where there is none."""
        return self.both_ml / self.predicted_ml if self.predicted_ml else math.nan


def figures(
    case: str, patient: str, predicted: Array, true: Array, regions: Sequence[Region], grid: Grid
) -> list[Figures]:
    """The figures of every region of a case.

    Args:
        case: its name.
        patient: whose it is.
        predicted: `(x, y, z)` labels.
        true: `(x, y, z)` labels.
        regions: which labels belong together.
        grid: where the voxels are.
    """
    made = []
    masks = zip(regions, region_masks(predicted, regions), region_masks(true, regions), strict=True)
    for region, ours, theirs in masks:
        made.append(
            Figures(
                case=case,
                patient=patient,
                region=region.name,
                dice=dice(ours, theirs),
                hd95=hd95(ours, theirs, grid.spacing),
                both_ml=int((ours & theirs).sum()) * grid.voxel_ml,
                predicted_ml=int(ours.sum()) * grid.voxel_ml,
                true_ml=int(theirs.sum()) * grid.voxel_ml,
                found=lesions(ours, theirs, grid.spacing),
            )
        )
    return made


def sums(measured: Sequence[Figures]) -> dict[str, float]:
    """What adds up over cases: overlaps, distances, lesions by region."""
    totals: dict[str, float] = {}
    for row in measured:
        own = {
            "cases": 1.0,
            "dice": row.dice,
            "hd95": row.hd95,
            "lesions": float(len(row.found.lesions)),
            "found": float(sum(lesion.covered > 0 for lesion in row.found.lesions)),
            "false": float(len(row.found.false)),
        }
        for name, value in own.items():
            totals[f"{name}:{row.region}"] = totals.get(f"{name}:{row.region}", 0.0) + value
    return totals


def summary(totals: dict[str, float], regions: Sequence[Region]) -> dict[str, float]:
    """Means over cases and regions, and the F1 of lesions; several regions are also told one by one."""
    made: dict[str, float] = {}
    for name in ("dice", "hd95"):
        by_region = [totals[f"{name}:{region.name}"] / totals[f"cases:{region.name}"] for region in regions]
        made[name] = mean(by_region)
        if len(regions) > 1:
            made |= {f"{name}_{region.name}": value for region, value in zip(regions, by_region, strict=True)}
    there, found, false = (
        sum(totals[f"{name}:{region.name}"] for region in regions) for name in ("lesions", "found", "false")
    )
    made["lesion_f1"] = f1(found, there - found, false)
    return made


def f1(hits: float, misses: float, false: float) -> float:
    """2 hits / (2 hits + misses + false); 1 where there is nothing to find and nothing was."""
    total = 2 * hits + misses + false
    return 2 * hits / total if total else 1.0


def tables(measured: Sequence[Figures], *, small_ml: float, min_overlap: float, unit: str = "mm") -> tuple[Table, ...]:
    """By region, by lesion size, by patient, and the worst cases.

    Args:
        measured: figures of all cases.
        small_ml: volume below which a lesion is small.
        min_overlap: Dice above which a patient counts as detected.
        unit: of distances.
    """
    regions = list(dict.fromkeys(row.region for row in measured))
    return (
        _by_region(measured, regions, unit),
        _by_lesion(measured, regions, small_ml),
        *_by_patient(measured, regions, min_overlap),
        _worst(measured, unit),
    )


def spread(values: Iterable[float], digits: int = 3) -> str:
    """Mean and standard deviation of those that are numbers."""
    numbers = [value for value in values if not math.isnan(value)]
    if not numbers:
        return NONE
    deviation = stdev(numbers) if len(numbers) > 1 else 0.0
    return f"{mean(numbers):.{digits}f} ± {deviation:.{digits}f}"


def _by_region(measured: Sequence[Figures], regions: Sequence[str], unit: str) -> Table:
    rows = []
    for region in regions:
        own = [row for row in measured if row.region == region]
        rows.append(
            (
                region,
                str(len(own)),
                spread(row.dice for row in own),
                spread((row.hd95 for row in own), 2),
                spread(row.sensitivity for row in own),
                spread(row.precision for row in own),
            )
        )
    header = ("region", "cases", "Dice", f"HD95 ({unit})", "sensitivity", "precision")
    return ("By region, mean and standard deviation over cases", header, tuple(rows))


def _by_lesion(measured: Sequence[Figures], regions: Sequence[str], small_ml: float) -> Table:
    rows = []
    for region in regions:
        found = [row.found for row in measured if row.region == region]
        false = sum(len(one.false) for one in found)
        everything = [lesion for one in found for lesion in one.lesions]
        sizes = {
            "all": (everything, false),
            f"below {small_ml:g} ml": (
                [lesion for lesion in everything if lesion.volume_ml < small_ml],
                sum(volume < small_ml for one in found for volume in one.false),
            ),
            f"from {small_ml:g} ml": (
                [lesion for lesion in everything if lesion.volume_ml >= small_ml],
                sum(volume >= small_ml for one in found for volume in one.false),
            ),
        }
        for name, (there, wrong) in sizes.items():
            hits = sum(lesion.covered > 0 for lesion in there)
            rows.append((region, name, *_detection(hits, len(there) - hits, wrong)))
    header = ("region", "lesions", "there", "found", "false", "sensitivity", "precision", "F1")
    return ("By lesion: a part is found where any of it is predicted", header, tuple(rows))


def _detection(hits: int, misses: int, false: int) -> tuple[str, ...]:
    there = hits + misses
    return (
        str(there),
        str(hits),
        str(false),
        f"{hits / there:.3f}" if there else NONE,
        f"{hits / (hits + false):.3f}" if hits + false else NONE,
        f"{f1(hits, misses, false):.3f}",
    )


def _by_patient(measured: Sequence[Figures], regions: Sequence[str], min_overlap: float) -> tuple[Table, Table]:
    """Overlaps, and who was detected."""
    overlaps, detections = [], []
    for region in regions:
        own = patients(measured, region)
        there = [row for row in own if row.true_ml]
        hits = [row for row in there if row.both_ml > 0 and row.dice > min_overlap]
        false = sum(row.predicted_ml > 0 for row in own) - len(hits)
        parts = mean(len(row.found.false) for row in own)
        overlaps.append((region, spread(row.dice for row in own), spread(row.dice for row in hits)))
        detections.append((region, *_detection(len(hits), len(there) - len(hits), false), f"{parts:.2f}"))
    header = ("region", "with it", "detected", "false", "recall", "precision", "F1", "false parts each")
    title = f"By patient: detected with Dice above {min_overlap:g}"
    return (
        ("By patient: overlap", ("region", "Dice", "Dice of those detected"), tuple(overlaps)),
        (title, header, tuple(detections)),
    )


def patients(measured: Sequence[Figures], region: str) -> list[Figures]:
    """The figures of a region by patient: volumes and lesions of all the patient's cases together."""
    groups: dict[str, list[Figures]] = {}
    for row in measured:
        if row.region == region:
            groups.setdefault(row.patient, []).append(row)
    made = []
    for patient, rows in groups.items():
        both, ours, theirs = (
            sum(getattr(row, name) for row in rows) for name in ("both_ml", "predicted_ml", "true_ml")
        )
        there = tuple(lesion for row in rows for lesion in row.found.lesions)
        false = tuple(volume for row in rows for volume in row.found.false)
        overlap = 2 * both / (ours + theirs) if ours + theirs else 1.0
        distance = float(np.mean([row.hd95 for row in rows]))
        made.append(Figures(patient, patient, region, overlap, distance, both, ours, theirs, Found(there, false)))
    return made


def worst_cases(measured: Sequence[Figures], count: int) -> list[str]:
    """Names of cases, the lowest mean Dice first; those without anything true or predicted are left out."""
    overlaps: dict[str, list[float]] = {}
    for row in measured:
        if row.true_ml or row.predicted_ml:
            overlaps.setdefault(row.case, []).append(row.dice)
    return sorted(overlaps, key=lambda name: (mean(overlaps[name]), name))[:count]


def _worst(measured: Sequence[Figures], unit: str) -> Table:
    chosen = worst_cases(measured, 10)
    rows = [
        (row.case, row.region, f"{row.dice:.3f}", f"{row.hd95:.2f}", f"{row.true_ml:.2f}", f"{row.predicted_ml:.2f}")
        for name in chosen
        for row in measured
        if row.case == name
    ]
    header = ("case", "region", "Dice", f"HD95 ({unit})", "true ml", "predicted ml")
    return ("The worst cases", header, tuple(rows))


CASE_COLUMNS = (
    "case",
    "patient",
    "region",
    "dice",
    "hd95",
    "sensitivity",
    "precision",
    "true_ml",
    "predicted_ml",
    "lesions",
    "lesions_found",
    "false_parts",
)


def cases_csv(measured: Sequence[Figures]) -> str:
    """One line per case and region."""
    return _csv(
        CASE_COLUMNS,
        (
            (
                row.case,
                row.patient,
                row.region,
                *(
                    "" if math.isnan(value) else f"{value:.6g}"
                    for value in (row.dice, row.hd95, row.sensitivity, row.precision, row.true_ml, row.predicted_ml)
                ),
                len(row.found.lesions),
                sum(lesion.covered > 0 for lesion in row.found.lesions),
                len(row.found.false),
            )
            for row in measured
        ),
    )


def lesions_csv(measured: Sequence[Figures]) -> str:
    """One line per lesion, and per predicted part that is none."""
    rows: list[tuple[object, ...]] = []
    for row in measured:
        rows += [
            (row.case, row.region, "true", f"{lesion.volume_ml:.6g}", f"{lesion.covered:.4f}")
            for lesion in row.found.lesions
        ]
        rows += [(row.case, row.region, "false", f"{volume:.6g}", "") for volume in row.found.false]
    return _csv(("case", "region", "kind", "volume_ml", "covered"), rows)


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue()
