"""A square of shares in colours, such as a confusion matrix that is too large for a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from regard.report import axes, units
from regard.report.axes import Axis, plotly_text
from regard.report.charts import compact, hover_text, nothing
from regard.report.page import Chart, View
from regard.report.palette import themed
from regard.report.record import HeatMap
from regard.report.series import number

_MOST_TICKS = 16
_MOST_HOVERED = 100
"""Names beyond which a pointer shows places by number: a text per cell would make the page large."""
_HEIGHT = 640


def heat_map(found: HeatMap, identity: str) -> Chart:
    """Return the square as a chart; a value that is missing or not finite is a gap.

    Args:
        found: as `record.HeatMap` says.
        identity: the chart's id in the page.
    """
    title, x_label, y_label, what = (
        units.shorten(units.clean(found[name]), 90) for name in ("title", "x_label", "y_label", "what")
    )
    names = [units.shorten(units.clean(name), 24) for name in found["names"]]
    values = [[number(value) for value in row] for row in found["values"]]
    if not names or not any(value is not None for row in values for value in row):
        return nothing(identity, title, "no finite figure was given", wide=True)
    trace = {
        "type": "heatmap",
        "z": [[None if value is None else compact(value) for value in row] for row in values],
        "zmin": 0,
        "zmax": 1,
        "colorscale": themed("sequential"),
        "showscale": False,
        "legendgroup": "map",
        "hoverinfo": "x+y+z",
    }
    if len(names) <= _MOST_HOVERED:
        trace |= {
            "hoverinfo": "text",
            "hovertext": [
                [
                    hover_text(names[y], f"{x_label} {names[x]}", f"{what} {units.percent(value)}")
                    for x, value in enumerate(row)
                ]
                for y, row in enumerate(values)
            ],
        }
    layout = axes.layout(_axis(x_label, names), _axis(y_label, names, downwards=True), _HEIGHT)
    layout["xaxis"] |= {"tickangle": -60, "showgrid": False, "constrain": "domain"}
    layout["yaxis"] |= {"showgrid": False, "scaleanchor": "x", "constrain": "domain"}
    caption = (
        f"{what[:1].upper()}{what[1:]} by {y_label} (rows) and {x_label} (columns): the stronger the larger, up to 1."
    )
    diagonal = [row[index] for index, row in enumerate(values) if index < len(row)]
    known = [value for value in diagonal if value is not None]
    alt = f"Heat map of {len(names)} by {len(names)} {plotly_text(what)}; mean on the diagonal "
    alt += units.percent(math.fsum(known) / len(known)) if known else units.MISSING
    return Chart(identity, title, caption, alt + ".", [View("", [trace], layout)], wide=True)


def _axis(title: str, names: Sequence[str], *, downwards: bool = False) -> Axis:
    """An axis of names at whole numbers, thinned; downwards, the first is at the top."""
    step = math.ceil(len(names) / _MOST_TICKS)
    ticks = [(float(place), names[place]) for place in range(0, len(names), step)]
    low, high = -0.5, len(names) - 0.5
    return Axis(title, high, low, ticks=ticks) if downwards else Axis(title, low, high, ticks=ticks)
