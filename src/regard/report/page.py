"""The frame of every HTML report: one file that opens offline, in light and dark, on a desk and on a phone.

A page is a title, banners, and sections; a section holds HTML made by `fragment` (jinja2 with autoescape on) and
charts. A chart is plain data: Plotly traces and layouts whose colours are theme tokens (`palette.themed`), which the
page's script replaces by the colours of the current theme. The content policy allows exactly the scripts that are
part of the page, by their hash, and no request at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from regard.report.palette import LIGHT, SCALES, THEMES, Style
from regard.report.units import shorten

TEMPLATES = Path(__file__).parent / "templates"

_SYMBOL_PATHS = {
    "circle": "M14 2.6a3.4 3.4 0 1 0 .01 0z",
    "square": "M11 3h6v6h-6z",
    "diamond": "M14 1.6 18.4 6 14 10.4 9.6 6z",
    "triangle-up": "M14 1.9 18.2 9.2H9.8z",
    "triangle-down": "M14 10.1 9.8 2.8h8.4z",
    "cross": "M12.6 2.2h2.8v2.4h2.4v2.8h-2.4v2.4h-2.8V7.4h-2.4V4.6h2.4z",
    "x": "M10.6 4.6 12.6 2.6 14 4 15.4 2.6 17.4 4.6 16 6 17.4 7.4 15.4 9.4 14 8 12.6 9.4 10.6 7.4 12 6z",
}


@dataclass(frozen=True)
class View:
    """One way of looking at a chart, such as seconds or the ratio to the yardstick.

    Args:
        label: what the button that selects the view says.
        data: Plotly traces; `legendgroup` ties a trace to the chart's key of that name.
        layout: the Plotly layout.
    """

    label: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]


@dataclass(frozen=True)
class Key:
    """An entry of a chart's legend, which is HTML below the plot and switches traces on and off.

    Args:
        group: the `legendgroup` of its traces.
        label: the name shown.
        note: a figure beside the name, such as an exponent; may be empty.
        style: colour, dash and marker.
    """

    group: str
    label: str
    note: str
    style: Style


@dataclass(frozen=True)
class Table:
    """The numbers of a chart as text, for those who cannot see the plot or want to copy from it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Chart:
    """A figure of the page.

    Args:
        id: unique in the page; letters, digits and dashes.
        title: what it shows.
        caption: how to read it, in a sentence.
        alt: the text alternative: what a reader would learn from the plot.
        views: at least one, or none where `empty` says why there is nothing to draw.
        keys: the legend.
        table: its numbers.
        wide: takes the whole width of the page.
        empty: why there is nothing to draw.
    """

    id: str
    title: str
    caption: str
    alt: str
    views: Sequence[View] = ()
    keys: Sequence[Key] = ()
    table: Table | None = None
    wide: bool = False
    empty: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a page: a heading, HTML from `fragment`, and charts in a grid.

    Args:
        id: unique in the page, the target of the navigation.
        title: the heading.
        short: the heading in the navigation.
        lead: a sentence or two below the heading.
        body: HTML that comes before the charts.
        charts: the section's figures.
    """

    id: str
    title: str
    short: str
    lead: str = ""
    body: Markup = field(default_factory=Markup)
    charts: Sequence[Chart] = ()


@dataclass(frozen=True)
class Page:
    """A whole report.

    Args:
        title: the heading and, with `name`, the window's title.
        name: the kind of report, such as "regard compare".
        subtitle: a line below the title.
        sections: from top to bottom.
        banners: warnings above everything else.
        footer: the last line.
        data: what the page's scripts read beside the charts, by name.
        scripts: names of further scripts in `templates/`, run after the frame's own.
        styles: names of further style sheets in `templates/`.
        draws: whether the plotting library is part of the page; without it there are no charts.
    """

    title: str
    name: str
    subtitle: str
    sections: Sequence[Section]
    banners: Sequence[str] = ()
    footer: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    scripts: Sequence[str] = ()
    styles: Sequence[str] = ()
    draws: bool = True


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["swatch"] = swatch
    environment.filters["shorten"] = shorten
    return environment


def fragment(template: str, **values: Any) -> Markup:
    """Render a template of `templates/` to HTML that is safe to put into a page; every value is escaped."""
    return Markup(_environment().get_template(template).render(**values))


def embedded(file: bytes, kind: str) -> str:
    """Return a picture's file as the address of an image that is part of the page; `kind` is "png" or "jpeg"."""
    return f"data:image/{kind};base64," + base64.b64encode(file).decode("ascii")


def swatch(style: Style) -> Markup:
    """Return a small inline drawing of a style's line and marker, coloured by the page's theme."""
    dashes = {"solid": "", "dash": "5 2.5", "dot": "1.5 2", "dashdot": "5 2 1.5 2"}[style.dash]
    pattern = Markup(' stroke-dasharray="{}"').format(dashes) if dashes else Markup("")
    return Markup(
        '<svg class="swatch m{colour}" viewBox="0 0 28 12" width="28" height="12" aria-hidden="true" '
        'focusable="false"><path class="swatch-line" d="M1 6h26"{pattern}/><path class="swatch-mark" d="{mark}"/></svg>'
    ).format(colour=style.colour, pattern=pattern, mark=_SYMBOL_PATHS[style.symbol])


def to_json(value: Any) -> Markup:
    """Return `value` as JSON that can stand inside a script element whatever its strings contain.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def theme_css() -> str:
    """Return the colours of both themes as CSS variables: the system's choice, unless the reader chose."""

    def block(name: str) -> str:
        variables = "".join(f"--{role}:{colour};" for role, colour in THEMES[name].items())
        for scale, stops in SCALES[name].items():
            gradient = ",".join(f"{colour} {100 * at:g}%" for at, colour in stops)
            variables += f"--{scale}:linear-gradient(90deg,{gradient});"
        return f"color-scheme:{name};{variables}"

    marks = "".join(f".m{index}{{--m:var(--c{index})}}" for index in range(len(LIGHT)))
    return (
        f":root{{{block('light')}}}"
        f"@media(prefers-color-scheme:dark){{:root{{{block('dark')}}}}}"
        f":root[data-theme=light]{{{block('light')}}}"
        f":root[data-theme=dark]{{{block('dark')}}}{marks}"
    )


@lru_cache(maxsize=1)
def _plotly_script() -> str:
    script = get_plotlyjs().replace("\r\n", "\n").replace("\r", "\n")
    # Inside a JavaScript string or pattern these spellings mean the same, and the element cannot end early.
    return script.replace("</script", r"<\/script").replace("<!--", r"<\!--")


def _asset(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _hash(script: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii") + "'"


def content_policy(scripts: Sequence[str]) -> str:
    """Return the content security policy of a page: only these scripts run, and nothing is ever requested."""
    return (
        f"default-src 'none'; script-src {' '.join(_hash(script) for script in scripts)}; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def render_page(page: Page) -> str:
    """Return a page as one HTML document without references to anything outside itself.

    Raises:
        ValueError: a chart's data hold a number that is not finite.
    """
    charts = [chart for section in page.sections for chart in section.charts if chart.views]
    scripts = [*([_plotly_script()] if page.draws else []), _asset("page.js"), *(_asset(name) for name in page.scripts)]
    data = {
        **page.data,
        "themes": THEMES,
        "scales": SCALES,
        "charts": {chart.id: [{"data": view.data, "layout": view.layout} for view in chart.views] for chart in charts},
    }
    document = _environment().get_template("page.html")
    return document.render(
        page=page,
        policy=content_policy(scripts),
        css=Markup(theme_css() + "".join(_asset(name) for name in ("page.css", *page.styles))),
        data=to_json(data),
        scripts=[Markup(script) for script in scripts],
    )
