"""Checkpoints: safetensors with everything beside the weights as JSON inside, written whole or not at all.

`model.safetensors` holds the best network so far. `last.safetensors` holds in addition the optimiser's state and how
far the run has come: what `--resume` needs. No pickle is read or written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from regard._version import VERSION
from regard.contract import load_strictly
from regard.errors import UserError
from regard.files import write_atomically
from regard.meta_device import sizes_only
from regard.registry import UnknownSystemError, get_class
from regard.tasks.networks import build, config_from_plain, config_to_plain, task_class
from regard.tasks.task import Task
from regard.wording import shown

LAST, BEST = "last.safetensors", "model.safetensors"
FORMAT = "regard-checkpoint-1"
MODEL, OPTIMIZER, AVERAGE = "model.", "optimizer.", "average."
LARGEST_INTEGER = 2**31


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a checkpoint says of itself.

    Args:
        task: name of the task.
        model: registered name of the network.
        config: the network's config as plain data.
        settings: the task's settings as plain data.
        facts: what the task learned from the data.
        step: number of updates behind it.
        metrics: of the first evaluated part at that step.
        aliases: names of weights that share memory with another, and its name.
        run: for `last.safetensors`, how far the run has come.
        version: of regard, when it was written.
    """

    task: str
    model: str
    config: dict[str, Any]
    settings: dict[str, Any]
    facts: dict[str, Any]
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    version: str = VERSION


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: the task without its data, the network with its weights, and the header."""

    header: Header
    task: Task
    model: nn.Module


def header_of(task: Task, model_name: str, config: Any, **more: Any) -> Header:
    """The header of a network that was trained on a task."""
    return Header(
        task=task.name,
        model=model_name,
        config=config_to_plain(config),
        settings=config_to_plain(task.settings),
        facts=task.facts(),
        **more,
    )


def save(
    path: Path,
    header: Header,
    state: Mapping[str, Tensor],
    optimizer: Mapping[str, Any] | None = None,
    average: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint to a temporary name and rename it.

    Args:
        path: the file.
        header: what it says of itself.
        state: of the network.
        optimizer: its state, if training is to go on.
        average: state of the moving average of the weights, if training is to go on and there is one.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; an earlier file is then as it was.
    """
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first_at: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
        if tensor.numel() and place in first_at:
            aliases[name] = first_at[place]
            continue
        first_at[place] = name
        tensors[MODEL + name] = tensor.detach().cpu().contiguous().clone()
    run = dict(header.run)
    if optimizer is not None:
        run["optimizer"] = _flatten(optimizer, tensors)
    for name, tensor in (average or {}).items():
        tensors[AVERAGE + name] = tensor.detach().cpu().contiguous().clone()
    described = asdict(header) | {"format": FORMAT, "aliases": aliases, "run": run}
    write_atomically(path, to_safetensors(tensors, metadata={"regard": json.dumps(described)}))


def _flatten(optimizer: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Move the optimiser's tensors to `tensors`; what stays is plain data."""
    numbers: dict[str, dict[str, Any]] = {}
    for index, values in optimizer["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{OPTIMIZER}{index}.{name}"] = value.detach().cpu().contiguous().clone()
            else:
                numbers.setdefault(str(index), {})[name] = value
    return {"numbers": numbers, "groups": optimizer["param_groups"]}


def optimizer_state(stored: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The optimiser's state dictionary from a checkpoint's plain data and tensors."""
    state: dict[Any, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.removeprefix(OPTIMIZER).partition(".")
        state.setdefault(int(index), {})[key] = tensor
    for index, values in stored["numbers"].items():
        state.setdefault(int(index), {}).update(values)
    return {"state": state, "param_groups": stored["groups"]}


def read(path: Path) -> tuple[Header, dict[str, Tensor]]:
    """A checkpoint's header and tensors.

    Raises:
        UserError: missing, truncated, or not one of ours.
    """
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise UserError(f"there is no checkpoint {shown(path)}")
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{shown(path)} is no safetensors file, or a damaged one: {shown(str(error))}") from None
    if "regard" not in metadata:
        raise UserError(f"{shown(path)} is a safetensors file that `regard train` did not write: it has no config")
    try:
        return _header(json.loads(metadata["regard"])), tensors
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{shown(path)} has a header that is not ours: {shown(str(error))}") from None


def _header(described: Any) -> Header:
    if not isinstance(described, dict) or described.pop("format", None) != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    header = config_from_plain(Header, described)
    _refuse_large_numbers(header.config)
    _refuse_large_numbers(header.settings)
    return header


def _refuse_large_numbers(values: Any) -> None:
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list):
        for value in values:
            _refuse_large_numbers(value)
    elif isinstance(values, int) and abs(values) > LARGEST_INTEGER:
        raise ValueError(f"the number {values} is too large for a size")


def load(path: Path) -> Checkpoint:
    """The task and the network of a checkpoint, in eval mode.

    Raises:
        UserError: missing, truncated, not one of ours, or weights that do not fit the config.
    """
    header, tensors = read(path)
    try:
        state = network_state(header, tensors)
        task = restore_task(header)
        config = config_from_plain(type(config_of(header.model)), header.config)
        _check_sizes(header, config, state)
        model = build(header.model, config)
        load_strictly(model, state)
    except (KeyError, TypeError, ValueError, UnknownSystemError, UserError) as error:
        told = error.args[0] if error.args else error
        raise UserError(f"{shown(path)} does not fit together: {shown(str(told))}") from None
    return Checkpoint(header, task, model.eval())


def network_state(header: Header, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's state dictionary from a checkpoint's tensors, those that share memory among them.

    Raises:
        KeyError: the header names a weight that the file does not have.
    """
    state = {name.removeprefix(MODEL): tensor for name, tensor in tensors.items() if name.startswith(MODEL)}
    return state | {alias: state[name] for alias, name in header.aliases.items()}


def restore_task(header: Header) -> Task:
    """The task of a checkpoint, with its facts and without data."""
    cls = task_class(header.task)
    task = cls(config_from_plain(cls.Settings, header.settings))
    task.restore(header.facts)
    return task


def config_of(model: str) -> Any:
    """Where a network's config starts."""
    from regard.tasks.networks import default_config

    return default_config(model)


def _check_sizes(header: Header, config: Any, state: Mapping[str, Tensor]) -> None:
    """Compare shapes on the meta device, so that a header with invented sizes takes no memory.

    Raises:
        ValueError: the config describes other weights than the file has.
    """
    layers = getattr(config, "num_layers", 0)
    if isinstance(layers, int) and layers > len(state):
        raise ValueError(f"its config has {layers} layers and the file {len(state)} weights")
    cls: Any = get_class(header.model)
    with sizes_only():
        planned = cls(config).state_dict()
    for name, tensor in planned.items():
        if name in state and state[name].shape != tensor.shape:
            raise ValueError(f"{name} has shape {tuple(state[name].shape)}, its config says {tuple(tensor.shape)}")
