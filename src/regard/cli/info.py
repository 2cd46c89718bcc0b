"""`regard info`: everything that is known of one mechanism."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regard.metadata import Entry, Example, No, Reported, Variant
from regard.registry import UnknownSystemError, create, entry_of, get_class, systems

if TYPE_CHECKING:
    from regard.cli.console import Console

EXAMPLES = """
  regard info softmax
  regard info eca
"""

KINDS = {"sequence": "sequence mixer", "feature": "feature mixer"}
STORED_CASES = Path(__file__).resolve().parents[3] / "tests" / "parity" / "cases"

Rows = Iterator[tuple[str, str]]


def run(name: str) -> int:
    """Show what is known of a mechanism: paper, capabilities with the reason for each that is missing, arguments, cost.

    Args:
        name: a name of `regard list`, of a model's variant, or of a system (then all of its mechanisms and networks are
            shown).
    """
    from regard.cli.console import output

    console = output()
    for number, entry in enumerate(_entries(name)):
        if number:
            console.print()
        _print(entry, console)
    return 0


def _entries(name: str) -> list[Entry]:
    """The entry of a name; for a system's, all of its entries, the one of the same name first."""
    of_system = [entry for entry in systems().values() if entry.system == name]
    try:
        named = entry_of(name)
    except UnknownSystemError:
        if not of_system:
            raise
        return of_system
    return [named, *(entry for entry in of_system if entry.name != named.name)]


def _print(entry: Entry, console: Console) -> None:
    from rich.table import Table

    console.print(f"{entry.name}: {entry.summary}", style="bold")
    rows = Table.grid(padding=(0, 2))
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold")
    parts = (_origin, _capabilities, _arguments, _cost, _variants, _trust)
    for part in parts:
        for label, text in part(entry):
            rows.add_row(label, text)
    console.print(rows)


def _origin(entry: Entry) -> Rows:
    paper = entry.paper
    yield "system", f"{entry.system} ({KINDS.get(entry.kind, entry.kind)}, {entry.module}.{entry.qualname})"
    yield (
        "paper",
        f"{paper.title}. {paper.authors}, {paper.venue} {paper.year}" + (f" ({paper.where})" if paper.where else ""),
    )
    yield "", paper.url
    yield "code", paper.code or "none published"


def _capabilities(entry: Entry) -> Rows:
    traits = entry.traits
    if traits is None:
        return
    yield "time, memory", f"{traits.time}, {traits.memory} in the number of tokens"
    if traits.spatial_dims:
        yield "space", " or ".join(f"{number}-D" for number in traits.spatial_dims)
    for name, value in traits.capabilities().items():
        yield name, f"no: {value.reason}" if isinstance(value, No) else "yes"
    if traits.causality != "strict":
        yield "causality", "the future may influence which keys are chosen, but not their values"
    if traits.training_free:
        yield "training free", "can replace softmax attention in a trained model without training"


def _arguments(entry: Entry) -> Rows:
    cls: Any = get_class(entry.name)
    variants = getattr(cls, "VARIANTS", None)
    if variants:
        config = next(iter(variants.values())).config
        shown = [_shown(item.name, item.type, item.default, MISSING) for item in fields(config)]
    else:
        parameters = inspect.signature(cls).parameters.values()
        shown = [_shown(item.name, item.annotation, item.default, inspect.Parameter.empty) for item in parameters]
    yield "arguments", ", ".join(shown)


def _shown(name: str, kind: Any, default: Any, no_default: Any) -> str:
    type_name = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
    return f"{name}: {type_name}" + ("" if default is no_default else f" = {default!r}")


def _cost(entry: Entry) -> Rows:
    cls: Any = get_class(entry.name)
    example: Example | None = getattr(cls, "example", None)
    if example is None or entry.traits is None:
        return
    options = dict(example.kwargs)
    if "causal" in inspect.signature(cls).parameters:
        options["causal"] = bool(entry.traits.causal)
    parameters = sum(parameter.numel() for parameter in create(entry.name, **options).parameters())
    if entry.kind == "feature":
        sizes: dict[str, Any] = {"batch": example.batch, "space": example.space}
    else:
        sizes = {"batch": example.batch, "tokens": example.tokens}
    called = ", ".join(f"{name}={value!r}" for name, value in (options | sizes).items())
    yield "example", f"{called}: {parameters:,} parameters, {cls.macs(**sizes, **options):,} MACs"


def _variants(entry: Entry) -> Rows:
    variants: dict[str, Variant] = getattr(get_class(entry.name), "VARIANTS", {})
    label = "variants"
    cls: Any = get_class(entry.name)
    for name, variant in variants.items():
        yield label, f"{name}: {_counted(cls, variant)}; {_reported(variant.reported)}"
        label = ""


def _counted(cls: Any, variant: Variant) -> str:
    """What the network has and takes, counted without memory for it."""
    import torch

    from regard.measure import contraction_macs
    from regard.meta_device import sizes_only

    config = variant.config
    with sizes_only():
        model = cls(config).eval()
        parameters = sum(parameter.numel() for parameter in model.parameters())
        if not hasattr(config, "in_channels"):
            return f"{parameters:,} parameters"
        size = variant.image_size
        macs = contraction_macs(lambda: model(torch.empty(1, config.in_channels, size, size)))
    return f"{parameters:,} parameters, {macs / 1e9:.4g} G MACs at {size} x {size}"


def _reported(reported: Reported) -> str:
    figures = []
    if reported.params is not None:
        figures.append(f"{reported.params / 1e6:.4g} M parameters")
    if reported.macs is not None:
        figures.append(f"{reported.macs / 1e9:.4g} G MACs")
    where = f" ({reported.where})" if reported.where else ""
    return f"the paper reports {', '.join(figures)}{where}" if figures else "the paper reports no figures"


def _trust(entry: Entry) -> Rows:
    from regard.claims import claims_of, known_systems
    from regard.parity.adapters import AdapterError, entries
    from regard.parity.cases import find_cases

    try:
        adapters = f"{len(entries(entry.system))} entries of the reference"
    except AdapterError:
        adapters = "no adapters"
    # stored with the sources, not with an installed package
    cases = len(find_cases(STORED_CASES / entry.system)) if STORED_CASES.is_dir() else None
    yield "parity", adapters if cases is None else f"{adapters}, {cases} stored cases"
    claims = claims_of(entry.system) if entry.system in known_systems() else []
    grades = Counter(registered.claim.grade for registered in claims)
    yield "claims", ", ".join(f"{count} {grade}" for grade, count in grades.items()) or "none"
