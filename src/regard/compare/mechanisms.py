"""Which mechanisms can take part in a race, and how each is built for it. No torch until one is built."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

from regard.compare.race_tasks import TASKS
from regard.errors import UserError
from regard.metadata import Entry, No
from regard.registry import create, entry_of, get_class, systems
from regard.wording import shown

YARDSTICK = "softmax"
IMAGE_DIMENSIONS = 2
FEWEST_AGENTS = 4


def why_unfit(entry: Entry, task: str) -> str:
    """Why a mechanism cannot race in a task; empty where it can.

    Args:
        entry: the registered class.
        task: name of the task.
    """
    if entry.kind not in ("sequence", "feature") or entry.traits is None:
        return f"it is a {entry.kind}, not a mechanism"
    traits, race = entry.traits, TASKS[task]
    if entry.kind == "feature":
        if not race.feature_mixers:
            return "it acts on feature maps"
        if IMAGE_DIMENSIONS not in traits.spatial_dims:
            return "it does not act on two-dimensional feature maps"
    elif isinstance(traits.causal, No):
        if race.why_causal:
            return f"{race.why_causal}, and {traits.causal.reason}"
        if isinstance(traits.bidirectional, No):
            return f"it does not mix a sequence with itself: {traits.bidirectional.reason}"
    if isinstance(traits.any_length, No):
        return f"it is timed at several lengths, and {traits.any_length.reason}"
    return ""


def fitting(task: str) -> list[str]:
    """The names of all mechanisms that can race in a task: the yardstick first, the others in alphabetical order."""
    names = [name for name, entry in systems().items() if not why_unfit(entry, task)]
    return sorted(names, key=lambda name: (name != YARDSTICK, name))


def choose(task: str, wanted: str) -> tuple[str, ...]:
    """The mechanisms that the user named.

    Args:
        task: name of the task.
        wanted: names separated by commas, or "all".

    Raises:
        UserError: an unknown name (the nearest is suggested), or one that does not fit the task.
    """
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    possible = fitting(task)
    if names == ["all"]:
        return tuple(possible)
    if not names:
        raise UserError("--mechanisms names no mechanism: give names separated by commas, or all")
    known = systems()
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, possible, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"for {task} there are {', '.join(possible)}"
            raise UserError(f"unknown mechanism {shown(name)!r}: {hint}")
        if why := why_unfit(known[name], task):
            raise UserError(f"{name} cannot race in {task}: {why}")
    return tuple(dict.fromkeys(names))


def title_of(entry: Entry) -> str:
    """A name for people: the class's own name, its words and abbreviations apart."""
    # the capital at the end of ViT begins no word
    name = entry.qualname.rpartition(".")[2].replace("ViT", "vit")
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[a-z])(?=[0-9]d$)", " ", name)
    return apart.replace("vit", "ViT")


def is_causal(name: str, task: str) -> bool:
    """Whether a sequence mixer runs in its causal form: where the task asks for it, or it has no other."""
    traits = entry_of(name).traits
    return bool(TASKS[task].why_causal) or (traits is not None and isinstance(traits.bidirectional, No))


def make_feature_mixer(name: str, *, channels: int, num_heads: int) -> Any:
    """Build a feature mixer for this number of channels.

    Args:
        name: its public name.
        channels: number of channels.
        num_heads: heads, or groups of channels, for mechanisms that have them; the largest divisor that `channels`
            share with it is taken.
    """
    accepted = inspect.signature(get_class(name)).parameters
    wanted = {"num_heads": math.gcd(channels, num_heads), "num_groups": math.gcd(channels, num_heads)}
    # biases between agents and positions would outweigh a small network
    wanted["num_agents"] = FEWEST_AGENTS
    return create(name, channels=channels, **{option: wanted[option] for option in wanted if option in accepted})


def import_outsider(target: str) -> None:
    """Import a module, or run a Python file, that registers mechanisms of its own.

    Args:
        target: the name of an importable module, or a path that ends in `.py`.

    Raises:
        UserError: it cannot be imported, or registers nothing.
    """
    before = set(systems())
    is_file = target.endswith(".py")
    name = _module_name(Path(target)) if is_file else target
    if is_file and not Path(target).is_file():
        raise UserError(f"cannot import {shown(target)}: there is no such file")
    if name in sys.modules:
        return
    try:
        _run_file(name, Path(target)) if is_file else importlib.import_module(name)
        if set(systems()) == before:
            raise UserError(f"{shown(target)} registers no mechanism: decorate its class with regard.register")
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot import {shown(target)}: {type(error).__name__}: {shown(str(error))}") from error


def _module_name(path: Path) -> str:
    """A name of its own for every file, also for those that are called alike."""
    digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]
    return f"regard_import_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{digest}"


def _run_file(name: str, path: Path) -> None:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # dataclasses and pickles look their module up by name
    sys.modules[name] = module
    spec.loader.exec_module(module)
