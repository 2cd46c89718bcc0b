"""`regard list`: all mechanisms and what each can do."""

from __future__ import annotations

import json as json_format
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from regard.metadata import SEQUENCE_CAPABILITIES, SHARED_CAPABILITIES, Entry
from regard.registry import systems

if TYPE_CHECKING:
    from rich.table import Table

EXAMPLES = """
  regard list
  regard list --causal true --decodes true
  regard list --kind feature --json
"""

MARKS = {
    "causal": "c",
    "bidirectional": "b",
    "cross": "x",
    "masks": "m",
    "segments": "s",
    "bias": "a",
    "decodes": "d",
    "step_exact": "=",
    "any_length": "n",
    "has_map": "M",
    "row_stochastic": "1",
    "exports": "E",
    "compiles": "C",
}
assert tuple(MARKS) == SEQUENCE_CAPABILITIES + SHARED_CAPABILITIES


def run(
    *,
    json: bool = False,
    kind: Literal["sequence", "feature", "model"] | None = None,
    causal: bool | None = None,
    bidirectional: bool | None = None,
    cross: bool | None = None,
    masks: bool | None = None,
    segments: bool | None = None,
    bias: bool | None = None,
    decodes: bool | None = None,
    step_exact: bool | None = None,
    any_length: bool | None = None,
    has_map: bool | None = None,
    row_stochastic: bool | None = None,
    exports: bool | None = None,
    compiles: bool | None = None,
) -> int:
    """List all mechanisms and what each can do; options keep only those that fit.

    A model has no capabilities of its own, so that an option on a capability leaves models out.

    Args:
        json: print JSON, with the reason for each capability that is missing.
        kind: only sequence mixers, feature mixers or models.
        causal: has a form in which the future has no influence.
        bidirectional: has a form in which every token sees every other.
        cross: takes a context (cross-attention).
        masks: takes a mask of real tokens.
        segments: takes packed sequences.
        bias: takes a bias that is added to the scores.
        decodes: has a state and steps.
        step_exact: steps over any chunking equal the whole.
        any_length: takes any number of tokens, or any size.
        has_map: offers its attention map.
        row_stochastic: the map's rows are not negative and sum to 1.
        exports: passes torch.export.
        compiles: passes torch.compile without graph breaks.
    """
    wanted = {
        "causal": causal,
        "bidirectional": bidirectional,
        "cross": cross,
        "masks": masks,
        "segments": segments,
        "bias": bias,
        "decodes": decodes,
        "step_exact": step_exact,
        "any_length": any_length,
        "has_map": has_map,
        "row_stochastic": row_stochastic,
        "exports": exports,
        "compiles": compiles,
    }
    asked = {name: value for name, value in wanted.items() if value is not None}
    entries = [entry for entry in systems(kind).values() if _fits(entry, asked)]
    if json:
        print(json_format.dumps([as_json(entry) for entry in entries], indent=1))
        return 0
    _print(entries)
    return 0


def _fits(entry: Entry, asked: dict[str, bool]) -> bool:
    if not asked:
        return True
    if entry.traits is None:
        return False
    capabilities = entry.traits.capabilities()
    return all(bool(capabilities[name]) == value for name, value in asked.items())


def as_json(entry: Entry) -> dict[str, Any]:
    """An entry as plain data."""
    return {
        "name": entry.name,
        "system": entry.system,
        "kind": entry.kind,
        "summary": entry.summary,
        "variants": list(entry.variants),
        "paper": asdict(entry.paper),
        "traits": entry.traits.as_json() if entry.traits is not None else None,
    }


def _print(entries: list[Entry]) -> None:
    from regard.cli.console import output

    console = output()
    if not entries:
        console.print("no mechanism fits")
        return
    console.print(_table(entries, console.width))
    console.print(f"\n{len(entries)} entries. " + ", ".join(f"{mark} {name}" for name, mark in MARKS.items()))


def _row(entry: Entry) -> list[str]:
    traits = entry.traits
    held = traits.capabilities() if traits is not None else {}
    marks = "".join(mark if held[name] else "." for name, mark in MARKS.items()) if held else ""
    orders = (traits.time, traits.memory) if traits is not None else ("", "")
    return [entry.name, entry.system, entry.kind, *orders, marks, str(entry.paper.year)]


def _table(entries: list[Entry], width: int) -> Table:
    """One line per entry: where a line would be too long, the system's name is cut, never the entry's."""
    from rich.table import Table

    headings = ("name", "system", "kind", "time", "memory", "can", "year")
    rows = [_row(entry) for entry in entries]
    natural = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    # rich reserves the padding of the outer edges too, although it does not print it
    padding = 2 * len(headings)
    spare = width - padding - (sum(natural) - natural[1])
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for heading, size in zip(headings, natural, strict=True):
        fitted = min(size, max(spare, 1)) if heading == "system" else size
        table.add_column(heading, no_wrap=True, overflow="ellipsis", width=fitted)
    for row in rows:
        table.add_row(*row)
    return table
