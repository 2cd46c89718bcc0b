"""Long series as a page can draw them: gaps where a value is not finite, thinned with its extremes, smoothed."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from dataclasses import replace

from regard.report import axes, units
from regard.report.axes import Axis

Gapped = list[tuple[float, float | None]]
_LARGEST, _SMALLEST = 1e100, 1e-100
# Plain numbers come first: the abstract class is slow to ask, and a long run has a million values.
_NUMBERS = (float, int, numbers.Real)
_BUCKETS = 600
_MEANS = 400
_OUTSIDE = 6.0


def number(value: object) -> float | None:
    """Return `value` as a float if a plot can hold it, else None.

    That leaves out what is no number, booleans, NaN, infinities, and whatever is 1e100 or larger in size, which has
    left any scale that a reader could compare. What is smaller than 1e-100 in size is 0.
    """
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    if not math.isfinite(found) or abs(found) >= _LARGEST:
        return None
    return found if abs(found) > _SMALLEST else 0.0


def by_step(steps: Sequence[object], values: Sequence[object]) -> Gapped:
    """Return pairs of step and value in the order of the steps; of two records of one step the later counts."""
    latest: dict[float, float | None] = {}
    for step, value in zip(steps, values, strict=True):
        if (place := number(step)) is not None:
            latest[place] = number(value)
    return sorted(latest.items())


def known(points: Iterable[tuple[float, float | None]]) -> list[tuple[float, float]]:
    """Return the points that have a value."""
    return [(x, y) for x, y in points if y is not None]


def lonely(points: Gapped) -> bool:
    """Whether a value stands between two gaps (or an end and a gap), where no line would show it."""
    values = [None, *(y for _, y in points), None]
    return any(
        y is not None and before is None and after is None
        for before, y, after in zip(values, values[1:], values[2:], strict=False)
    )


def thinned(points: Gapped, buckets: int = _BUCKETS) -> Gapped:
    """Return at most three points per bucket: its smallest and its largest value, and a gap where it has one.

    Peaks and gaps of a single step therefore stay visible however long the series is.
    """
    if len(points) <= 2 * buckets:
        return points
    kept: Gapped = []
    for index in range(buckets):
        part = points[index * len(points) // buckets : (index + 1) * len(points) // buckets]
        with_value = known(part)
        chosen: Gapped = []
        if with_value:
            ends = {min(with_value, key=lambda point: point[1]), max(with_value, key=lambda point: point[1])}
            chosen += sorted(ends)
        if len(with_value) < len(part):
            chosen.append(next(point for point in part if point[1] is None))
        kept += sorted(chosen, key=lambda point: point[0])
    return kept


def window(length: int) -> int:
    """Return how many neighbouring values a smoothed value averages: a fiftieth of them, and an odd number."""
    return 2 * (length // 100) + 1


def smoothed(points: Gapped) -> Gapped:
    """Return the mean over a centred window at no more than about 400 places, a gap where the place has no value.

    The window is narrower at the start, where the fall of a loss would otherwise be averaged away.
    """
    half = window(len(points)) // 2
    stride = -(-len(points) // _MEANS) or 1
    means: Gapped = []
    for index in sorted({*range(0, len(points), stride), len(points) - 1} if points else ()):
        x, y = points[index]
        reach = min(half, index)
        near = [value for _, value in known(points[index - reach : index + reach + 1])]
        means.append((x, None if y is None else math.fsum(near) / len(near)))
    return means


def covered(points: Gapped) -> tuple[list[float], int]:
    """Return the ends of the values that an axis should cover, and how many points fall outside of them.

    Everything is covered, unless the whole span is more than six times that of the values after the first fifth of
    the steps (without the outermost half percent): then the span of those, with as much room again above and below.
    """
    drawn = known(points)
    values = sorted(y for _, y in drawn)
    if not values:
        return [], 0
    first, last = drawn[0][0], drawn[-1][0]
    settled = sorted(y for x, y in drawn if x >= first + 0.2 * (last - first))
    low, high = settled[int(0.005 * (len(settled) - 1))], settled[math.ceil(0.995 * (len(settled) - 1))]
    if high <= low or values[-1] - values[0] <= _OUTSIDE * (high - low):
        return [values[0], values[-1]], 0
    ends = [max(values[0], 2 * low - high), min(values[-1], 2 * high - low)]
    return ends, sum(not ends[0] <= value <= ends[1] for value in values)


def value_axis(title: str, values: Sequence[float]) -> Axis:
    """Return a linear axis for values of any size; a span too small to draw is that of a constant."""
    largest = max((abs(value) for value in values), default=1.0)
    if values and max(values) - min(values) < 1e-9 * largest:
        values = [values[0]]
    # A linear axis rounds its ticks to twelve decimals, so tiny values are laid out enlarged.
    scale = 10.0 ** -math.floor(math.log10(largest)) if 0 < largest < 1e-6 else 1.0
    axis = axes.linear(title, [value * scale for value in values], figure_tick)
    ticks = [(place / scale, units.tick(figure_tick)(place / scale)) for place, _ in axis.ticks]
    return replace(axis, low=axis.low / scale, high=axis.high / scale, ticks=ticks)


def figure_tick(value: float | None) -> str:
    """Format a tick with up to six significant digits, so that neighbouring ticks differ."""
    return units.figure(value, 6)


def step_axis(steps: Sequence[float]) -> Axis:
    """Return the axis of training steps, with ticks at whole steps only; a lone step is drawn from 0."""
    ends = list(steps) if len(set(steps)) > 1 else [0.0, *steps]
    axis = axes.linear("training step", ends, units.whole, room=0.015)
    return replace(axis, ticks=[tick for tick in axis.ticks if float(tick[0]).is_integer()])
