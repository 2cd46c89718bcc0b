"""Image folders: a sub-folder per class, or folders for training, validation and test with such sub-folders inside."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path

import numpy as np

from regard.errors import UserError
from regard.tasks.data_kind import IMAGE_SUFFIXES
from regard.tasks.images.labelled import Labelled
from regard.wording import shown

PARTS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
"""The part that a folder of this name holds, where one of them holds the training part."""


def labelled_files(folder: Path, *, fewest: int = 2) -> Labelled:
    """The files of a folder, with their classes and parts.

    Raises:
        UserError: it cannot be read, or has fewer than two classes.
    """
    names = _folders_in(folder)
    parts = {name: PARTS.get(name.lower(), "") for name in names}
    if "train" in parts.values() and all(parts.values()):
        return _in_parts(folder, parts)
    files = files_by_class(folder, fewest=fewest)
    return _labelled(folder, list(files), [("", name, path) for name, paths in files.items() for path in paths])


def files_by_class(folder: Path, *, fewest: int = 2) -> dict[str, list[Path]]:
    """The files below every sub-folder, which is a class.

    Raises:
        UserError: it cannot be read, or has fewer than two sub-folders.
    """
    names = _folders_in(folder)
    if len(names) < fewest:
        found = f"only {shown(names[0], 80)!r}" if names else "no sub-folder"
        raise UserError(f"{shown(folder)} has {found}: at least two classes are needed, one sub-folder each")
    return {name: _regular_files(folder / name) for name in names}


def _in_parts(folder: Path, parts: dict[str, str]) -> Labelled:
    found: list[tuple[str, str, Path]] = []
    for name, part in parts.items():
        classes = files_by_class(folder / name, fewest=2 if part == "train" else 1)
        found += [(part, label, path) for label, paths in classes.items() for path in paths]
    classes_of = {part: sorted({label for other, label, _ in found if other == part}) for part in parts.values()}
    for part, labels in classes_of.items():
        unknown = sorted(set(labels) - set(classes_of["train"]))
        if unknown:
            raise UserError(f"{shown(folder)} has no training images of {shown(unknown[0], 80)!r}, but some for {part}")
    return _labelled(folder, classes_of["train"], found)


def _labelled(folder: Path, classes: list[str], found: list[tuple[str, str, Path]]) -> Labelled:
    number = {name: index for index, name in enumerate(classes)}
    return Labelled(
        images=[path for _, _, path in found],
        labels=np.array([number[name] for _, name, _ in found], dtype=np.int64),
        parts=[part for part, _, _ in found] if any(part for part, _, _ in found) else (),
        classes=tuple(shown(name, 80) for name in classes),
        source=shown(folder),
        root=folder,
    )


def _folders_in(folder: Path) -> list[str]:
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise UserError(f"{shown(folder)} is not a folder: images come as one sub-folder per class")
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except FileNotFoundError:
        raise UserError(f"there is no folder {shown(folder)}") from None
    except OSError as error:
        raise UserError(f"cannot read {shown(folder)}: {error.strerror}") from None


def _regular_files(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read {shown(error.filename)}: {error.strerror}")

    found = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place, name) for name in sorted(names) if not name.startswith(".")]
    return [path for path in found if path.is_file()]


def images_below(path: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[Path]:
    """A file as it is; of a folder, what is named like an image.

    Args:
        path: a file or a folder.
        suffixes: how names of images end, in lower case.

    Raises:
        UserError: a folder without any.
    """
    if not path.is_dir():
        return [path]
    files = (file for file in path.rglob("*") if file.suffix.lower() in suffixes)
    found = sorted(file for file in files if file.is_file() and not file.name.startswith("."))
    if not found:
        raise UserError(f"{shown(path)} has no images in it")
    return found
