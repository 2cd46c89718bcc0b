"""The report of a training run, and the page of an evaluation or a prediction: one HTML file each, opening offline."""

from __future__ import annotations

import numbers
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from regard.files import write_atomically
from regard.report import units
from regard.report.curves import line_chart, loss_chart, metric_value, metric_words, rate_chart, validation_chart
from regard.report.heat_maps import heat_map
from regard.report.page import Page, Section, fragment, render_page
from regard.report.palette import Style
from regard.report.record import EvaluationRecord, Grid, TrainingRecord
from regard.report.series import number
from regard.report.views import views_section

_STYLES = ("compare.css", "training.css", "views.css")
_MOST_SAMPLES = 100
_MOST_TABLES = 40
_MOST_CHARTS = 24
_MOST_ROWS = 1000
_MOST_COLUMNS = 200
_MOST_NOTES = 20
_CELL = 2000
_SIGNS = "+-\u2212\u00b1<\u2264\u2265~ "


@dataclass(frozen=True)
class Tile:
    """A headline figure.

    Args:
        question: what it is.
        name: the figure, formatted.
        sentence: where it comes from.
        style: none; a figure has no colour of its own.
    """

    question: str
    name: str
    sentence: str
    style: Style | None = None


@dataclass(frozen=True)
class Listing:
    """A table of any content, as the page shows it.

    Args:
        title: its heading.
        header: one heading per column.
        rows: as many cells each as there are headings.
        words: the columns that hold text and not figures.
        left: what was left out, if anything.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[int]
    left: str = ""


def training_page(record: TrainingRecord) -> str:
    """Return the report of a training run as one self-contained HTML document.

    Whatever the record lacks is left out or shown as a dash; values that are not finite are gaps in the curves, and
    long runs are thinned with their peaks and gaps kept.
    """
    curves = [loss_chart(record), validation_chart(record), rate_chart(record)]
    headline = [*_best_tile(record), *_size_tiles(record), *_time_tiles(record)]
    sections = [
        Section("summary", "In short", "In short", body=fragment("cards.html", cards=headline, why="")),
        Section("learning", "Learning", "Learning", _how_it_went(record), charts=curves),
        *_ingredients(record),
        _settings(record, _training_notes(record)),
    ]
    return _page(record, "regard train", sections)


def write_training_report(record: TrainingRecord, path: Path) -> None:
    """Write the report of a training run; the file is never half-written.

    Args:
        record: the run.
        path: the HTML file; its folder must exist.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    write_atomically(path, training_page(record))


def evaluation_page(record: EvaluationRecord, *, kind: Literal["evaluate", "predict"] = "evaluate") -> str:
    """Return the page of an evaluation or a prediction as one self-contained HTML document.

    Args:
        record: what was found.
        kind: the command that the page speaks for.
    """
    headline = [*_final_tiles(record), *_size_tiles(record), *_throughput_tiles(record)]
    sections = [
        Section(
            "summary", "In short", "In short", body=fragment("cards.html", cards=headline, why="No figure was given.")
        ),
        *_ingredients(record),
        _settings(record, [_GAPS]),
    ]
    return _page(record, f"regard {kind}", sections)


def write_evaluation_page(
    record: EvaluationRecord, path: Path, *, kind: Literal["evaluate", "predict"] = "evaluate"
) -> None:
    """Write the page of an evaluation or a prediction; the file is never half-written.

    Args:
        record: what was found.
        path: the HTML file; its folder must exist.
        kind: the command that the page speaks for.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    write_atomically(path, evaluation_page(record, kind=kind))


_GAPS = "A dash stands for a figure that was not measured or was not finite; it is never a zero."


def _page(record: EvaluationRecord, name: str, sections: Sequence[Section]) -> str:
    notes = [units.shorten(units.clean(note), 600) for note in record.notes]
    left = len(notes) - _MOST_NOTES
    banners = notes[:_MOST_NOTES] + ([f"{left:,} more warnings are left out."] if left > 0 else [])
    return render_page(
        Page(
            title=units.shorten(units.clean(record.title), 200) or name,
            name=name,
            subtitle=units.shorten(units.clean(record.data), 300),
            sections=sections,
            banners=banners,
            footer=f"Written by {name}. This file is complete in itself and asks for nothing from the network.",
            styles=_STYLES,
        )
    )


def _best_tile(record: TrainingRecord) -> list[Tile]:
    name, best = metric_words(record.metric), number(record.best_step)
    at_best = [figures for step, figures in record.evaluations if best is not None and number(step) == best]
    value = at_best[-1].get(record.metric) if at_best else None
    if number(value) is None:
        value = record.final.get("validation", {}).get(record.metric)
    if number(value) is None:
        sentence = "no finite figure" if record.evaluations or record.final else "not evaluated"
    elif best is None:
        sentence = f"{record.better} is better"
    else:
        sentence = f"best, at step {units.whole(best)}; {record.better} is better"
    tiles = [Tile(f"validation {name}", metric_value(record.metric, value), sentence)]
    test = record.final.get("test", {}).get(record.metric)
    if number(test) is not None:
        tiles.append(Tile(f"test {name}", metric_value(record.metric, test), "with the weights that were kept"))
    return tiles


def _final_tiles(record: EvaluationRecord) -> list[Tile]:
    name = metric_words(record.metric)
    return [
        Tile(
            f"{_short(part)} {name}", metric_value(record.metric, figures[record.metric]), f"{record.better} is better"
        )
        for part, figures in list(record.final.items())[:4]
        if record.metric in figures
    ]


def _size_tiles(record: EvaluationRecord) -> list[Tile]:
    found = number(record.parameters)
    return [] if found is None else [Tile("parameters", units.count(found), f"{units.whole(found)} exactly")]


def _time_tiles(record: TrainingRecord) -> list[Tile]:
    steps = [found for step in record.steps if (found := number(step)) is not None]
    last = max(steps, default=None)
    rate = number(record.items_per_s)
    share = number(record.data_share)
    per_second = "" if rate is None else f"{units.count(rate)} {_short(record.items)} per second"
    return [
        Tile("steps", units.whole(last), units.shorten(units.clean(record.stopped), 80)),
        Tile("time per step", units.seconds(number(record.seconds_per_step)), per_second),
        Tile("waiting for data", units.percent(share), "of each step's time" if share is not None else "not measured"),
    ]


def _throughput_tiles(record: EvaluationRecord) -> list[Tile]:
    rate = number(record.items_per_s)
    return [] if rate is None else [Tile(f"{_short(record.items)} per second", units.count(rate), "")]


def _short(text: object) -> str:
    return units.shorten(units.clean(text), 40)


def _how_it_went(record: TrainingRecord) -> str:
    stopped = units.shorten(units.clean(record.stopped).strip(), 300)
    words = f"Ended: {stopped.rstrip('.')}." if stopped else ""
    resumed = [units.whole(place) for step in record.resumed_from if (place := number(step)) is not None]
    if resumed:
        shown = ", ".join(resumed[:10]) + (f" and {len(resumed) - 10} more" if len(resumed) > 10 else "")
        words += f" Resumed from step{'s' if len(resumed) > 1 else ''} {shown}."
    return words.strip()


def _training_notes(record: TrainingRecord) -> list[str]:
    notes = [_GAPS]
    if (best := number(record.best_step)) is not None:
        notes.append(
            f"The weights that were kept are those of step {units.whole(best)}, with the best validation "
            f"{metric_words(record.metric)} ({record.better} is better)."
        )
    if number(record.data_share) is not None:
        notes.append("Waiting for data is the part of a step's time in which the network has nothing to work on.")
    return notes


def _ingredients(record: EvaluationRecord) -> list[Section]:
    """Return the sections that a training run and an evaluation share; one without content is left out."""
    sections = []
    tables = [*_final_table(record), *(listing(table) for table in record.tables[:_MOST_TABLES])]
    if tables:
        lead = _left_out(len(record.tables) - _MOST_TABLES, "tables")
        body = fragment("tables.html", tables=tables)
        sections.append(Section("results", "Results", "Results", lead, body))
    if record.charts or record.heat_maps:
        charts = [line_chart(chart, f"chart-{i}") for i, chart in enumerate(record.charts[:_MOST_CHARTS])]
        charts += [heat_map(found, f"heat-map-{i}") for i, found in enumerate(record.heat_maps[:_MOST_CHARTS])]
        lead = _left_out(len(record.charts) - _MOST_CHARTS, "charts")
        sections.append(Section("charts", "Charts", "Charts", lead, charts=charts))
    if record.pictures:
        sections.append(views_section(record.pictures, record.legend, truth=True))
    if record.samples:
        samples = [
            (units.shorten(units.clean(title), 200), units.clean(text, lines=True))
            for title, text in record.samples[:_MOST_SAMPLES]
        ]
        left = _left_out(len(record.samples) - _MOST_SAMPLES, "samples")
        body = fragment("samples.html", samples=samples, left=left)
        sections.append(Section("samples", "Samples", "Samples", body=body))
    return sections


def _left_out(count: int, what: str) -> str:
    return f"{count:,} more {what} are left out here." if count > 0 else ""


def _final_table(record: EvaluationRecord) -> list[Listing]:
    """Return the metrics of every part of the data, the primary one first."""
    parts = list(record.final)
    names = dict.fromkeys(name for figures in record.final.values() for name in figures)
    ordered = sorted(names, key=lambda name: name != record.metric)
    if not ordered:
        return []
    rows = [[metric_words(n), *(metric_value(n, record.final[part].get(n)) for part in parts)] for n in ordered]
    title = "Metrics with the weights that were kept" if isinstance(record, TrainingRecord) else "Metrics"
    return [Listing(title, ["metric", *map(_short, parts)], rows, frozenset())]


def listing(table: Grid) -> Listing:
    """Return a table of any content as the page shows it: cells as text, what is too long left out with a word."""
    title, header, rows = table
    shown = [list(row)[:_MOST_COLUMNS] for row in rows[:_MOST_ROWS]]
    heads = list(header)[:_MOST_COLUMNS]
    width = max([len(heads), *map(len, shown)], default=0)
    cells = [[*map(_cell, row), *[""] * (width - len(row))] for row in shown]
    words = {column for column in range(1, width) if any(_is_words(row[column]) for row in shown if column < len(row))}
    left = _left_out(len(rows) - _MOST_ROWS, "rows") if rows else "No rows."
    heads_shown = [*(units.shorten(units.clean(head), 80) for head in heads), *[""] * (width - len(heads))]
    return Listing(units.shorten(units.clean(title), 200), heads_shown, cells, frozenset(words), left)


def _cell(value: object) -> str:
    """Return a cell's text: figures with four significant digits, and a dash for what is missing or not finite."""
    if value is None or (isinstance(value, numbers.Real) and not isinstance(value, bool)):
        found = number(value)
        exact = isinstance(value, int) and found is not None and abs(found) < 1e15
        return units.whole(found) if exact else units.figure(found)
    return units.shorten(units.setting(value), _CELL)


def _is_words(value: object) -> bool:
    """Whether a cell holds text that does not begin as a formatted figure does, such as "−0.4 %" or "1,234"."""
    if not isinstance(value, str) or not (text := value.strip()) or text in (units.MISSING, "-"):
        return False
    return len(text) > 24 or not text.lstrip(_SIGNS)[:1].isdigit()


def _settings(record: EvaluationRecord, notes: Sequence[str]) -> Section:
    run = [("system", record.system), ("task", record.task), ("data", record.data)]
    facts = [(name, units.shorten(units.clean(value), 400)) for name, value in run if value]
    chosen = [(_short(name), units.shorten(units.setting(value), 400)) for name, value in record.facts]
    command = record.command if isinstance(record.command, str) else shlex.join(map(str, record.command))
    body = fragment(
        "method.html",
        notes=notes,
        command=units.clean(command, lines=True),
        groups=[("Run", facts), ("Settings", chosen)],
    )
    return Section("method", "How it was run", "Settings", body=body)
