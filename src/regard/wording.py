"""Turning paths, numbers and foreign text into what a terminal and a results file can show."""

from __future__ import annotations

import difflib
import math
import os
import unicodedata
from collections.abc import Iterable

_BINARY_STEPS = ("B", "KiB", "MiB", "GiB", "TiB")


def shown(text: str | os.PathLike[str], limit: int = 200) -> str:
    """Foreign text in one line, without control characters, undecodable bytes or endless length.

    Args:
        text: a path or a message from elsewhere.
        limit: characters kept; the middle is cut out beyond.
    """
    line = " ".join("".join(map(_printable, os.fspath(text))).split())
    if len(line) <= limit:
        return line
    return f"{line[: limit // 2]}…{line[-(limit // 2) :]}"


def _printable(char: str) -> str:
    category = unicodedata.category(char)
    if category == "Cs":
        # a surrogate: a byte of a file name that is not UTF-8
        return "\ufffd"
    return " " if category.startswith("C") else char


def bytes_in_words(count: float) -> str:
    """A size with a binary unit: 1536 becomes "1.5 KiB"."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_BINARY_STEPS) - 1:
        value, unit = value / 1024, unit + 1
    digits = 0 if unit == 0 or value >= 100 else 1
    return f"{value:,.{digits}f} {_BINARY_STEPS[unit]}"


def ratio_in_words(ratio: float) -> str:
    """A ratio with two decimals, or below 0.1 with two significant digits: "12.30", "0.97", "0.0041"."""
    digits = 2 if ratio >= 0.1 or ratio <= 0 else 1 - math.floor(math.log10(ratio))
    return f"{ratio:.{digits}f}"


def suggestion(name: str, known: Iterable[str]) -> str:
    """What an unknown name may have meant: "did you mean bert?", or all that there is."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"


def count_in_words(count: int, noun: str, plural: str = "") -> str:
    """A number and its noun: "1 file", "1,204 files"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def listed(items: list[str], limit: int = 5) -> str:
    """Some of the items, and how many more there are."""
    rest = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {rest:,} more" if rest > 0 else "")
