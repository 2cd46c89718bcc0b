"""Predictions for image files: a line each in a CSV file, small pictures for a page, and what could not be read."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from regard.errors import UserError
from regard.tasks.images.decoding import BadImageError, Pixels, tolerant
from regard.tasks.images.scores import TOP
from regard.tasks.images.store import View
from regard.tasks.task import Sheet, Shown
from regard.wording import shown

ROWS = 64
MOST_SHOWN = 1000
THUMBNAIL = 128
"""Pixels on the longer side of a picture on the page."""

Answers = tuple[tuple[str, float], ...]


class Predictions:
    """The answers for a number of files.

    Args:
        classes: names by number.
        view: what images are made into.
        channels: of the network's images.
        refuse: whether a bad image ends it.
    """

    def __init__(self, classes: Sequence[str], view: View, channels: int, *, refuse: bool) -> None:
        self.classes, self.view, self.channels, self.refuse = classes, view, channels, refuse
        self.top = min(TOP, len(classes))
        self.answers: dict[Path, Answers] = {}
        self.bad: dict[Path, str] = {}
        self._pictures: dict[Path, bytes] = {}

    def run(self, files: Sequence[Path], scores_of: Callable[[Pixels], Tensor]) -> None:
        """Decode all files and ask the network.

        Args:
            files: in the order in which they are told.
            scores_of: `(images, classes)` scores for `(images, channels, size, size)` bytes.

        Raises:
            UserError: a bad image, where that is refused, or no good one.
        """
        for paths, pixels in self._decoded(list(dict.fromkeys(files))):
            probabilities, answers = scores_of(pixels).softmax(dim=1).topk(self.top, dim=1)
            for path, shares, numbers in zip(paths, probabilities.tolist(), answers.tolist(), strict=True):
                names = (self.classes[number] for number in numbers)
                self.answers[path] = tuple(zip(names, shares, strict=True))
        if not self.answers:
            path, why = next(iter(self.bad.items()))
            more = f"; nor does any of the {len(self.bad) - 1:,} others" if len(self.bad) > 1 else ""
            raise UserError(f"{shown(path)} {why}{more}")

    def _decoded(self, files: Sequence[Path]) -> Iterator[tuple[list[Path], Pixels]]:
        with tolerant():
            for first in range(0, len(files), ROWS):
                paths, squares = [], []
                for path in files[first : first + ROWS]:
                    try:
                        copy = self.view.copy(path)
                    except BadImageError as error:
                        if self.refuse:
                            raise UserError(f"{shown(path)} {error}") from None
                        self.bad[path] = str(error)
                        continue
                    paths.append(path)
                    squares.append(self.view.square(copy, self.channels))
                    if len(self._pictures) < MOST_SHOWN:
                        self._pictures[path] = _thumbnail(copy)
                if paths:
                    yield paths, np.stack(squares)

    def csv_text(self) -> str:
        """A line per file: the likeliest class and its probability, the next ones, and why there is none."""
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        further = [name for place in range(2, self.top + 1) for name in (f"class_{place}", f"probability_{place}")]
        writer.writerow(["file", "class", "probability", *further, "problem"])
        for path, answers in self.answers.items():
            cells = [cell for name, share in answers for cell in (name, f"{share:.4f}")]
            writer.writerow([_text(path), *cells, ""])
        for path, why in self.bad.items():
            writer.writerow([_text(path), *[""] * (2 * self.top), why])
        return table.getvalue()

    def sheet(self, overlays: Mapping[Path, bytes]) -> Sheet:
        """What the page shows.

        Args:
            overlays: PNG files of what the network looked at, by input; of some or none.
        """
        counts = Counter(answers[0][0] for answers in self.answers.values())
        return Sheet(
            inputs=tuple(
                Shown(shown(path), picture, self.answers[path], overlays.get(path, b""))
                for path, picture in self._pictures.items()
            ),
            bad=tuple((shown(path), why) for path, why in self.bad.items()),
            total=len(self.answers),
            counts=tuple(counts.most_common()),
        )


def _text(path: Path) -> str:
    """A file's name; one that is not UTF-8 must not keep the table from being written."""
    return os.fsencode(path).decode("utf-8", errors="replace")


def _thumbnail(copy: Image.Image) -> bytes:
    """A small JPEG; an image with a side of hardly any pixels is stretched until it can be seen."""
    factor = THUMBNAIL / max(copy.size)
    width, height = (max(4, round(length * factor)) for length in copy.size)
    way = Image.Resampling.NEAREST if factor > 2 else Image.Resampling.BILINEAR
    stream = io.BytesIO()
    copy.resize((width, height), way).save(stream, "JPEG", quality=80)
    return stream.getvalue()
