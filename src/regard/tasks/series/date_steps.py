"""Going on with a column of dates or numbers whose step is constant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

FORMATS = (
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%dT%H:%M:%SZ",
    "%Y-%m-%dT%H:%M:%S%z",
    "%Y-%m-%d %H:%M:%S%z",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d",
    "%Y-%m",
    "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d %H:%M",
    "%Y/%m/%d",
    "%d.%m.%Y %H:%M",
    "%d.%m.%Y",
)
"""Those in which day and month cannot be mistaken for each other."""


def continue_column(texts: Sequence[str], count: int) -> list[str] | None:
    """The next `count` texts; None where they are neither dates nor numbers, or their step changes.

    Args:
        texts: at least two, of one format. A step is a number, a span of time, or whole months.
        count: how many.
    """
    if len(texts) < 2:
        return None
    return _continue_numbers(texts, count) or _continue_dates(texts, count)


def _continue_numbers(texts: Sequence[str], count: int) -> list[str] | None:
    try:
        whole = [int(text) for text in texts]
    except ValueError:
        pass
    else:
        step = whole[1] - whole[0]
        if any(later - earlier != step for earlier, later in pairwise(whole)):
            return None
        return [str(whole[-1] + step * number) for number in range(1, count + 1)]
    try:
        values = [float(text) for text in texts]
    except ValueError:
        return None
    step_between = (values[-1] - values[0]) / (len(values) - 1)
    largest = max(abs(values[0]), abs(values[-1]))
    for number, value in enumerate(values):
        if not abs(value - values[0] - number * step_between) <= 1e-6 * abs(step_between) + 1e-12 * largest:
            return None
    return [f"{values[-1] + step_between * number:.12g}" for number in range(1, count + 1)]


@dataclass(frozen=True)
class _Step:
    months: int
    span: timedelta

    def after(self, date: datetime, number: int) -> datetime:
        month = date.year * 12 + date.month - 1 + self.months * number
        return date.replace(year=month // 12, month=month % 12 + 1) + self.span * number


def _continue_dates(texts: Sequence[str], count: int) -> list[str] | None:
    for layout in FORMATS:
        try:
            dates = [datetime.strptime(text, layout) for text in texts]
        except ValueError:
            continue
        try:
            step = _constant_step(dates)
            return (
                None
                if step is None
                else [step.after(dates[-1], number).strftime(layout) for number in range(1, count + 1)]
            )
        except (ValueError, OverflowError):
            # beyond the last year that a date can have
            return None
    return None


def _constant_step(dates: Sequence[datetime]) -> _Step | None:
    pairs = list(pairwise(dates))
    months = {(later.year - earlier.year) * 12 + later.month - earlier.month for earlier, later in pairs}
    # every month has a 28th, so such a column can always go on
    if (
        len(months) == 1
        and months != {0}
        and dates[-1].day <= 28
        and all(date.replace(1, 1) == dates[0].replace(1, 1) for date in dates)
    ):
        return _Step(months.pop(), timedelta())
    spans = {later - earlier for earlier, later in pairs}
    return _Step(0, spans.pop()) if len(spans) == 1 else None
