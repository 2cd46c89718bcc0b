"""Attention maps as small multiples on one sample, with a selector for the head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from regard.report import units
from regard.report.page import fragment
from regard.report.palette import Style
from regard.report.results import AttentionMap

SCRIPT = "maps.js"
_SATURATED = 0.985
_SHOWN = {"\n": "↵", "\r": "↵", "\t": "⇥", " ": "␣", "\xa0": "␣"}


@dataclass(frozen=True)
class MapPanel:
    """One mechanism's maps, or the reason why it has none.

    Args:
        label: the mechanism's short name.
        title: its full name.
        style: its look.
        map: the maps; None where there are none.
        why: the reason for that.
    """

    label: str
    title: str
    style: Style
    map: AttentionMap | None
    why: str = ""

    def limits(self) -> tuple[float, float]:
        """Return the values at the ends of the colour scale, shared by all heads.

        The upper end is the 98.5th percentile of the sizes that are not zero, so that a few large weights (the first
        rows of a causal map) do not leave the rest in one colour; a signed map's scale is centred on 0.
        """
        heads = self.map.heads if self.map else ()
        sizes = sorted(abs(v) for head in heads for row in head for v in row if v)
        top = sizes[math.ceil(_SATURATED * len(sizes)) - 1] if sizes else 1.0
        return (-top, top) if self.map and self.map.signed else (0.0, top)


def label_text(label: str) -> str:
    """Return a token as a visible mark: spaces and line breaks get one."""
    return _SHOWN.get(label, label)


def maps_html(panels: Sequence[MapPanel], *, heading: str, apart: bool) -> Markup:
    """Return the sample, the head selector, and a panel per mechanism (or the reason why it has no map).

    Args:
        panels: one per mechanism.
        heading: of the sample.
        apart: whether its labels stand apart, and are not the characters of a text.
    """
    drawn = [panel for panel in panels if panel.map]
    heads = max((len(panel.map.heads) for panel in drawn if panel.map), default=0)
    sample = next((panel.map.labels for panel in drawn if panel.map and panel.map.labels), ())
    tokens = [(label_text(label), label == "\n") for label in sample]
    described = [_described(panel, index) for index, panel in enumerate(panels)]
    return fragment("maps.html", panels=described, heads=heads, sample=tokens, heading=heading, apart=apart)


def _described(panel: MapPanel, index: int) -> dict[str, Any]:
    low, high = panel.limits()
    heads = panel.map.heads if panel.map else ()
    shape = f"{len(heads[0])} queries by {len(heads[0][0])} keys" if heads else ""
    signed = bool(panel.map and panel.map.signed)
    return {
        "index": index,
        "panel": panel,
        "drawn": bool(heads),
        "signed": signed,
        "low": weight(low),
        "high": weight(high),
        "heads": len(heads),
        "alt": f"Attention map of {units.shorten(panel.title, 60)}, {shape}, {len(heads)} heads, "
        + ("signed weights." if signed else "weights from 0.")
        if heads
        else "",
    }


def weight(value: float) -> str:
    """Format an attention weight with two significant digits."""
    return f"{value:.2g}".replace("-", units.MINUS)


def maps_data(panels: Sequence[MapPanel]) -> list[dict[str, Any] | None]:
    """Return what the script draws, one entry per panel; None where there is no map."""
    data: list[dict[str, Any] | None] = []
    for panel in panels:
        if panel.map is None:
            data.append(None)
            continue
        low, high = panel.limits()
        heads = [[[None if v is None else float(f"{v:.4g}") for v in row] for row in head] for head in panel.map.heads]
        labels = [label_text(label) for label in panel.map.labels]
        data.append({"heads": heads, "labels": labels, "low": low, "high": high, "signed": panel.map.signed})
    return data
