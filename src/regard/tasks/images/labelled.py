"""Labelled images as they were found, before any is decoded; and the parts that they are split into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regard.errors import UserError
from regard.tasks.images.decoding import Pixels
from regard.wording import count_in_words, listed, shown

VALIDATION_SHARE = 5
"""One in so many images of a class validates."""
_SPLIT_SEED = 0

Labels = NDArray[np.int64]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Labelled:
    """Images with their classes.

    Args:
        images: files, or `(images, channels, y, x)` bytes.
        labels: `(images,)` numbers of classes.
        parts: "train", "validation" or "test" for each image; empty = all are in one place, to be split.
        classes: names by number.
        source: where they come from.
        root: the folder below which files are named.
        patients: whose image each is, where that is known: a patient's images stay in one part.
    """

    images: Sequence[Path] | Pixels
    labels: Labels
    parts: Sequence[str]
    classes: tuple[str, ...]
    source: str
    root: Path | None = None
    patients: Sequence[str] = ()

    @property
    def are_files(self) -> bool:
        """Whether there is still something to decode."""
        return not isinstance(self.images, np.ndarray)

    def name(self, number: int) -> str:
        """A file's name below the root."""
        path = self.images[number]
        assert isinstance(path, Path)
        return shown(path.relative_to(self.root) if self.root is not None else path, 120)


def held_out(labels: Labels, classes: int) -> NDArray[np.bool_]:
    """Which images validate: a fifth of every class, at least one, chosen by a fixed seed.

    Args:
        labels: `(images,)` numbers of classes.
        classes: how many there are.
    """
    random = np.random.default_rng(_SPLIT_SEED)
    validates = np.zeros(len(labels), dtype=bool)
    for number in range(classes):
        members = random.permutation(np.flatnonzero(labels == number))
        validates[members[: max(1, len(members) // VALIDATION_SHARE)]] = True
    return validates


def held_out_patients(labels: Labels, classes: int, patients: Sequence[str]) -> NDArray[np.bool_]:
    """As `held_out` for whole patients, who count as of the highest class among their images.

    Args:
        labels: `(images,)` numbers of classes.
        classes: how many there are.
        patients: whose image each is.
    """
    names, whose = np.unique(np.asarray(patients), return_inverse=True)
    highest = np.zeros(len(names), dtype=np.int64)
    np.maximum.at(highest, whose, labels)
    return held_out(highest, classes)[whose]


def split_parts(found: Labelled, good: Numbers) -> dict[str, Numbers]:
    """The images of "validation", "test" and "train"; a part may be empty.

    A test part does not choose among networks: where there is no validation part, it is taken from the training part.

    Args:
        found: the images.
        good: numbers of those that decode.
    """
    parts = np.array(found.parts if len(found.parts) else ["train"] * len(found.labels))[good].astype("<U10")
    if not (parts == "validation").any():
        trained = np.flatnonzero(parts == "train")
        labels, classes = found.labels[good][trained], len(found.classes)
        if len(found.patients):
            validates = held_out_patients(labels, classes, [found.patients[number] for number in good[trained]])
        else:
            validates = held_out(labels, classes)
        parts[trained[validates]] = "validation"
    return {part: good[parts == part] for part in ("validation", "test", "train")}


def check_counts(found: Labelled, bad: Mapping[int, str]) -> None:
    """Refuse a class of files with too few images to train on and to validate with.

    Args:
        found: the images.
        bad: why some do not decode, by number.

    Raises:
        UserError: names the class, and what did not decode.
    """
    needed = 1 if "validation" in found.parts else 2
    trains = np.array([part == "train" for part in found.parts] or [True] * len(found.labels), dtype=bool)
    trains[list(bad)] = False
    counts = np.bincount(found.labels[trains], minlength=len(found.classes))
    for number, name in enumerate(found.classes):
        if found.are_files and counts[number] < needed:
            undecodable = [found.name(index) for index in bad if found.labels[index] == number]
            why = f"; these do not decode: {listed(undecodable)}" if undecodable else ""
            purpose = "2 are needed (one to train, one to validate)" if needed == 2 else "1 is needed to train"
            raise UserError(
                f"class {name!r} in {found.source} has {count_in_words(int(counts[number]), 'image')}, and at least "
                f"{purpose}{why}"
            )
