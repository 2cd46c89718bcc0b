"""A run from a system's name and the user's files to a folder with a checkpoint: planned, started, taken up again."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import torch
from torch import Tensor, nn

from regard.errors import UserError
from regard.files import missing_folders, remove_empty, write_atomically
from regard.meta_device import sizes_only
from regard.registry import get_class
from regard.tasks import checkpoint
from regard.tasks.checkpoint import BEST, LAST
from regard.tasks.data_kind import kind_of
from regard.tasks.networks import (
    TASKS,
    build,
    config_from_plain,
    configure,
    count_parameters,
    from_plain,
    models_of,
    parse_fields,
)
from regard.tasks.networks import task_class as class_of
from regard.tasks.pretrained import read_pretrained
from regard.tasks.recipe import Recipe
from regard.tasks.set_option import share_out
from regard.tasks.task import Task
from regard.wording import shown

if TYPE_CHECKING:
    from regard.tasks.fit import Hardware, Outcome

RUN = "run.json"
PLAIN_RUN_KEYS = ("system", "task", "data", "settings", "recipe", "pretrained")


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a user asks for; `run.json` keeps it for `--resume`.

    Args:
        system: a network, a mechanism, or a system's id.
        task: name of a task; None = what the data and the system suggest.
        data: the user's files; None = the built-in sample.
        settings: fields of the network's config, of the task's settings and of the recipe, as texts.
        recipe: fields of the recipe that differ from the task's own.
        pretrained: a file with weights to start from; None = random ones.
    """

    system: str
    task: str | None
    data: str | None
    settings: Mapping[str, str]
    recipe: Mapping[str, Any]
    pretrained: str | None = None


@dataclass(frozen=True)
class Plan:
    """A run that can start.

    Args:
        wishes: what was asked for.
        task: with its data.
        model_name: the network.
        config: its config.
        recipe: how it is trained.
        initial: weights to start from, by name; those that are missing are random.
    """

    wishes: Wishes
    task: Task
    model_name: str
    config: Any
    recipe: Recipe
    initial: Mapping[str, Tensor] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """The network with random weights, which depend on the seed alone."""
        torch.manual_seed(self.recipe.seed)
        return build(self.model_name, self.config)

    def start(self) -> nn.Module:
        """The network as training begins: random weights, or pretrained ones where there are some."""
        model = self.build()
        model.load_state_dict(dict(self.initial), strict=False)
        return model


def choose_task(system: str, task: str | None, data: Path | None) -> tuple[str, str]:
    """The task and the network that trains it.

    Args:
        system: what the user named.
        task: what the user asked for, if anything.
        data: the user's files, if any.

    Raises:
        UserError: no network of the system does this task, or the files are made for another.
    """
    networks = models_of(system)
    if task is not None:
        class_of(task)
        if task not in networks:
            raise UserError(f"{system} has no network for {task}: it does {', '.join(networks)}")
        return task, networks[task][0]
    if data is None:
        first = next(iter(networks))
        return first, networks[first][0]
    looks_like = kind_of(data)
    if looks_like not in networks:
        if len(networks) > 1:
            raise UserError(
                f"{shown(data)} looks like data for {looks_like}, and {system} does {', '.join(networks)}: "
                "name one with --task"
            )
        looks_like = next(iter(networks))
    return looks_like, networks[looks_like][0]


def plan(wishes: Wishes, *, cache: Path | None = None) -> Plan:
    """Read the data and configure the network.

    Args:
        wishes: what was asked for.
        cache: folder for packed data; None = a temporary one.

    Raises:
        UserError: anything that does not fit.
    """
    data = None if wishes.data is None else Path(wishes.data)
    task_name, model_name = choose_task(wishes.system, wishes.task, data)
    cls = class_of(task_name)
    of_task, of_network, of_recipe = share_out(wishes.settings, cls, model_name)
    network: Any = get_class(model_name)
    # what suits a network comes before the user's own wishes
    of_task = {**getattr(network, "task_settings", {}), **of_task}
    try:
        task = cls(cls.Settings(**parse_fields(cls.Settings, of_task, what=task_name)))
        recipe = replace(cls.recipe, **getattr(network, "recipe", {}))
        recipe = replace(recipe, **parse_fields(Recipe, of_recipe, what="the recipe"))
        recipe = replace(recipe, **wishes.recipe)
    except ValueError as error:
        raise UserError(str(error)) from None
    pretrained = None if wishes.pretrained is None else read_pretrained(Path(wishes.pretrained))
    start = None
    if pretrained is not None:
        pretrained.prepare(task)
        start = pretrained.config_for(model_name)
    task.read(data, cache=cache)
    config = configure(wishes.system, model_name, task.model_fields(), of_network, start=start)
    with sizes_only():
        task.check_network(build(model_name, config), recipe.batch)
    initial = {} if pretrained is None else pretrained.weights_for(model_name, config)
    return Plan(wishes, task, model_name, config, recipe, initial)


def new_folder(system: str, task: str) -> Path:
    """A folder that does not exist yet, named for the run."""
    base = Path("runs", f"train-{system}-{task}-{time.strftime('%Y%m%d-%H%M%S')}")
    number, path = 2, base
    while path.exists():
        path, number = base.with_name(f"{base.name}-{number}"), number + 1
    return path


def latest_folder(system: str | None) -> Path | None:
    """The newest run below `runs`, of a system if one is named."""
    found = [path for path in Path("runs").glob("train-*/" + RUN) if system in (None, _system_of(path.parent))]
    return max(found, key=lambda path: path.stat().st_mtime).parent if found else None


def _system_of(folder: Path) -> str | None:
    try:
        return read_wishes(folder).system
    except UserError:
        # a damaged run must not keep the others from being found
        return None


def claim_folder(folder: Path, *, resume: bool) -> None:
    """Make the folder of a run.

    Raises:
        UserError: it is a file, cannot be made, or holds an earlier run that is not to be resumed.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {shown(folder)} is a file; it must be a folder, or a new name")
    taken = [name for name in (RUN, LAST, BEST) if (folder / name).exists()]
    if taken and not resume:
        raise UserError(f"{shown(folder)} already has {taken[0]}: go on with --resume, or name another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {shown(folder)}: {error.strerror}") from None


@contextmanager
def claimed(folder: Path, *, resume: bool) -> Iterator[None]:
    """Claim a folder while a run is prepared; what cannot start leaves no new folder behind.

    Raises:
        UserError: as `claim_folder`.
    """
    missing = missing_folders(folder)
    claim_folder(folder, resume=resume)
    try:
        yield
    except UserError:
        if missing:
            shutil.rmtree(folder)
            remove_empty(missing)
        raise


def write_wishes(folder: Path, wishes: Wishes) -> None:
    """Keep what was asked for in `run.json`."""
    plain = {name: getattr(wishes, name) for name in PLAIN_RUN_KEYS}
    write_atomically(folder / RUN, json.dumps(plain, indent=1, default=dict) + "\n")


def read_wishes(folder: Path) -> Wishes:
    """What was asked for in an earlier run.

    Raises:
        UserError: there is none, or its file is damaged.
    """
    path = folder / RUN
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        stored = {"pretrained": None, **stored}
        wishes = config_from_plain(Wishes, {name: stored[name] for name in PLAIN_RUN_KEYS})
        of_recipe = get_type_hints(Recipe)
        for name, value in wishes.recipe.items():
            from_plain(value, of_recipe[name])
        if wishes.task not in (None, *TASKS) or not all(isinstance(value, str) for value in wishes.settings.values()):
            raise ValueError("it is not a run of regard train")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot resume from {shown(path)}: {shown(str(error))}") from None
    return wishes


def train(planned: Plan, folder: Path, hardware: Hardware, *, resume: bool) -> Outcome:
    """Train the network of a plan; `model.safetensors` in the folder is the best so far.

    Raises:
        UserError: as `regard.tasks.fit.fit`, or the disk is full.
    """
    # Lightning takes seconds to import: only who trains waits for it
    from regard.tasks.fit import fit

    try:
        return fit(
            planned.task,
            planned.start(),
            model_name=planned.model_name,
            config=planned.config,
            recipe=planned.recipe,
            folder=folder,
            hardware=hardware,
            resume=resume,
        )
    except OSError as error:
        raise UserError(f"cannot write in {shown(folder)}: {error.strerror or error}") from None


def best_of(planned: Plan, folder: Path) -> nn.Module:
    """The best network of a run, in eval mode."""
    loaded = checkpoint.load(folder / (BEST if (folder / BEST).is_file() else LAST))
    return loaded.model


__all__ = ["Plan", "Wishes", "count_parameters", "plan", "train"]
