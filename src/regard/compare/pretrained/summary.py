"""The outcome of a race inside a trained model on a terminal: the ranked table and what its columns mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from regard.compare.rank import cost_ratio, longest
from regard.compare.summary import MISSING, Column, drawn_table, ratio_or_dash
from regard.wording import bytes_in_words, shown

Row = Mapping[str, Any]


def table(results: Mapping[str, Any], *, width: int) -> Table:
    """The finished rows, best first.

    Args:
        results: the content of `results.json`.
        width: columns of the terminal.
    """
    rows = sorted((row for row in results["rows"] if row["status"] == "ok"), key=lambda row: row["rank"])
    return drawn_table(_columns(rows), rows, width=width)


def _columns(rows: Sequence[Row]) -> list[Column]:
    at = longest(rows)
    return [
        Column("\n#", lambda row: f"{row['rank']}{'*' if row['pareto'] else ' '}"),
        Column("\nattention", lambda row: shown(row["name"], 24)),
        Column(f"perplexity\nat {at:,}" if at else "perplexity\n", lambda row: f"{row['quality']['mean']:.3f}"),
        Column("against\nfull", lambda row: _last(row, "excess", "+.1%")),
        Column("hidden\nfound", lambda row: _last(row, "needle", ".0%")),
        Column("mass\nfound", lambda row: _last(row, "mass", ".1%"), 1),
        Column("prompt\nx", lambda row: ratio_or_dash(cost_ratio(row, at))),
        Column("token\nx", lambda row: ratio_or_dash(row["decode"]["ratio"][-1])),
        Column("\ncache", lambda row: bytes_in_words(row["decode"]["state_bytes"][-1])),
        Column("prompt\nmemory", lambda row: _size(row["cost"]["peak_bytes"][-1]), 2),
    ]


def _last(row: Row, key: str, number: str) -> str:
    column = row["inference"].get(key)
    return MISSING if not column or column[-1] is None else f"{column[-1]:{number}}"


def _size(value: float | None) -> str:
    return MISSING if value is None else bytes_in_words(value)


def legend(results: Mapping[str, Any]) -> str:
    """What the columns mean."""
    return (
        f"* Pareto front of perplexity and prompt time; x: times {shown(results['yardstick'], 24)}'s; "
        "hidden: tokens of hidden numbers; mass: full attention's on the keys that are attended to"
    )
