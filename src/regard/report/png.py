"""The main plots of a race as PNG files for READMEs: the same lines, axes and colours as the page, by matplotlib.

The object-oriented interface is used throughout, so that nothing here touches pyplot's global state.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager, patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator

from regard.files import write_atomically
from regard.report import axes, inference, learning, scaling, units
from regard.report.axes import Axis
from regard.report.charts import Entry, Line, entries, xs, ys
from regard.report.palette import LIGHT, THEMES, Style
from regard.report.results import Results
from regard.report.tradeoff import Frame, tradeoff
from regard.report.wording import QualityWords, task_words

_DPI = 160
_COLOURS = THEMES["light"]
_MARKERS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "triangle-down": "v",
    "cross": "P",
    "x": "X",
}
_DASHES: dict[str, Any] = {"solid": "-", "dash": (0, (5, 2)), "dot": (0, (1, 1.4)), "dashdot": (0, (5, 2, 1, 2))}
_LEGEND_ROW = 0.26
_STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.edgecolor": _COLOURS["line"],
    "axes.labelcolor": _COLOURS["muted"],
    "axes.titlecolor": _COLOURS["ink"],
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": _COLOURS["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": _COLOURS["muted"],
    "ytick.color": _COLOURS["muted"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": _COLOURS["ink"],
    "text.parse_math": False,
    "text.usetex": False,
    "figure.facecolor": _COLOURS["surface"],
    "axes.facecolor": _COLOURS["surface"],
    "savefig.facecolor": _COLOURS["surface"],
}


@dataclass(frozen=True)
class Panel:
    """One plot of a picture.

    Args:
        title: what it shows.
        draw: draws it into the axes and returns the entries that it drew.
    """

    title: str
    draw: Callable[[Axes], list[Entry]]


def write_all(race: Results, folder: Path) -> list[Path]:
    """Write the four pictures of a race into `folder` and return their paths.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    styled = entries(race)
    words = QualityWords(race.metric, race.lower_is_better)
    trade = Panel("Quality against cost", lambda ax: _trade(ax, race, styled, words, Frame(490, 275, 5.6, 12, 8)))
    small = Panel("Quality against cost", lambda ax: _trade(ax, race, styled, words, Frame(315, 220, 5.6, 12, 8)))
    task = task_words(race.task)
    time = Panel(f"{task.forward.capitalize()} against length", lambda ax: _time(ax, styled, task.forward))
    memory = Panel("Peak memory against length", lambda ax: _memory(ax, race, styled))
    validation = Panel("Validation", lambda ax: _curves(ax, race, styled, "validation"))
    training = Panel("Training", lambda ax: _curves(ax, race, styled, "train"))
    beyond = Panel("Beyond the training length", lambda ax: _extrapolation(ax, styled, words))
    last = beyond if any(row.extrapolation for row in race.rows) else memory
    pictures: list[tuple[str, list[Panel], tuple[float, float]]] = [
        ("quality_vs_cost.png", [trade], (8.0, 4.8)),
        ("cost_vs_length.png", [time, memory], (10.0, 4.3)),
    ]
    if task.learns:
        pictures += [("training_curves.png", [validation, training], (10.0, 4.3))]
    else:
        validation = Panel("Perplexity against length", lambda ax: _perplexity(ax, styled))
        pictures += [("quality_vs_length.png", [validation], (8.0, 4.8))]
    pictures += [("overview.png", [small, time, validation, last], (10.0, 8.2))]
    written = []
    with matplotlib.rc_context(_STYLE):
        for name, panels, size in pictures:
            write_atomically(folder / name, _picture(panels, size))
            written.append(folder / name)
    return written


def _picture(panels: Sequence[Panel], size: tuple[float, float]) -> bytes:
    """Return a PNG of the panels, at most two in a row, over one legend for all of them.

    Args:
        panels: the plots.
        size: width and height in inches without the legend.
    """
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=size, dpi=_DPI)
    FigureCanvasAgg(figure)
    drawn: dict[str, Entry] = {}
    plots = []
    for index, panel in enumerate(panels):
        ax = figure.add_subplot(rows, columns, index + 1)
        ax.set_title(panel.title)
        drawn |= {entry.group: entry for entry in panel.draw(ax)}
        plots.append(ax)
    order = sorted(drawn.values(), key=lambda entry: int(entry.group[1:]))
    legend_rows = math.ceil(len(order) / (size[0] // 1.55))
    per_row = math.ceil(len(order) / max(1, legend_rows))
    # A legend is filled by columns; this order makes it read by rows.
    order = [entry for column in range(per_row) for entry in order[column::per_row]]
    legend_height = _LEGEND_ROW * legend_rows + 0.15 * bool(order)
    height = size[1] + legend_height
    figure.set_size_inches(size[0], height)
    figure.subplots_adjust(
        left=0.85 / size[0],
        right=1 - 0.25 / size[0],
        top=1 - 0.42 / height,
        bottom=(0.54 + legend_height) / height,
        wspace=0.24,
        hspace=0.34,
    )
    if order:
        figure.legend(
            [_sample(entry.style) for entry in order],
            [_label(entry.row.name, 20) for entry in order],
            loc="lower center",
            ncol=per_row,
            frameon=False,
            fontsize=9,
            handlelength=2.4,
            columnspacing=1.4,
            bbox_to_anchor=(0.5, 0.0),
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": "regard"})
    return buffer.getvalue()


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    return frozenset(font.get_charmap())


def _label(text: str, most: int = 40) -> str:
    """Return `text` in one line and in characters that the font has; a legend would hide a leading underscore."""
    known = "".join(c if ord(c) in _glyphs() else "\ufffd" for c in units.shorten(text, most))
    return "\u200b" + known if known.startswith("_") else known


def _sample(style: Style) -> Line2D:
    """Return the line and marker that stand for a style in the legend."""
    return Line2D([], [], color=LIGHT[style.colour], linestyle=_DASHES[style.dash], **_marker(style))


def _marker(style: Style) -> dict[str, Any]:
    return {"marker": _MARKERS[style.symbol], "markersize": 5.5, "markeredgecolor": "white", "markeredgewidth": 0.6}


def _scale(ax: Axes, x: Axis, y: Axis) -> None:
    """Give the axes the ranges, scales, ticks and titles that the page has."""
    ax.set_xlabel(_label(x.title, 90))
    ax.set_ylabel(_label(y.title, 60))
    ax.set_xscale("log" if x.log else "linear")
    ax.set_yscale("log" if y.log else "linear")
    for axis, drawn in ((x, ax.xaxis), (y, ax.yaxis)):
        if axis.ticks:
            drawn.set_major_locator(FixedLocator([place for place, _ in axis.ticks]))
            drawn.set_major_formatter(FixedFormatter([label for _, label in axis.ticks]))
            drawn.set_minor_locator(NullLocator())
            drawn.set_minor_formatter(NullFormatter())
    ax.set_xlim(x.low, x.high)
    ax.set_ylim(y.low, y.high)


def _plot(ax: Axes, lines: Sequence[Line], *, markers: bool = True) -> list[Entry]:
    for line in lines:
        style = line.entry.style
        look = _marker(style) if markers or len(line.points) == 1 else {}
        ax.plot(*zip(*line.points, strict=True), color=LIGHT[style.colour], ls=_DASHES[style.dash], lw=1.8, **look)
    return [line.entry for line in lines]


def _empty(ax: Axes, why: str) -> list[Entry]:
    ax.text(0.5, 0.5, why, ha="center", va="center", transform=ax.transAxes, color=_COLOURS["muted"])
    ax.set_axis_off()
    return []


def _trade(ax: Axes, race: Results, styled: Sequence[Entry], words: QualityWords, frame: Frame) -> list[Entry]:
    found = tradeoff(race, styled, words, frame)
    if found is None:
        return _empty(ax, "no quality and cost were measured")
    _scale(ax, found.x, found.y)
    if len(found.front) > 1:
        costs, qualities = zip(*found.front, strict=True)
        ax.plot(costs, qualities, color=_COLOURS["muted"], ls=":", lw=1.3, drawstyle="steps-post", zorder=1)
    for spot, place in zip(found.spots, found.labels, strict=True):
        style, front = spot.entry.style, spot.entry.row.pareto
        colour = LIGHT[style.colour]
        if spot.spread:
            ax.errorbar(spot.cost, spot.quality, spot.spread, color=colour, lw=1, capsize=2.5)
        look = _marker(style) | {"markersize": 9 if front else 7}
        ax.plot(spot.cost, spot.quality, color=colour, ls="", zorder=3, **look)
        if place:
            name, ink = _label(spot.entry.row.name, 22), _COLOURS["ink" if front else "muted"]
            _name_spot(ax, name, (spot.cost, spot.quality), place, ink)
    return [spot.entry for spot in found.spots]


def _name_spot(ax: Axes, name: str, at: tuple[float, float], place: str, colour: str) -> None:
    """Write a name beside a marker at the place that was found for it."""
    row, column = place.split()
    gap = 8 if "center" in place or row == "middle" else 5.5
    dx, ha = {"center": (0.0, "center"), "right": (gap, "left"), "left": (-gap, "right")}[column]
    dy, va = {"top": (gap, "bottom"), "middle": (0.0, "center"), "bottom": (-gap, "top")}[row]
    halo = [patheffects.withStroke(linewidth=2.5, foreground=_COLOURS["surface"])]
    ax.annotate(
        name, at, (dx, dy), textcoords="offset points", ha=ha, va=va, fontsize=9, color=colour, path_effects=halo
    )


def _time(ax: Axes, styled: Sequence[Entry], what: str) -> list[Entry]:
    lines = scaling.time_lines(styled)
    if not lines:
        return _empty(ax, f"no {what} was measured")
    _scale(ax, axes.at_values("tokens", xs(lines)), axes.logarithmic(what, ys(lines), units.seconds))
    return _plot(ax, lines)


def _perplexity(ax: Axes, styled: Sequence[Entry]) -> list[Entry]:
    lines = inference.perplexity_lines(styled)
    if not lines:
        return _empty(ax, "no perplexity was measured")
    _scale(ax, *inference.perplexity_axes(lines))
    return _plot(ax, lines)


def _memory(ax: Axes, race: Results, styled: Sequence[Entry]) -> list[Entry]:
    lines = scaling.memory_lines(race, styled)
    if not lines:
        return _empty(ax, "no peak memory was measured")
    y = axes.logarithmic("peak memory", ys(lines), units.size, binary=True)
    _scale(ax, axes.at_values("tokens", xs(lines)), y)
    return _plot(ax, lines)


def _curves(ax: Axes, race: Results, styled: Sequence[Entry], part: learning.Part) -> list[Entry]:
    lines = learning.curve_lines(styled, part)
    if not lines:
        return _empty(ax, "no learning curve was recorded")
    x, y = learning.curve_axes(race, lines, part)
    _scale(ax, x, y)
    for line in lines:
        seeds = learning.seed_points(line.entry, part)
        for points in seeds if len(seeds) > 1 else []:
            ax.plot(*zip(*points, strict=True), color=LIGHT[line.entry.style.colour], lw=0.7, alpha=0.28)
    for name, value in learning.baselines_within(race, y):
        ax.axhline(value, color=_COLOURS["muted"], lw=0.8, ls=":")
        text, right = _label(f"{name} {units.plain(value)}"), ax.get_yaxis_transform()
        ax.text(1.0, value, text, transform=right, ha="right", va="bottom", fontsize=8.5, color=_COLOURS["muted"])
    return _plot(ax, lines, markers=False)


def _extrapolation(ax: Axes, styled: Sequence[Entry], words: QualityWords) -> list[Entry]:
    lines = learning.extrapolation_lines(styled, words)
    if not lines:
        return _empty(ax, "no quality was measured beyond the training length")
    _scale(ax, *learning.extrapolation_axes(lines, words))
    return _plot(ax, lines)
