"""The report of `regard compare`: one HTML page and PNG plots from the results of a race."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from regard.report import png, units
from regard.report.charts import Entry, entries
from regard.report.inference import inference_charts
from regard.report.learning import curve_chart, extrapolation_chart
from regard.report.maps import SCRIPT as MAPS_SCRIPT
from regard.report.maps import MapPanel, maps_data, maps_html
from regard.report.page import Page, Section, fragment, render_page
from regard.report.ranking import ranking_html
from regard.report.results import Results, read
from regard.report.scaling import cost_charts, decode_charts
from regard.report.tradeoff import pareto
from regard.report.wording import QualityWords, listed, task_words

_SETTING_NAMES = {"num_layers": "layers", "num_heads": "heads", "dim": "width", "train_length": "training length"}


def render(results: Mapping[str, Any]) -> str:
    """Return the report of a race as one self-contained HTML document that opens offline.

    Args:
        results: the content of `results.json`; whatever a row lacks is left out or shown as a dash.

    Raises:
        ValueError: the results have another schema than this report reads.
    """
    race = read(results)
    styled = entries(race)
    words = QualityWords(race.metric, race.lower_is_better)
    panels = [MapPanel(e.row.name, e.row.title, e.style, e.row.map, e.row.map_why or _no_map(e)) for e in styled]
    sections = [
        _recommendation(race, styled),
        _ranking(race, styled, words),
        *_chart_sections(race, styled, words),
        *([_maps(race, panels)] if task_words(race.task).learns else []),
        _method(race),
    ]
    drawn = any(panel.map for panel in panels)
    version = f" {race.version}" if race.version else ""
    return render_page(
        Page(
            title=_title(race),
            name="regard compare",
            subtitle=_subtitle(race),
            sections=sections,
            banners=_banners(race),
            footer=f"Written by regard{version}" + (f", race of {race.created}" if race.created else "") + ". "
            "This file is complete in itself and asks for nothing from the network.",
            data={"maps": maps_data(panels)},
            scripts=[MAPS_SCRIPT] if drawn else [],
            styles=["compare.css"],
        )
    )


def write_pngs(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the race's main plots as PNG files and return their paths.

    Args:
        results: the content of `results.json`.
        folder: where they go; it must exist.

    Raises:
        ValueError: the results have another schema than this report reads.
        OSError: a file cannot be written; none is left half-written.
    """
    return png.write_all(read(results), Path(folder))


def _title(race: Results) -> str:
    mechanisms = f"{len(race.rows)} attention mechanisms" if len(race.rows) != 1 else "One attention mechanism"
    return f"{mechanisms} on {task_words(race.task).title}"


def _subtitle(race: Results) -> str:
    described = units.clean(race.data.get("description") or race.data.get("source"))
    return units.shorten(described, 300)


def _banners(race: Results) -> list[str]:
    banners = []
    if not race.finished:
        banners.append("This race is unfinished: it was stopped before its end. What is shown was measured.")
    if race.rows and all(row.status == "failed" for row in race.rows):
        banners.append("Every mechanism failed; the table gives the reasons.")
    if not race.rows:
        banners.append("This race has no rows yet.")
    return banners


def _no_map(entry: Entry) -> str:
    if entry.row.status == "failed":
        return f"failed: {entry.row.why}" if entry.row.why else "the mechanism failed"
    return "not recorded before the race stopped" if entry.row.status == "unfinished" else ""


def _recommendation(race: Results, styled: Sequence[Entry]) -> Section:
    looks = {entry.row.name: entry for entry in styled}
    cards = []
    for item in race.recommendation:
        entry = looks.get(item.name)
        name = entry.row.title if entry else item.name
        style = entry.style if entry else None
        cards.append({"question": item.question, "name": name, "sentence": item.sentence, "style": style})
    why = "No recommendation: no mechanism has finished."
    return Section(
        "recommendation", "Recommendation", "Recommendation", body=fragment("cards.html", cards=cards, why=why)
    )


def _ranking(race: Results, styled: Sequence[Entry], words: QualityWords) -> Section:
    on_front = [row.name for row in race.rows if row.pareto]
    lead = f"Ranked by validation {words.name}; {words.direction.lower()}."
    if race.yardstick:
        lead += f" Ratios ({units.TIMES}) compare with {units.shorten(race.yardstick)} timed in alternation."
    if on_front:
        lead += f" On the Pareto front of quality and cost: {listed(on_front)}."
    if race.baselines:
        references = (f"{units.shorten(name)} {words.value(value)}" for name, value in race.baselines.items())
        lead += f" For orientation: {', '.join(references)}."
    body = ranking_html(race, styled, words) if race.rows else Markup("")
    return Section("ranking", "Ranking", "Ranking", lead, body)


def _chart_sections(race: Results, styled: Sequence[Entry], words: QualityWords) -> list[Section]:
    task = task_words(race.task)
    sections = [
        Section("trade-off", "The trade-off", "Trade-off", charts=[pareto(race, styled, words)]),
        Section("cost", "Growth with length", "Growth", charts=cost_charts(race, styled)),
        Section("decoding", "Decoding", "Decoding", _why_no_decoding(race), charts=decode_charts(race, styled)),
    ]
    if task.learns:
        learning = [curve_chart(race, styled)]
        if task.extrapolates or any(row.extrapolation for row in race.rows):
            learning.append(extrapolation_chart(styled, words))
        sections.append(Section("learning", "Learning", "Learning", charts=learning))
    else:
        sections.insert(1, Section("quality", "Quality by length", "Quality", charts=inference_charts(styled)))
    if not task.decodes and not any(row.decode for row in race.rows):
        sections = [section for section in sections if section.id != "decoding"]
    return sections


def _why_no_decoding(race: Results) -> str:
    reasons = [
        f"{units.shorten(row.name)}: {row.decode_why}" for row in race.rows if row.decode is None and row.decode_why
    ]
    return f"Without decoding: {'; '.join(reasons)}." if reasons else ""


def _maps(race: Results, panels: Sequence[MapPanel]) -> Section:
    signed = any(panel.map and panel.map.signed for panel in panels)
    lead = "Every mechanism's own map on the same sample: queries from top to bottom, keys from left to right."
    lead += " Each colour scale ends at the 98.5th percentile of its map."
    lead += " Signed maps have their own scale, centred on 0." if signed else ""
    if not any(panel.map for panel in panels):
        lead = "No mechanism has a map in these results."
    task = task_words(race.task)
    drawn = maps_html(panels, heading=task.sample, apart=task.sample_apart)
    return Section("maps", "What they attend to", "Attention maps", lead, drawn)


def _method(race: Results) -> Section:
    yardstick = units.shorten(race.yardstick) or "the yardstick"
    words = task_words(race.task)
    notes = [
        *words.method,
        f"Each runs in a process of its own. Its timings alternate with {yardstick} in that process, and rows are "
        "compared by the ratio, which a busy machine changes less than it changes seconds."
        if words.learns
        else "Rows are compared by the ratio of times, which a busy machine changes less than it changes seconds.",
        "Exponents are slopes fitted to the logarithms of time or memory and length: 1 is linear, 2 is quadratic.",
        "A MAC is one multiply-accumulate in a matrix product or convolution; parameters are counted, not estimated.",
        *words.notes,
    ]
    groups = [("Settings", _facts(race.settings)), ("Data", _facts(race.data)), ("Machine", _facts(race.machine))]
    body = fragment("method.html", notes=notes, command=race.command, groups=groups)
    return Section("method", "How it was measured", "Method", body=body)


def _facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return names and values as people read them; the sample is shown with the maps instead."""
    facts = []
    for key, value in values.items():
        if key == "sample":
            continue
        name = _SETTING_NAMES.get(key, key.removesuffix("_bytes").replace("_", " "))
        number = units.finite(value)
        text = units.size(number) if key.endswith("_bytes") and number is not None else units.setting(value)
        facts.append((units.shorten(name, 40), units.shorten(text, 400)))
    return facts
