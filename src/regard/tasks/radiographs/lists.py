"""Radiographs that lists name: COVIDx's text files, and the labels of the RSNA Pneumonia Challenge.

COVIDx: a folder with `train.txt`, and `test.txt` and `val.txt` where there are such; a line says "patient filename
class source". Images lie in `train/`, `test/` and `val/`, or beside the lists.
RSNA: a folder with `stage_2_train_labels.csv` (a row per box, so several per patient; 1 in the column Target =
pneumonia) and images named by patient in `stage_2_train_images/`; `stage_2_detailed_class_info.csv` has three classes.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path, PurePath

import numpy as np

from regard.errors import UserError
from regard.tasks.images.labelled import Labelled
from regard.wording import shown

LISTS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
"""The part that a COVIDx list of this name holds."""
IN_FRONT = ("negative", "normal", "pneumonia", "positive", "COVID-19")
"""Classes that come first, in this order, so that the finding that is looked for is the last."""
RSNA_LABELS, RSNA_IMAGES = "stage_2_train_labels.csv", "stage_2_train_images"
RSNA_DETAILS = "stage_2_detailed_class_info.csv"
RSNA_DETAILED = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
RSNA_CLASSES = ("no pneumonia", "pneumonia")
_SUFFIXES = (".dcm", ".png", ".jpg", ".jpeg")


def covidx_lists(folder: Path) -> dict[str, Path]:
    """The COVIDx lists of a folder, by part."""
    found = {part: folder / f"{name}.txt" for name, part in LISTS.items() if (folder / f"{name}.txt").is_file()}
    return {part: found[part] for part in ("train", "validation", "test") if part in found}


def read_covidx(folder: Path, lists: dict[str, Path]) -> Labelled:
    """The images that COVIDx lists name; those that are not there are told when they are decoded.

    Raises:
        UserError: a line that is none of a list, named; or no line at all.
    """
    rows = [(part, *row) for part, path in lists.items() for row in _lines(path)]
    if not rows:
        raise UserError(f"{shown(folder)}: {', '.join(path.name for path in lists.values())} name no image")
    known = {name.lower(): place for place, name in enumerate(IN_FRONT)}
    classes = sorted({label for *_, label in rows}, key=lambda name: (known.get(name.lower(), len(known)), name))
    number = {name: index for index, name in enumerate(classes)}
    return Labelled(
        images=[_place(folder, lists[part], name) for part, _, name, _ in rows],
        labels=np.array([number[label] for *_, label in rows], dtype=np.int64),
        parts=[part for part, *_ in rows],
        classes=tuple(shown(name, 80) for name in classes),
        source=shown(folder),
        root=folder,
        patients=[patient for _, patient, *_ in rows],
    )


def _lines(path: Path) -> Iterator[tuple[str, str, str]]:
    """Patient, file name and class of every line that is not empty."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {shown(path)}: {shown(str(error), 120)}") from None
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) < 3:
            raise UserError(
                f"{shown(path)}, line {number}: a line is 'patient filename class source', got {shown(line, 80)!r}"
            )
        # a file's name may have spaces; the source may be missing
        name, label = (fields[1], fields[2]) if len(fields) == 3 else (" ".join(fields[1:-2]), fields[-2])
        pure = PurePath(name)
        if pure.is_absolute() or ".." in pure.parts:
            raise UserError(f"{shown(path)}, line {number}: {shown(name, 80)} lies outside of the folder")
        yield fields[0], name, label


def _place(folder: Path, path: Path, name: str) -> Path:
    """Where a listed image lies: in a folder named as its list, or beside the list."""
    inner = folder / path.stem / name
    return inner if inner.is_file() or not (folder / name).is_file() else folder / name


def read_rsna(folder: Path, *, detailed: bool = False) -> Labelled:
    """The images of the RSNA Pneumonia Challenge's training part, one per patient.

    Args:
        folder: with the challenge's tables.
        detailed: the three classes of the detailed table, instead of whether there is pneumonia.

    Raises:
        UserError: a table that lacks its columns, a row without a class, or no row.
    """
    found = _detailed(folder / RSNA_DETAILS) if detailed else _targets(folder / RSNA_LABELS)
    if not found:
        raise UserError(f"{shown(folder / (RSNA_DETAILS if detailed else RSNA_LABELS))} names no patient")
    return Labelled(
        images=[_image_of(folder / RSNA_IMAGES, patient) for patient in found],
        labels=np.array(list(found.values()), dtype=np.int64),
        parts=(),
        classes=RSNA_DETAILED if detailed else RSNA_CLASSES,
        source=shown(folder),
        root=folder,
        patients=list(found),
    )


def _targets(path: Path) -> dict[str, int]:
    """1 for patients of whom a row says so."""
    found: dict[str, int] = {}
    for line, patient, target in _table(path, "Target"):
        if target not in ("0", "1"):
            raise UserError(f"{shown(path)}, line {line}: Target must be 0 or 1, got {shown(target, 80)!r}")
        found[patient] = max(int(target), found.get(patient, 0))
    return found


def _detailed(path: Path) -> dict[str, int]:
    """The number of each patient's class, the same in all of the patient's rows."""
    found: dict[str, int] = {}
    for line, patient, name in _table(path, "class"):
        if name not in RSNA_DETAILED:
            known = ", ".join(RSNA_DETAILED)
            raise UserError(f"{shown(path)}, line {line}: class must be one of {known}, got {shown(name, 80)!r}")
        number = RSNA_DETAILED.index(name)
        if found.setdefault(patient, number) != number:
            raise UserError(f"{shown(path)}, line {line}: {shown(patient, 80)} has two classes")
    return found


def _table(path: Path, column: str) -> Iterator[tuple[int, str, str]]:
    """Line, patient and a column of every row."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream)
            missing = {"patientId", column} - set(rows.fieldnames or ())
            if missing:
                raise UserError(f"{shown(path)} has no column {', '.join(sorted(missing))}")
            for row in rows:
                patient = str(row["patientId"])
                if PurePath(patient).name != patient:
                    raise UserError(
                        f"{shown(path)}, line {rows.line_num}: the patient must be a name, got {shown(patient, 80)!r}"
                    )
                yield rows.line_num, patient, str(row[column])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {shown(path)}: {shown(str(error), 120)}") from None


def _image_of(folder: Path, patient: str) -> Path:
    files = (folder / f"{patient}{suffix}" for suffix in _SUFFIXES)
    return next((file for file in files if file.is_file()), folder / f"{patient}.dcm")
