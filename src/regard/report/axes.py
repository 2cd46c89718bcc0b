"""Axes that Plotly and matplotlib share: ranges with room, few ticks, and tick labels with units."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from regard.report import units
from regard.report.palette import themed
from regard.report.units import Formatter


@dataclass(frozen=True)
class Axis:
    """One axis of a plot.

    Args:
        title: what it measures, with the unit where the ticks do not say it.
        low: lower end of the range, in the axis's own unit.
        high: upper end.
        log: logarithmic.
        ticks: places and labels of the ticks; empty lets the plotting library choose.
    """

    title: str
    low: float
    high: float
    log: bool = False
    ticks: Sequence[tuple[float, str]] = ()

    def fraction(self, value: float) -> float:
        """Return where `value` lies on the axis: 0 at the low end, 1 at the high end."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def plotly(self) -> dict[str, Any]:
        """Return the axis as a Plotly layout entry with themed colours."""
        ends = [math.log10(self.low), math.log10(self.high)] if self.log else [self.low, self.high]
        axis: dict[str, Any] = {
            "title": {"text": plotly_text(self.title), "font": {"size": 13, "color": themed("muted")}, "standoff": 8},
            "type": "log" if self.log else "linear",
            "range": ends,
            "gridcolor": themed("grid"),
            "linecolor": themed("line"),
            "zeroline": False,
            "ticks": "",
            "automargin": True,
            "tickfont": {"size": 12, "color": themed("muted")},
        }
        if self.ticks:
            axis["tickvals"] = [place for place, _ in self.ticks]
            axis["ticktext"] = [plotly_text(label) for _, label in self.ticks]
        else:
            axis["nticks"] = 7
        return axis


def plotly_text(text: str) -> str:
    """Return `text` so that Plotly, which reads a subset of HTML and `%{...}`, shows it as it is."""
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("%", "&#37;")):
        text = text.replace(character, entity)
    return text


def layout(x: Axis, y: Axis, height: int = 360) -> dict[str, Any]:
    """Return a Plotly layout with these axes, transparent over the page's surface, without Plotly's own legend."""
    return {
        "height": height,
        "autosize": True,
        "margin": {"l": 12, "r": 14, "t": 14, "b": 12},
        "paper_bgcolor": themed("surface"),
        "plot_bgcolor": themed("surface"),
        "font": {"family": "system-ui, -apple-system, Segoe UI, Roboto, Liberation Sans, sans-serif", "size": 12},
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": themed("surface"),
            "bordercolor": themed("line"),
            "font": {"color": themed("ink"), "size": 13},
            "align": "left",
        },
        "modebar": {"bgcolor": themed("surface"), "color": themed("muted"), "activecolor": themed("ink")},
        "xaxis": x.plotly(),
        "yaxis": y.plotly(),
        "uirevision": plotly_text(f"{x.title}|{y.title}"),
    }


def linear(title: str, values: Iterable[float], formatter: Formatter | None = None, room: float = 0.07) -> Axis:
    """Return a linear axis that covers `values` with some room; ticks are labelled by `formatter` where given."""
    low, high = _span(values)
    pad = (high - low) * room or abs(high) * 0.05 or 1.0
    low, high = low - pad, high + pad
    ticks = [(place, units.tick(formatter)(place)) for place in _steps(low, high, 8)] if formatter else []
    return Axis(title, low, high, ticks=ticks)


def logarithmic(
    title: str, values: Iterable[float], formatter: Formatter, *, binary: bool = False, room: float = 0.06
) -> Axis:
    """Return a logarithmic axis that covers `values`, which are positive.

    Args:
        title: the axis title.
        values: what is drawn on it.
        formatter: the ticks' labels.
        binary: ticks at powers of 2 instead of 1-2-5.
        room: the part of the range left free at each end.
    """
    low, high = _span(value for value in values if value > 0)
    factor = max((high / low) ** room, 1.12)
    low, high = low / factor, high * factor
    places = _binary_places(low, high) if binary else _decimal_places(low, high)
    return Axis(title, low, high, log=True, ticks=[(place, units.tick(formatter)(place)) for place in places])


def at_values(title: str, values: Iterable[float], formatter: Formatter = units.whole, most: int = 6) -> Axis:
    """Return a logarithmic axis whose ticks are the measured lengths themselves, thinned to at most `most`."""
    places = sorted({value for value in values if value > 0}) or [1.0]
    factor = max((places[-1] / places[0]) ** 0.05, 1.08)
    step = math.ceil(len(places) / most)
    ticks = [(place, formatter(place)) for place in places[::-1][::step][::-1]]
    return Axis(title, places[0] / factor, places[-1] * factor, log=True, ticks=ticks)


def _span(values: Iterable[float]) -> tuple[float, float]:
    numbers = list(values)
    return (min(numbers), max(numbers)) if numbers else (1.0, 2.0)


def _steps(low: float, high: float, most: int) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten inside the range, at most `most`."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough * 0.999)
    return [round(index * step, 12) for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _decimal_places(low: float, high: float) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    places: list[float] = []
    for multiples in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)):
        places = [m * 10.0**e for e in exponents for m in multiples if low <= m * 10.0**e <= high]
        if len(places) >= 4:
            break
    if len(places) < 3:
        places = [place for place in _steps(low, high, 5) if place > 0]
    return places[:: math.ceil(len(places) / 7) or 1] if places else [low]


def _binary_places(low: float, high: float) -> list[float]:
    exponents = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    if len(exponents) < 2:
        return _decimal_places(low, high)
    step = math.ceil(len(exponents) / 6)
    return [2.0**exponent for exponent in exponents if exponent % step == 0]
