"""Which task the user's data are for, from their names and first lines. No torch."""

from __future__ import annotations

import csv
from pathlib import Path

from regard.errors import UserError
from regard.wording import shown

IMAGE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm")
)


def kind_of(path: Path) -> str:
    """The name of the task that the data at `path` look made for.

    Raises:
        UserError: there is nothing at `path`.
    """
    if not path.exists():
        raise UserError(f"there is no file or folder {shown(path)}")
    if path.is_dir():
        return _kind_of_folder(path)
    if path.name == "dataset.json":
        return "segmentation"
    suffixes = path.suffixes or [""]
    if suffixes[-1] == ".ts":
        return "series_classification"
    if suffixes[-1] == ".npz":
        return "control"
    if suffixes[-1] == ".csv":
        return _kind_of_table(path)
    return "language"


def _kind_of_folder(folder: Path) -> str:
    from regard.tasks.volumes.cases import layout_of

    if layout_of(folder):
        return "segmentation"
    if (folder / "stage_2_train_labels.csv").is_file() or _has_covidx_list(folder):
        return "medical_classification"
    files = [file for file in sorted(folder.iterdir()) if not file.name.startswith(".")]
    if any(file.suffix == ".ts" for file in files):
        return "series_classification"
    names = {file.name.removesuffix(".gz") for file in files if file.is_file()}
    stems: dict[str, set[str]] = {}
    for name in names:
        stem, _, language = name.rpartition(".")
        if stem and len(language) == 2 and language.isalpha():
            stems.setdefault(stem, set()).add(language)
    if any(len(languages) > 1 for languages in stems.values()):
        return "translation"
    if any("idx" in name and "ubyte" in name for name in names) or _has_class_folders(folder):
        return "classification"
    return "language"


def _has_covidx_list(folder: Path) -> bool:
    """Whether a list's first line is "patient filename class ..." with the name of an image."""
    for name in ("train.txt", "test.txt"):
        try:
            with (folder / name).open(encoding="utf-8-sig") as stream:
                fields = stream.readline(4096).split()
        except (OSError, UnicodeDecodeError):
            continue
        if len(fields) >= 3 and any(Path(part).suffix.lower() in IMAGE_SUFFIXES | {".dcm"} for part in fields[1:-1]):
            return True
    return False


def _has_class_folders(folder: Path) -> bool:
    for inner in sorted(folder.iterdir()):
        if inner.is_dir() and any(
            file.suffix.lower() in IMAGE_SUFFIXES for file in (*inner.iterdir(), *inner.glob("*/*"))
        ):
            return True
    return False


def _kind_of_table(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            header = {name.strip().lower() for name in next(csv.reader(stream), [])}
    except (OSError, UnicodeDecodeError, csv.Error):
        return "forecasting"
    if {"time", "mark"} <= header:
        return "events"
    if header & {"label", "class"} and header & {"series", "series_id"}:
        return "series_classification"
    return "forecasting"
