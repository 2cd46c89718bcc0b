"""The page of `regard hardware`: what attention costs on accelerators, as one HTML file that opens offline."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from regard.files import write_atomically
from regard.report import units
from regard.report.hardware_charts import (
    growth_chart,
    positive,
    sizes_chart,
    styled,
    times_chart,
    words,
)
from regard.report.hardware_record import (
    GrowthLine,
    HardwareRecord,
    Roof,
    RoofPoint,
    SizePoint,
    SpeedUp,
    Timeline,
    TimelinePhase,
    TimePair,
)
from regard.report.hardware_roofline import machines_table, roofline_chart
from regard.report.hardware_speed import speed_up_chart
from regard.report.hardware_timeline import timeline_chart
from regard.report.page import Chart, Page, Section, fragment, render_page
from regard.report.training import Tile, listing

__all__ = [
    "GrowthLine",
    "HardwareRecord",
    "Roof",
    "RoofPoint",
    "SizePoint",
    "SpeedUp",
    "TimePair",
    "Timeline",
    "TimelinePhase",
    "hardware_page",
    "write_hardware_page",
]

_NAME = "regard hardware"
_STYLES = ("compare.css", "training.css")
_MOST_TILES = 6
_MOST_TABLES = 40
_DASH = "A dash stands for a figure that is not there; it is never a zero."


def hardware_page(record: HardwareRecord) -> str:
    """Return the page as one self-contained HTML document; every string is escaped.

    Args:
        record: what is known; a part without figures is left out.
    """
    sections = [
        *_summary(record),
        *_speed(record),
        *_timeline(record),
        *_sizes(record),
        *_machines(record),
        *_tables(record),
        _method(record),
    ]
    return render_page(
        Page(
            title=units.shorten(units.clean(record.title), 200) or "Attention on accelerators",
            name=_NAME,
            subtitle=units.shorten(units.clean(record.subtitle), 300),
            sections=sections,
            footer=f"Written by {_NAME}. This file is complete in itself and asks for nothing from the network.",
            styles=_STYLES,
            draws=any(chart.views for section in sections for chart in section.charts),
        )
    )


def write_hardware_page(record: HardwareRecord, path: Path) -> None:
    """Write the page; the file is never half-written.

    Args:
        record: what is known.
        path: the HTML file; its folder must exist.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    write_atomically(path, hardware_page(record))


def _summary(record: HardwareRecord) -> list[Section]:
    """Return a tile per design with its mean speed-up; no section where there is none."""
    looks = styled([record.yardstick, *(row.design for row in record.speed_ups)], record.yardstick)
    tiles = []
    for design, look in looks.items():
        own = [row for row in record.speed_ups if row.design == design != record.yardstick]
        attention = [found for row in own if (found := positive(row.attention))]
        if not attention:
            continue
        whole = [found for row in own if (found := positive(row.end_to_end))]
        span = f"{units.ratio(min(attention))} to {units.ratio(max(attention))} on {len(attention)} workloads"
        sentence = span if len(attention) > 1 else "on one workload"
        if whole:
            sentence += f"; end to end {units.ratio(fmean(whole))}"
        tiles.append(Tile(words(design), units.ratio(fmean(attention)), sentence, look))
    if not tiles:
        return []
    reference = words(record.yardstick) or "the yardstick"
    lead = f"Attention's speed-up over {reference}: the arithmetic mean over workloads, as FuseMax's paper has it."
    body = fragment("cards.html", cards=tiles[:_MOST_TILES], why="")
    return [Section("summary", "In short", "In short", lead, body)]


def _speed(record: HardwareRecord) -> list[Section]:
    if not record.speed_ups:
        return []
    return [Section("speed", "Speed", "Speed", charts=[speed_up_chart(record.speed_ups, record.yardstick)])]


def _timeline(record: HardwareRecord) -> list[Section]:
    if not record.timelines:
        return []
    lead = "Both arrays side by side: whatever is empty or hatched is time in which an array does nothing."
    return [Section("arrays", "Where the time goes", "Timeline", lead, charts=[timeline_chart(record.timelines)])]


def _sizes(record: HardwareRecord) -> list[Section]:
    charts: list[Chart] = [growth_chart(record.growth)] if record.growth else []
    charts += [sizes_chart(record.sizes)] if record.sizes else []
    return [Section("chip", "Room on the chip", "On the chip", charts=charts)] if charts else []


def _machines(record: HardwareRecord) -> list[Section]:
    charts: list[Chart] = []
    if record.roofs or record.roof_points:
        charts.append(roofline_chart(record.roofs, record.roof_points))
    charts += [times_chart(record.times)] if record.times else []
    if not charts:
        return []
    sections = [Section("machines", "Machines that exist", "Machines", charts=charts)]
    if record.roofs:
        body = fragment("tables.html", tables=[machines_table(record.roofs)])
        sections.append(Section("sources", "Where the machines' figures come from", "Sources", body=body))
    return sections


def _tables(record: HardwareRecord) -> list[Section]:
    if not record.tables:
        return []
    left = len(record.tables) - _MOST_TABLES
    lead = f"{left:,} more tables are left out here." if left > 0 else ""
    body = fragment("tables.html", tables=[listing(table) for table in record.tables[:_MOST_TABLES]])
    return [Section("tables", "Numbers", "Numbers", lead, body)]


def _method(record: HardwareRecord) -> Section:
    facts = [(words(name, 40), units.shorten(units.setting(value), 400)) for name, value in record.facts]
    notes: Sequence[str] = [*(units.shorten(units.clean(note), 600) for note in record.notes), _DASH]
    command = units.clean(shlex.join(map(str, record.command)), lines=True)
    body = fragment("method.html", notes=notes, command=command, groups=[("Settings", facts)])
    return Section("method", "How it was computed", "Method", body=body)
