"""Numbers and strings as people read them: `4.5 k`, `1.2 MiB`, `3.1 ms`, `−0.4 %`.

Every formatter takes None for "not measured" and answers with a dash, so that a missing figure is never a zero.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

MISSING = "\u2013"
TIMES = "\u00d7"
MINUS = "\u2212"
_CONTROL = dict.fromkeys(range(32), " ") | {127: " "}
_DIRECTION = dict.fromkeys((*range(8234, 8239), *range(8294, 8298)), "�")
_LONGEST = 20_000
_ENDING_ZEROS = re.compile(r"(?<=\d)\.0+(?!\d)|(\.\d*?[1-9])0+(?!\d)")

Formatter = Callable[[float | None], str]


def finite(value: object) -> float | None:
    """Return `value` as a float if it is a finite number, else None (also for booleans and text)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def clean(value: object, *, lines: bool = False) -> str:
    """Return `value` as text that any page and font can take.

    Control characters become spaces, characters that turn the reading direction and lone surrogates become a
    replacement character, and text beyond 20,000 characters is cut with an ellipsis.

    Args:
        value: anything; None becomes the empty string.
        lines: keep line breaks and tabs.
    """
    text = "" if value is None else str(value)
    text = text.encode("utf-8", "replace").decode("utf-8")
    kept = {code: _CONTROL[code] for code in _CONTROL if not (lines and code in (9, 10))}
    text = text.translate(kept | _DIRECTION)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def shorten(text: str, most: int = 28) -> str:
    """Return `text`, cut in the middle with an ellipsis so that it has at most `most` characters."""
    if len(text) <= most:
        return text
    head = (most - 1) * 2 // 3
    return text[:head] + "…" + text[len(text) - (most - 1 - head) :]


def _significant(value: float, digits: int = 3) -> str:
    if value == 0:
        return "0"
    if abs(value) < 1e-6:
        return f"{value:.1e}".replace("-", MINUS)
    rounded = abs(float(f"{value:.{digits}g}"))
    decimals = max(0, digits - 1 - math.floor(math.log10(rounded)))
    return f"{value:,.{decimals}f}".replace("-", MINUS)


def _scaled(value: float | None, units: tuple[tuple[float, str], ...]) -> str:
    """Format with the largest unit that keeps the number at 1 or more after rounding to three digits."""
    if value is None:
        return MISSING
    for size, unit in units:
        if abs(value) >= size * 0.9995:
            return f"{_significant(value / size)} {unit}".rstrip()
    size, unit = units[-1]
    return f"{_significant(value / size)} {unit}".rstrip()


def count(value: float | None) -> str:
    """Format a count: 950, 4.50 k, 1.23 M, 2.00 G."""
    if value is not None and abs(value) < 1000 and value == int(value):
        return f"{int(value)}".replace("-", MINUS)
    return _scaled(value, ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")))


def seconds(value: float | None) -> str:
    """Format a time in seconds: 820 ns, 3.10 ms, 1.25 s, 2 min 5 s."""
    if value is not None and value >= 120:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes} min {rest} s"
    return _scaled(value, ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")))


def size(value: float | None) -> str:
    """Format bytes in binary units: 512 B, 1.20 MiB."""
    if value is not None and abs(value) < 1024:
        return f"{value:.0f} B"
    return _scaled(value, ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B")))


def ratio(value: float | None) -> str:
    """Format a ratio to the yardstick: 0.83×."""
    return MISSING if value is None else f"{_significant(value)}{TIMES}"


def percent(value: float | None, *, signed: bool = False, digits: int = 1) -> str:
    """Format a fraction as a percentage: 0.913 as 91.3 %, and −0.004 as −0.4 % or, with `signed`, +0.4 %."""
    if value is None:
        return MISSING
    number = 100 * value + 0.0
    text = f"{number:+.{digits}f}" if signed else f"{number:.{digits}f}"
    if float(text) == 0:
        text = f"{0:.{digits}f}"
    return text.replace("-", MINUS) + " %"


def plain(value: float | None, digits: int = 2) -> str:
    """Format with a fixed number of decimals and a typographic minus."""
    return MISSING if value is None else f"{value:,.{digits}f}".replace("-", MINUS)


def figure(value: float | None, digits: int = 4) -> str:
    """Format a figure of unknown size with significant digits: 2.081, 0.0004310, 1,234, 5.120e+12, 3.000e−05."""
    if value is not None and value != 0 and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}e}".replace("-", MINUS)
    return MISSING if value is None else _significant(value, digits)


def whole(value: float | None) -> str:
    """Format a length, a position or a step with thousands separated: 16,384."""
    return MISSING if value is None else f"{value:,.0f}".replace("-", MINUS)


def tick(formatter: Formatter) -> Formatter:
    """Return `formatter` without the zeros that end a decimal fraction: 10.0 ms becomes 10 ms."""
    return lambda value: _ENDING_ZEROS.sub(r"\1", formatter(value))


def setting(value: object) -> str:
    """Format any value of the settings, the machine or the data as one line of text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return MISSING
    if isinstance(value, list | tuple):
        return ", ".join(setting(item) for item in value) or MISSING
    if isinstance(value, dict):
        return ", ".join(f"{clean(key)}: {setting(item)}" for key, item in value.items()) or MISSING
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**15 else f"{value:.3e}"
    if isinstance(value, float):
        return f"{value:g}" if math.isfinite(value) else MISSING
    return clean(value)
