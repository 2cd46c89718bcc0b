"""The page of a prediction for images: small pictures with the likeliest classes, and what could not be read."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from regard.files import write_atomically
from regard.report import units
from regard.report.page import Page, Section, embedded, fragment, render_page
from regard.report.palette import Style
from regard.report.record import Fact
from regard.report.series import number

_MOST_BAD = 1000
_MOST_COUNTS = 200
_STYLES = ("compare.css", "training.css", "contact_sheet.css")


@dataclass(frozen=True)
class Picture:
    """One image with its answers.

    Args:
        name: of its file.
        thumbnail: a small JPEG.
        answers: classes and probabilities, the likeliest first.
        overlay: a PNG of what the network looked at; empty where there is none.
    """

    name: str
    thumbnail: bytes
    answers: Sequence[tuple[str, float]]
    overlay: bytes = b""


@dataclass(frozen=True, kw_only=True)
class SheetRecord:
    """What a prediction for images found.

    Args:
        title: the page's heading.
        command: the command that was run, as its words.
        pictures: images with a prediction; some, where there are many.
        bad: files without a prediction, and why.
        total: number of images with a prediction.
        counts: how often each class was the answer.
        facts: names and values for the settings.
    """

    title: str
    command: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    bad: Sequence[tuple[str, str]] = ()
    total: int = 0
    counts: Sequence[tuple[str, int]] = ()
    facts: Sequence[Fact] = field(default=())


@dataclass(frozen=True)
class _Tile:
    question: str
    name: str
    sentence: str
    style: Style | None = None


def contact_sheet(record: SheetRecord) -> str:
    """Return the page as one self-contained HTML document; every string is escaped."""
    sections = [
        Section("summary", "In short", "In short", body=fragment("cards.html", cards=_tiles(record), why="")),
        _images(record),
        *_bad(record),
        _settings(record),
    ]
    return render_page(
        Page(
            title=units.shorten(units.clean(record.title), 200) or "Predictions",
            name="regard predict",
            subtitle=f"{units.whole(record.total)} images",
            sections=sections,
            footer="Written by regard predict. This file is complete in itself and asks for nothing from the network.",
            styles=_STYLES,
            draws=False,
        )
    )


def write_contact_sheet(record: SheetRecord, path: Path) -> None:
    """Write the page; the file is never half-written.

    Args:
        record: what was found.
        path: the HTML file; its folder must exist.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    write_atomically(path, contact_sheet(record))


def _tiles(record: SheetRecord) -> list[_Tile]:
    tiles = [
        _Tile("images", units.whole(record.total), "with a prediction"),
        _Tile("classes", units.whole(len(record.counts)), "that were the answer at least once"),
    ]
    if record.counts:
        name, count = record.counts[0]
        tiles.append(_Tile("most frequent", _short(name), f"the answer for {units.whole(count)}"))
    if record.bad:
        tiles.append(_Tile("skipped", units.whole(len(record.bad)), "files that could not be read"))
    return tiles


def _images(record: SheetRecord) -> Section:
    pictures = [
        {
            "name": units.shorten(units.clean(picture.name), 120),
            "source": embedded(picture.thumbnail, "jpeg"),
            "overlay": embedded(picture.overlay, "png") if picture.overlay else "",
            "answers": [_answer(name, share) for name, share in picture.answers],
        }
        for picture in record.pictures
    ]
    left = record.total - len(pictures)
    lead = "The likeliest classes of each image with their probabilities."
    if any(picture.overlay for picture in record.pictures):
        lead += " Beside some, what the network looked at: the redder, the more."
    if left > 0:
        lead += f" {units.whole(left)} more images are left out here; predictions.csv has all of them."
    return Section("images", "Images", "Images", lead, fragment("contact_sheet.html", pictures=pictures))


def _answer(name: str, share: float) -> dict[str, str]:
    found = number(share)
    width = 0.0 if found is None else min(1.0, max(0.0, found))
    return {"name": _short(name), "share": units.percent(found), "width": f"{100 * width:.1f}%"}


def _bad(record: SheetRecord) -> list[Section]:
    if not record.bad:
        return []
    rows = [(units.shorten(units.clean(name), 160), units.clean(why)) for name, why in record.bad[:_MOST_BAD]]
    left = len(record.bad) - _MOST_BAD
    note = f"{units.whole(left)} more are left out here; predictions.csv has all of them." if left > 0 else ""
    return [Section("skipped", "Skipped", "Skipped", body=fragment("skipped.html", rows=rows, left=note))]


def _settings(record: SheetRecord) -> Section:
    counts = [(_short(name), units.whole(count)) for name, count in record.counts[:_MOST_COUNTS]]
    chosen = [(_short(str(name)), units.shorten(units.setting(value), 400)) for name, value in record.facts]
    body = fragment(
        "method.html",
        notes=["A probability is the network's own softmax; how far it can be trusted, regard evaluate measures."],
        command=units.clean(shlex.join(map(str, record.command)), lines=True),
        groups=[("Answers", counts), ("Settings", chosen)],
    )
    return Section("method", "How it was run", "Settings", body=body)


def _short(text: str) -> str:
    return units.shorten(units.clean(text), 60)
