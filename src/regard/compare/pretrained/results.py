"""From what was measured inside a trained model to rows, their ranking, a recommendation and a table as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from regard._version import VERSION
from regard.compare.pretrained.settings import TASK, YARDSTICK, PretrainedSettings
from regard.compare.rank import cost_ratio, finished, longest, rank
from regard.compare.results import SCHEMA, cell, machine
from regard.wording import bytes_in_words, ratio_in_words

Row = Mapping[str, Any]
MARGIN = 0.02
"""How much larger than full attention's a perplexity may be, relatively, to count as kept."""
NEEDLE_MARGIN = 0.1
"""How much of the hidden numbers may be lost against full attention, to count as kept."""


def assemble(
    settings: PretrainedSettings,
    rows: Sequence[Row],
    *,
    data: Mapping[str, Any],
    created: str,
    done: bool,
    threads: int,
) -> dict[str, Any]:
    """Everything that a race writes to `results.json`.

    Args:
        settings: of the race.
        rows: as far as they are there.
        data: what the texts and the model are.
        created: when the race began.
        done: whether it came to its end.
        threads: CPU threads that timings ran with.
    """
    ranked = rank(with_distance(rows))
    return {
        "schema": SCHEMA,
        "regard": VERSION,
        "task": TASK,
        "created": created,
        "finished": done,
        "command": settings.command_line(),
        "settings": settings.as_json(),
        "machine": {**machine(settings.device), "threads": threads},
        "data": dict(data),
        "yardstick": YARDSTICK,
        "baselines": {},
        "rows": ranked,
        "recommendation": recommend(ranked),
    }


def with_distance(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows with how much larger than the yardstick's their perplexity is at every length, relatively."""
    own = next((row for row in rows if row["name"] == YARDSTICK and row["status"] == "ok"), None)
    found = []
    for row in rows:
        inference = row.get("inference")
        if inference is not None and own is not None:
            there = dict(zip(own["inference"]["lengths"], own["inference"]["perplexity"], strict=True))
            excess = [
                value / there[length] - 1
                for length, value in zip(inference["lengths"], inference["perplexity"], strict=True)
            ]
            row = {**row, "inference": {**inference, "excess": excess}}
        found.append(dict(row))
    return found


def quality(perplexities: Sequence[float]) -> dict[str, Any]:
    """The quality of a row: its perplexity at the longest length."""
    value = perplexities[-1]
    return {"metric": "perplexity", "better": "lower", "mean": value, "spread": None, "per_seed": [value]}


def perplexity(loss: float) -> float:
    """Perplexity of a mean loss per token; kept within the range of numbers."""
    return math.exp(min(loss, 700.0))


# --------------------------------------------------------------------------------------------------- recommendation


def kept(rows: Sequence[Row]) -> list[Row]:
    """The rows whose perplexity and retrieval at the longest length are about full attention's, that one included."""
    own = next((row for row in rows if row["name"] == YARDSTICK), None)
    if own is None:
        return list(rows)
    return [row for row in rows if _keeps_perplexity(row) and _keeps_needles(row, own)]


def _keeps_perplexity(row: Row) -> bool:
    return bool(row["inference"]["excess"][-1] <= MARGIN)


def _keeps_needles(row: Row, own: Row) -> bool:
    found, there = row["inference"]["needle"][-1], own["inference"]["needle"][-1]
    return there is None or (found is not None and found >= there - NEEDLE_MARGIN)


def recommend(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Answers to three questions, each from the rows' own figures; full attention itself may be one."""
    ok = finished(rows)
    good = [row for row in kept(ok) if row["name"] != YARDSTICK]
    if not ok:
        return []
    if not good:
        nearest = next((row for row in ok if row["name"] != YARDSTICK), ok[0])
        sentence = (
            f"{_figures(nearest)}: none keeps within {MARGIN:.0%} of full attention's perplexity and its retrieval."
        )
        return [{"question": "Nearest to full attention", "name": nearest["name"], "sentence": sentence}]
    at = longest(ok)
    own = next((row for row in ok if row["name"] == YARDSTICK), None)
    time = f"times {YARDSTICK}'s time"
    answers = [
        _least(good, own, "Shortest prompt", lambda row: cost_ratio(row, at), f"{time} for {at:,} tokens"),
        _least(good, own, "Fastest decoding", _decode_ratio, f"{time} per token"),
        _least(good, own, "Smallest cache", _cache_bytes, "", size=True),
    ]
    return [answer for answer in answers if answer is not None]


def _least(
    rows: Sequence[Row],
    own: Row | None,
    question: str,
    figure: Callable[[Row], float | None],
    words: str,
    *,
    size: bool = False,
) -> dict[str, str] | None:
    """The row with the least figure, or full attention where its own is no larger."""
    known = [(value, row) for row in rows if (value := figure(row)) is not None]
    if not known:
        return None
    value, row = min(known, key=lambda pair: pair[0])
    told = bytes_in_words(value) if size else f"{ratio_in_words(value)} {words}"
    there = None if own is None else figure(own)
    if own is not None and there is not None and there <= value:
        besides = f"{row['name']} comes next, with {told}" if len(known) > 1 else f"{row['name']} takes {told}"
        sentence = f"The model's own attention: none that keeps its quality to {MARGIN:.0%} takes less. {besides}."
        return {"question": question, "name": own["name"], "sentence": sentence}
    count = f"the least of the {len(known)} that keep" if len(known) > 1 else "the only one that keeps"
    sentence = f"{told}, {count} full attention's quality to {MARGIN:.0%}. {_figures(row)}."
    return {"question": question, "name": row["name"], "sentence": sentence}


def _figures(row: Row) -> str:
    inference = row["inference"]
    told = f"Perplexity {row['quality']['mean']:.3f}"
    if inference.get("excess"):
        told += f", {100 * inference['excess'][-1]:+.1f} % against full attention"
    if inference["needle"][-1] is not None:
        told += f", {inference['needle'][-1]:.0%} of the hidden numbers' tokens found"
    return told


def _decode_ratio(row: Row) -> float | None:
    decode = row.get("decode")
    return decode["ratio"][-1] if decode else None


def _cache_bytes(row: Row) -> float | None:
    decode = row.get("decode")
    return decode["state_bytes"][-1] if decode else None


# --------------------------------------------------------------------------------------------------- csv

_COLUMNS = (
    "rank",
    "name",
    "mechanism",
    "budget",
    "status",
    "why",
    "length",
    "perplexity",
    "excess",
    "needle",
    "mass",
    "prefill_s",
    "prefill_ratio",
    "peak_bytes",
    "s_per_token",
    "decode_ratio",
    "cache_bytes",
    "pareto",
)


def as_csv(results: Mapping[str, Any]) -> str:
    """A line per row and length."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in results["rows"]:
        base = {key: row.get(key) for key in ("rank", "name", "mechanism", "budget", "status", "why", "pareto")}
        inference = row.get("inference")
        if inference is None:
            writer.writerow({**base, "why": cell(row.get("why", ""))})
            continue
        cost, decode = row["cost"], row["decode"]
        columns = {
            "length": inference["lengths"],
            **{key: inference.get(key) for key in ("perplexity", "excess", "needle", "mass")},
            "prefill_s": cost["forward_s"],
            "prefill_ratio": cost["ratio"],
            "peak_bytes": cost["peak_bytes"],
            "s_per_token": decode["s_per_token"],
            "decode_ratio": decode["ratio"],
            "cache_bytes": decode["state_bytes"],
        }
        for place in range(len(inference["lengths"])):
            writer.writerow({**base, **{key: column and column[place] for key, column in columns.items()}})
    return stream.getvalue()
