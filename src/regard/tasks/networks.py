"""From a system's name to a network for a task, and from a network's config to plain data and back."""

from __future__ import annotations

import difflib
import importlib
import json
import typing
from collections.abc import Mapping
from dataclasses import fields, replace
from types import NoneType, UnionType
from typing import Any

from torch import nn

from regard.contract import Model
from regard.errors import UserError
from regard.metadata import Entry
from regard.registry import UnknownSystemError, entry_of, get_class, systems
from regard.tasks.task import Task

TASKS = {
    "language": "regard.tasks.language:Language",
    "forecasting": "regard.tasks.series.forecasting:Forecasting",
    "series_classification": "regard.tasks.series.classification:SeriesClassification",
    "events": "regard.tasks.series.events:Events",
    "control": "regard.tasks.series.control:Control",
    "translation": "regard.tasks.translation:Translation",
    "classification": "regard.tasks.classification:Classification",
    "segmentation": "regard.tasks.segmentation:Segmentation",
    "medical_classification": "regard.tasks.medical_classification:MedicalClassification",
}
HOSTS = {
    "language": "decoder_lm",
    "forecasting": "aaren_forecaster",
    "series_classification": "aaren_series_classifier",
    "events": "aaren_event_model",
    "control": "aaren_decision_transformer",
    "classification": "vit",
}
"""By task, the network that takes any mixer; language and series need a causal one, images one that sees both ways."""


def task_class(name: str) -> type[Task]:
    """The class of a task.

    Raises:
        UserError: no such task; the nearest is suggested.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        raise UserError(f"unknown task {name!r}: " + (f"did you mean {near[0]}?" if near else ", ".join(TASKS)))
    module, _, qualname = TASKS[name].partition(":")
    return getattr(importlib.import_module(module), qualname)


def models_of(system: str) -> dict[str, tuple[str, ...]]:
    """The networks that a name stands for, by the task that trains them.

    Args:
        system: a network's registered name, a variant's, a mechanism's, or a system's id.

    Returns:
        Names of networks by task, the preferred first; for a mechanism without a network of its own, those of the
        hosts that can take it.

    Raises:
        UserError: no such name, or nothing that can be trained.
    """
    entry = _entry(system)
    if entry is not None and entry.kind == "model":
        return {_task_of(entry.name): (system,)}
    own: dict[str, tuple[str, ...]] = {}
    # a baseline that comes with a system is older than the system
    order = sorted(
        systems("model").items(), key=lambda item: (not item[0].startswith(system), -item[1].paper.year, item[0])
    )
    for name, other in order:
        if other.system == system and (task := _task_of(name)):
            own[task] = (*own.get(task, ()), name)
    own = {task: own[task] for task in TASKS if task in own}
    if entry is None:
        if own:
            return own
        raise UserError(str(_unknown(system)))
    if entry.kind != "sequence" or entry.traits is None:
        raise UserError(f"{system} is a {entry.kind} mixer without a network that can be trained on its own")
    for task, host in HOSTS.items():
        fits = entry.traits.bidirectional if task == "classification" else entry.traits.causal
        if fits and entry.traits.any_length:
            own.setdefault(task, (host,))
    return own


def _entry(name: str) -> Entry | None:
    try:
        return entry_of(name)
    except UnknownSystemError:
        return None


def _unknown(system: str) -> UnknownSystemError:
    try:
        entry_of(system)
    except UnknownSystemError as error:
        return error
    raise AssertionError(f"{system} is known")


def _task_of(model: str) -> str:
    return getattr(get_class(model), "task", "")


def default_config(model: str) -> Any:
    """Where a network's config starts: a variant's own, or the class's `SMALL`.

    Raises:
        ValueError: the name is not a network's, or its network is not trained by a task.
    """
    cls: Any = get_class(model)
    if getattr(cls, "task", None) not in TASKS or not issubclass(cls, Model):
        raise ValueError(f"{model} is no network that a task trains")
    variants = getattr(cls, "VARIANTS", {})
    return variants[model].config if model in variants else cls.SMALL


def configure(
    system: str, model: str, decided: Mapping[str, Any], wanted: Mapping[str, str], *, start: Any = None
) -> Any:
    """The config of a network.

    Args:
        system: what the user named; a mechanism is put into a network that takes any.
        model: the network's name.
        decided: fields that the data decide.
        wanted: fields that the user sets, as texts.
        start: the config that is changed; None = the network's own.

    Raises:
        UserError: an unknown field (the nearest is suggested), a value that does not fit, or one that data decide.
    """
    config = default_config(model) if start is None else start
    known = {item.name for item in fields(config)}
    entry = _entry(system)
    given: dict[str, Any] = {name: value for name, value in decided.items() if name in known}
    if "mixer" in known and entry is not None and entry.kind == "sequence":
        given["mixer"] = system
    typed = parse_fields(type(config), wanted, what=model)
    for name in typed:
        if name in decided:
            raise UserError(f"{name} is decided by the data ({decided[name]}) and cannot be set")
    try:
        return replace(config, **given, **{name: value for name, value in typed.items() if name not in given})
    except (TypeError, ValueError) as error:
        raise UserError(f"{model}: {error}") from error


def build(model: str, config: Any) -> nn.Module:
    """Build a network.

    Raises:
        UserError: the network refuses the config.
    """
    cls: Any = get_class(model)
    try:
        return cls(config)
    except (TypeError, ValueError, UnknownSystemError) as error:
        raise UserError(f"{model}: {error}") from error


def parse_fields(cls: type, wanted: Mapping[str, str], *, what: str) -> dict[str, Any]:
    """Texts as the values of a dataclass's fields.

    Raises:
        UserError: an unknown field, or a text that is no value of the field's type.
    """
    hints = typing.get_type_hints(cls)
    names = [item.name for item in fields(cls)]
    values = {}
    for name, text in wanted.items():
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(names)}"
            raise UserError(f"{what} has no setting {name!r}: {hint}")
        values[name] = _value(text, hints[name], f"{what}: {name}")
    return values


def _value(text: str, kind: Any, name: str) -> Any:
    try:
        plain = json.loads(text)
    except ValueError:
        plain = {"True": True, "False": False, "None": None}.get(text, text)
    try:
        return from_plain(plain, kind)
    except TypeError:
        raise UserError(f"{name} must be {_kind_in_words(kind)}, got {text!r}") from None


def _kind_in_words(kind: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "none"}
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return " or ".join(map(str, inner))
    if origin in (UnionType, typing.Union):
        return " or ".join(map(_kind_in_words, inner))
    if origin is tuple:
        return "a list"
    return words.get(kind, "a JSON object")


def from_plain(value: Any, kind: Any) -> Any:
    """Plain JSON data as a value of an annotated type.

    Raises:
        TypeError: it is not one.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        if value in inner:
            return value
    elif origin in (UnionType, typing.Union):
        for part in inner:
            try:
                return from_plain(value, part)
            except TypeError:
                continue
    elif origin is tuple:
        if isinstance(value, list | tuple):
            kinds = [inner[0]] * len(value) if len(inner) == 2 and inner[1] is Ellipsis else inner
            if len(kinds) == len(value):
                return tuple(from_plain(item, part) for item, part in zip(value, kinds, strict=True))
    elif kind is Any or (kind is NoneType and value is None):
        return value
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    elif origin is not None and isinstance(value, Mapping) and isinstance(value, origin):
        return dict(value)
    raise TypeError(f"{value!r} is not {kind}")


def config_from_plain(cls: type, stored: Mapping[str, Any]) -> Any:
    """A config dataclass from what `vars`-like plain data of it say.

    Raises:
        TypeError: an unknown or a missing field, or a value of the wrong type; it is named.
        ValueError: a value that the config refuses.
    """
    hints = typing.get_type_hints(cls)
    names = {item.name for item in fields(cls)}
    if set(stored) != names:
        raise TypeError(f"fields {sorted(set(stored) ^ names)} are unknown or missing")
    values = {}
    for name, value in stored.items():
        try:
            values[name] = from_plain(value, hints[name])
        except TypeError:
            raise TypeError(f"{name} must be {_kind_in_words(hints[name])}, got {value!r}") from None
    return cls(**values)


def config_to_plain(config: Any) -> dict[str, Any]:
    """A config's fields as plain JSON data; nested mappings become dictionaries, tuples lists."""
    return json.loads(json.dumps({item.name: getattr(config, item.name) for item in fields(config)}, default=dict))


def count_parameters(model: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


__all__ = ["Model", "build", "configure", "models_of", "task_class"]
