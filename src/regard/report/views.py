"""Pictures of masks: a section of an evaluation's page, and the page of one predicted volume."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regard.files import write_atomically
from regard.report import units
from regard.report.page import Page, Section, embedded, fragment, render_page
from regard.report.record import Fact, LegendEntry, TitledPicture

STYLES = ("compare.css", "training.css", "views.css")
_MOST = 60
_FOOTER = "Written by regard predict. This file is complete in itself and asks for nothing from the network."


@dataclass(frozen=True)
class _Table:
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[int] = frozenset()
    left: str = ""


@dataclass(frozen=True, kw_only=True)
class VolumeRecord:
    """What a prediction for one volume found.

    Args:
        title: the page's heading.
        command: the command that was run, as its words.
        pictures: titles and PNG files.
        legend: names and colours (red, green, blue; 0 to 255).
        header: of the table.
        rows: of the table.
        notes: sentences that the reader should know.
        facts: names and values for the settings.
    """

    title: str
    command: Sequence[str] = ()
    pictures: Sequence[TitledPicture] = ()
    legend: Sequence[LegendEntry] = ()
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()
    facts: Sequence[Fact] = ()


def views_section(
    pictures: Sequence[TitledPicture], legend: Sequence[LegendEntry], *, truth: bool, lead: str = ""
) -> Section:
    """The pictures under a legend.

    Args:
        pictures: titles and PNG files.
        legend: names and colours.
        truth: whether the true mask is drawn as an outline.
        lead: the sentence before them.
    """
    shown = [
        {
            "title": units.shorten(units.clean(title), 160),
            "source": embedded(png, "png"),
        }
        for title, png in pictures[:_MOST]
    ]
    entries: list[dict[str, Any]] = [
        {"name": units.shorten(units.clean(name), 60), "colour": "#{:02x}{:02x}{:02x}".format(*colour)}
        for name, colour in legend
    ]
    left = len(pictures) - _MOST
    lead += f" {left:,} more pictures are left out here." if left > 0 else ""
    body = fragment("views.html", pictures=shown, legend=entries, truth=truth)
    return Section("views", "Views", "Views", lead.strip(), body)


def volume_page(record: VolumeRecord) -> str:
    """Return the page of one predicted volume as one self-contained HTML document; every string is escaped."""
    lead = "Slices through most of what was predicted, over the intensities; the patient's right is at the left."
    table = _Table("Volumes", [_text(cell) for cell in record.header], [[*map(_text, row)] for row in record.rows])
    settings = [(_text(name), units.shorten(units.setting(value), 400)) for name, value in record.facts]
    sections = [
        views_section(record.pictures, record.legend, truth=False, lead=lead if len(record.pictures) > 1 else ""),
        Section("volumes", "Volumes", "Volumes", body=fragment("tables.html", tables=[table])),
        Section(
            "method",
            "How it was run",
            "Settings",
            body=fragment(
                "method.html",
                notes=["A mask is a prediction of a network. It is no diagnosis."],
                command=units.clean(shlex.join(map(str, record.command)), lines=True),
                groups=[("Settings", settings)],
            ),
        ),
    ]
    return render_page(
        Page(
            title=units.shorten(units.clean(record.title), 200) or "Prediction",
            name="regard predict",
            subtitle="",
            sections=sections,
            banners=[units.shorten(units.clean(note), 600) for note in record.notes],
            footer=_FOOTER,
            styles=STYLES,
            draws=False,
        )
    )


def write_volume_page(record: VolumeRecord, path: Path) -> None:
    """Write the page; the file is never half-written.

    Args:
        record: what was found.
        path: the HTML file; its folder must exist.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    write_atomically(path, volume_page(record))


def _text(value: object) -> str:
    return units.shorten(units.clean(str(value)), 80)
