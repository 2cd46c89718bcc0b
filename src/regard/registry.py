"""The registry: `@register`, `create()`, `systems()`. No torch until something is created.

A class is registered by one decorator in its own file. Inside the package the generated `_index.py` says which
module to import on demand; outside it, `@register` works at run time and needs no index.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from regard.metadata import Entry, Example, Paper, Traits

Class = TypeVar("Class", bound=type)

_runtime: dict[str, Entry] = {}
_classes: dict[str, type] = {}


class UnknownSystemError(LookupError):
    """No such name in the registry; the message suggests the nearest."""

    def __str__(self) -> str:
        return str(self.args[0])


def _index() -> Mapping[str, Entry]:
    from regard._index import INDEX

    return INDEX


def _public_names(entry: Entry) -> set[str]:
    return {entry.name, *entry.variants}


def _refuse_taken_names(entry: Entry, known: Mapping[str, Entry]) -> None:
    for other in known.values():
        same_class = (other.module, other.qualname) == (entry.module, entry.qualname)
        taken = _public_names(entry) & _public_names(other)
        if taken and not (same_class and other.name == entry.name):
            raise ValueError(
                f"the name {sorted(taken)[0]!r} is registered twice: by {other.module}.{other.qualname} "
                f"and by {entry.module}.{entry.qualname}"
            )


def _summary(cls: type) -> str:
    first_line = (inspect.getdoc(cls) or "").strip().split("\n")[0]
    if not first_line:
        raise ValueError(f"{cls.__qualname__} needs a docstring: its first line is shown by `regard list`")
    return first_line.rstrip(".")


def register(
    *,
    name: str,
    system: str,
    paper: Paper,
    traits: Traits | None = None,
    example: Example | None = None,
) -> Callable[[Class], Class]:
    """Register the decorated class under `name`.

    Args:
        name: public name, unique over all systems and variants.
        system: id of the paper's system; a system may have several names.
        paper: where it comes from.
        traits: what it can do (mixers).
        example: awkward sizes to check it on (mixers).

    Raises:
        ValueError: the name is taken, or the class has no docstring.
    """

    def decorate(cls: Class) -> Class:
        entry = Entry(
            name=name,
            system=system,
            kind=getattr(cls, "kind", "other"),
            module=cls.__module__,
            qualname=cls.__qualname__,
            summary=_summary(cls),
            paper=paper,
            traits=traits,
            variants=tuple(getattr(cls, "VARIANTS", ())),
        )
        _refuse_taken_names(entry, _runtime)
        if not _index_is_being_built:
            _refuse_taken_names(entry, _index())
        cls.registered_name = name  # type: ignore[attr-defined]
        cls.system = system  # type: ignore[attr-defined]
        cls.paper = paper  # type: ignore[attr-defined]
        if traits is not None:
            cls.traits = traits  # type: ignore[attr-defined]
        if example is not None:
            cls.example = example  # type: ignore[attr-defined]
        _runtime[name] = entry
        _classes[name] = cls
        return cls

    return decorate


_index_is_being_built = False
_REGISTERING_FOLDERS = ("mixers", "models", "tasks", "training", "analysis", "search")


def collect_for_index() -> dict[str, Entry]:
    """Import every module that may register something and return what it registered (for `build_index`)."""
    global _index_is_being_built
    package = __name__.partition(".")[0]
    _index_is_being_built = True
    try:
        for folder in _REGISTERING_FOLDERS:
            _import_all_below(f"{package}.{folder}")
    finally:
        _index_is_being_built = False
    return {name: entry for name, entry in sorted(_runtime.items()) if entry.module.startswith(f"{package}.")}


def _import_all_below(name: str) -> None:
    try:
        package = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        importlib.import_module(module.name)


def systems(kind: str | None = None) -> dict[str, Entry]:
    """All registered entries by public name, in alphabetical order; torch is not imported.

    Args:
        kind: only entries of this kind ("sequence", "feature", "model", ...).
    """
    everything = {**_index(), **_runtime}
    return {name: everything[name] for name in sorted(everything) if kind in (None, everything[name].kind)}


def entry_of(name: str) -> Entry:
    """The entry of a public name or of a model variant's name.

    Raises:
        UnknownSystemError: no such name; the message suggests the nearest.
    """
    known = systems()
    if name in known:
        return known[name]
    names: dict[str, Entry] = {public: entry for entry in known.values() for public in _public_names(entry)}
    if name in names:
        return names[name]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`regard list` shows all names"
    raise UnknownSystemError(f"unknown system {name!r}: {hint}")


def get_class(name: str) -> type:
    """The class registered under a public name (or under one of its variants' names).

    Raises:
        UnknownSystemError: no such name.
    """
    entry = entry_of(name)
    if entry.name in _classes:
        return _classes[entry.name]
    found: Any = importlib.import_module(entry.module)
    for part in entry.qualname.split("."):
        found = getattr(found, part)
    return found


def _refuse_unknown_options(name: str, options: Mapping[str, Any], allowed: list[str]) -> None:
    for option in options:
        if option not in allowed:
            near = difflib.get_close_matches(option, allowed, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(allowed)}"
            raise TypeError(f"{name} has no option {option!r}: {hint}")


def create(name: str, **options: Any) -> Any:
    """Build a registered mixer or model by name.

    Args:
        name: a public name (`"lightning"`) or a model variant's (`"eca_resnet50"`).
        options: constructor arguments; for a model, fields of its config that differ from the variant's.

    Raises:
        UnknownSystemError: unknown name; the message suggests the nearest.
        TypeError: unknown option; the message suggests the nearest.
        ValueError: an option has a value that the mechanism refuses.

    Example:
        >>> mixer = create("lightning", dim=64, num_heads=4, causal=True)
    """
    cls = get_class(name)
    variants = getattr(cls, "VARIANTS", None)
    if variants is None:
        _refuse_unknown_options(name, options, list(inspect.signature(cls).parameters))
        return cls(**options)
    if name in variants:
        config = variants[name].config
    else:
        config = next(iter(variants.values())).config if variants else cls.SMALL  # type: ignore[attr-defined]
    _refuse_unknown_options(name, options, [item.name for item in fields(config)])
    return cls(replace(config, **options))
