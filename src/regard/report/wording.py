"""How a race's quality is spoken of: bits per byte, where lower is better, or accuracy, where higher is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regard.report import units


@dataclass(frozen=True)
class QualityWords:
    """The words and number formats of a quality metric.

    Args:
        metric: its name in the results: "bits_per_byte", "accuracy", or another.
        lower_is_better: whether a smaller figure is the better one.
    """

    metric: str
    lower_is_better: bool

    @property
    def name(self) -> str:
        """The metric in words."""
        return units.shorten(self.metric.replace("_", " "), 40)

    @property
    def direction(self) -> str:
        """Which way is better, as the start of a sentence."""
        return "Lower is better" if self.lower_is_better else "Higher is better"

    @property
    def axis(self) -> str:
        """An axis title with the direction."""
        return f"{self.name} ({self.direction.lower()})"

    def value(self, number: float | None) -> str:
        """Format a figure without its unit."""
        if self.metric == "accuracy":
            return units.percent(number)
        return units.plain(number, 3)

    def tick(self, number: float | None) -> str:
        """Format a figure on an axis."""
        return units.percent(number, digits=0) if self.metric == "accuracy" else _short(number)

    def spread(self, number: float | None) -> str:
        """Format a standard deviation as ± figure; empty where there is none."""
        if number is None:
            return ""
        return f"± {units.plain(100 * number, 1) if self.metric == 'accuracy' else units.plain(number, 3)}"

    def with_unit(self, mean: float | None, spread: float | None = None) -> str:
        """Format a figure with its spread and unit: 1.234 ± 0.012 bits/byte."""
        if mean is None:
            return units.MISSING
        parts = [self.value(mean), self.spread(spread)]
        unit = {"bits_per_byte": "bits/byte", "accuracy": ""}.get(self.metric, self.name)
        return " ".join(part for part in (*parts, unit) if part)


def _short(number: float | None) -> str:
    if number is None:
        return units.MISSING
    return f"{number:.4g}".replace("-", units.MINUS)


def listed(names: Sequence[str], most: int = 8) -> str:
    """Return names as people list them: "a", "a and b", "a, b and c"; beyond `most`, "and n more"."""
    shown = [units.shorten(name) for name in names[:most]]
    if len(names) > most:
        shown.append(f"{len(names) - most} more")
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1] if shown else ""
