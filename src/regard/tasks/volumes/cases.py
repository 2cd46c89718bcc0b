"""Which files belong together: the layouts in which volumes and slices with masks are distributed.

- Medical Segmentation Decathlon: a `dataset.json` that lists images and labels, with the names of both;
- BraTS: a folder per case with `<case>_t1`, `_t1ce`, `_t2`, `_flair` and `_seg` as `.nii` or `.nii.gz`;
- TCGA LGG: a folder per patient with `<name>.tif` and `<name>_mask.tif` (PNG and other images too);
- folders `images` and `labels` (or `masks`) with files of the same names.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from regard.errors import UserError
from regard.tasks.volumes.reading import is_nifti, is_slice, stem
from regard.tasks.volumes.regions import BRATS, LARGEST_LABEL, Region
from regard.wording import shown

DATASET = "dataset.json"
MASK = "_mask"
LOOKED_AT = 5000
"""Files by which a layout is told."""
BRATS_CHANNELS = ("t1", "t1ce", "t2", "flair")
_BRATS_SUFFIX = re.compile(r"^(?P<case>.+)_(?P<channel>t1ce|t1|t2|flair|seg)$", re.IGNORECASE)
_SLICE_NUMBER = re.compile(r"_\d+$")


@dataclass(frozen=True)
class Case:
    """The files of one volume, or of one slice.

    Args:
        name: for tables and results.
        patient: whose it is; all cases of a patient fall into the same part.
        images: one file with all channels, or one per channel.
        mask: the labels; None where there are none.
    """

    name: str
    patient: str
    images: tuple[Path, ...]
    mask: Path | None


@dataclass(frozen=True)
class Found:
    """The cases of a folder.

    Args:
        cases: in the order of their names.
        source: where they come from.
        channels: names of the channels, where the layout says them.
        labels: names of the labels, where the layout says them; all others are refused.
        regions: the regions that the layout is scored by; empty = one per label.
        without_mask: names of cases that have images alone.
    """

    cases: tuple[Case, ...]
    source: str
    channels: tuple[str, ...] = ()
    labels: dict[int, str] = field(default_factory=dict)
    regions: tuple[Region, ...] = ()
    without_mask: tuple[str, ...] = ()


def find_cases(path: Path) -> Found:
    """The cases of a folder, or of the folder of a `dataset.json`.

    Raises:
        UserError: no such folder, no layout that is known, a missing modality, or a case that is there twice.
    """
    folder = path.parent if path.name == DATASET and path.is_file() else path
    if not folder.is_dir():
        raise UserError(f"there is no folder {shown(folder)}")
    found = next((found for find in (_decathlon, _brats, _paired_folders, _slices) if (found := find(folder))), None)
    if found is None:
        raise UserError(
            f"{shown(folder)} has no volumes or slices with masks that are known: a dataset.json (Medical Decathlon), "
            "folders of <case>_t1/_t1ce/_t2/_flair/_seg.nii.gz (BraTS), <slice>.tif with <slice>_mask.tif (TCGA LGG), "
            "or folders images and labels with files of the same names"
        )
    names = [case.name for case in found.cases]
    twice = (
        next((name for number, name in enumerate(names) if name in names[:number]), None) if _repeats(names) else None
    )
    if twice is not None:
        raise UserError(f"{shown(folder)} has two cases with the name {shown(twice)}")
    if not found.cases:
        raise UserError(f"{shown(folder)} has no case with a mask")
    return found


def layout_of(folder: Path) -> bool:
    """Whether a folder looks like volumes or slices with masks, by its first files."""
    if (folder / DATASET).is_file() or _paired(folder) is not None:
        return True
    for path in islice(_walk(folder), LOOKED_AT):
        if brats_case_of(path) is not None or (_usable(path) and stem(path).endswith(MASK)):
            return True
    return False


def _repeats(names: list[str]) -> bool:
    return len(set(names)) < len(names)


# --------------------------------------------------------------------------------------------------- decathlon


def _decathlon(folder: Path) -> Found | None:
    path = folder / DATASET
    if not path.is_file():
        return None
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        listed = described["training"]
        labels = {int(number): str(name) for number, name in dict(described.get("labels", {})).items()}
        channels = dict(described.get("modality", {}))
        names = tuple(str(channels[number]) for number in sorted(channels, key=int))
        cases = [_decathlon_case(folder, entry) for entry in listed]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{shown(path)} is no list of a Medical Decathlon task: {shown(str(error))}") from None
    if any(not 0 <= number <= LARGEST_LABEL for number in labels):
        raise UserError(f"{shown(path)} has labels outside 0 to {LARGEST_LABEL}")
    regions = tuple(Region.from_plain(region) for region in described.get("regions", ()))
    return Found(tuple(cases), shown(folder), names, labels, regions)


def _decathlon_case(folder: Path, entry: Any) -> Case:
    image, mask = (_inside(folder, str(entry[name])) for name in ("image", "label"))
    return Case(stem(image), str(entry.get("patient", stem(image))), (image,), mask)


def _inside(folder: Path, name: str) -> Path:
    """A file that a list names, which must lie in its folder."""
    path = folder / name
    if folder.resolve() not in path.resolve().parents:
        raise ValueError(f"{name} lies outside the folder")
    return path


# --------------------------------------------------------------------------------------------------- BraTS


def _brats(folder: Path) -> Found | None:
    groups: dict[Path, list[Path]] = {}
    for path in _files(folder, is_nifti):
        groups.setdefault(path.parent, []).append(path)
    cases, without = [], []
    for place, files in sorted(groups.items()):
        by_case: dict[str, dict[str, Path]] = {}
        for path in files:
            match = _BRATS_SUFFIX.match(stem(path))
            if match:
                by_case.setdefault(match["case"], {})[match["channel"].lower()] = path
        for name, found in sorted(by_case.items()):
            if not set(found) & set(BRATS_CHANNELS):
                continue
            mask = found.get("seg") or _irregular_mask(files, by_case)
            refuse_missing(place, name, found)
            if mask is None:
                without.append(name)
                continue
            cases.append(Case(name, name, tuple(found[channel] for channel in BRATS_CHANNELS), mask))
    if not cases and not without:
        return None
    return Found(tuple(cases), shown(folder), BRATS_CHANNELS, {}, BRATS, tuple(without))


def _irregular_mask(files: list[Path], by_case: dict[str, dict[str, Path]]) -> Path | None:
    """The one file beside the modalities of the folder's only case: one mask of BraTS 2020 is named so."""
    others = [path for path in files if not _BRATS_SUFFIX.match(stem(path))]
    return others[0] if len(by_case) == 1 and len(others) == 1 else None


def brats_case_of(path: Path) -> tuple[str, str] | None:
    """The case and the modality that a file's name tells, where it is named as in BraTS."""
    match = _BRATS_SUFFIX.match(stem(path)) if is_nifti(path) else None
    if match is None or match["channel"].lower() not in BRATS_CHANNELS:
        return None
    return match["case"], match["channel"].lower()


def brats_images(folder: Path) -> tuple[Path, ...] | None:
    """The four modalities of a folder with a single case, or None where it is none.

    Raises:
        UserError: one is missing.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        part = brats_case_of(path)
        if part is not None:
            found[part[1]] = path
    if not found:
        return None
    refuse_missing(folder, folder.name, found)
    return tuple(found[channel] for channel in BRATS_CHANNELS)


def refuse_missing(place: Path, name: str, found: dict[str, Path]) -> None:
    """Refuse a case of BraTS without all four modalities.

    Raises:
        UserError: the case and what it lacks are named.
    """
    missing = [channel for channel in BRATS_CHANNELS if channel not in found]
    if missing:
        raise UserError(f"{shown(place)}: the case {shown(name)} lacks the modality {', '.join(missing)}")


# --------------------------------------------------------------------------------------------------- other layouts


def _paired(folder: Path) -> tuple[Path, Path] | None:
    images = next((folder / name for name in ("images", "imagesTr") if (folder / name).is_dir()), None)
    masks = next((folder / name for name in ("labels", "labelsTr", "masks") if (folder / name).is_dir()), None)
    return None if images is None or masks is None else (images, masks)


def _paired_folders(folder: Path) -> Found | None:
    pair = _paired(folder)
    if pair is None:
        return None
    images, masks = pair
    by_stem = {stem(path): path for path in _files(masks, _usable)}
    cases, without = [], []
    for path in _files(images, _usable):
        name = str(path.relative_to(images).with_name(stem(path)))
        mask = by_stem.get(stem(path)) or by_stem.get(stem(path) + MASK)
        if mask is None:
            without.append(name)
        else:
            cases.append(Case(name, _patient(path, images), (path,), mask))
    return Found(tuple(cases), shown(folder), without_mask=tuple(without)) if cases or without else None


def _slices(folder: Path) -> Found | None:
    files = _files(folder, _usable)
    masks = {(path.parent, stem(path).removesuffix(MASK)): path for path in files if stem(path).endswith(MASK)}
    if not masks:
        return None
    cases, without = [], []
    for path in files:
        if stem(path).endswith(MASK):
            continue
        name = str(path.relative_to(folder).with_name(stem(path)))
        mask = masks.get((path.parent, stem(path)))
        if mask is None:
            without.append(name)
        else:
            cases.append(Case(name, _patient(path, folder), (path,), mask))
    if not cases:
        return None
    cases.sort(key=lambda case: _natural(case.name))
    return Found(tuple(cases), shown(folder), without_mask=tuple(without))


def _patient(path: Path, folder: Path) -> str:
    """A slice's patient is its folder, or where all lie together its name without the number of the slice."""
    if path.parent != folder:
        return str(path.parent.relative_to(folder))
    return _SLICE_NUMBER.sub("", stem(path)) if is_slice(path) else stem(path)


def _natural(name: str) -> list[Any]:
    """Numbers in names sort by their value."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _usable(path: Path) -> bool:
    return is_nifti(path) or is_slice(path)


def _files(folder: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    return [path for path in _walk(folder) if wanted(path)]


def _walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, in the order of their names."""

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read {shown(error.filename)}: {error.strerror}")

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


def fold_of(patients: Iterable[str], folds: int) -> dict[str, int]:
    """The fold in which each patient validates: patients in an order that a fixed seed shuffles, dealt out in turn.

    Args:
        patients: names; each counts once.
        folds: how many.
    """
    import numpy as np

    names = sorted(set(patients))
    order = np.random.default_rng(0).permutation(len(names))
    return {names[index]: place % folds for place, index in enumerate(order.tolist())}
