"""Weights to start from: a checkpoint of `regard train`, or a published file in a layout that the network knows.

A published file is read without running anything in it: safetensors, or a pickle of tensors alone (`weights_only`).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from regard.errors import UserError
from regard.meta_device import sizes_only
from regard.registry import get_class
from regard.tasks import checkpoint
from regard.tasks.networks import build, config_from_plain
from regard.tasks.task import Task
from regard.wording import listed, shown

WRAPPERS = ("state_dict", "model", "network", "module", "model_state_dict")
"""Where published files keep their tensors when there is more in them."""
_CLASSIFIER = re.compile(r"head|classifier|fc|linear", re.IGNORECASE)


@dataclass(frozen=True)
class Pretrained:
    """Weights from a file.

    Args:
        path: where they were.
        header: of a checkpoint of ours; None = a published file.
        tensors: by the names in the file.
    """

    path: Path
    header: checkpoint.Header | None
    tensors: Mapping[str, Tensor]

    def config_for(self, model_name: str) -> Any:
        """The config that weights of ours were trained with, if they are of this network; else None.

        Raises:
            UserError: they are of another network, or their config is damaged.
        """
        if self.header is None:
            return None
        cls: Any = get_class(model_name)
        try:
            if get_class(self.header.model) is not cls:
                raise UserError(f"{shown(self.path)} holds weights of {self.header.model}, not of {model_name}")
            if self.header.model != model_name:
                return None
            return config_from_plain(type(checkpoint.config_of(model_name)), self.header.config)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{shown(self.path)} has a config that is not ours: {shown(str(error))}") from None

    def prepare(self, task: Task) -> None:
        """Before the data are read: let the task take over what the weights were trained with.

        Raises:
            UserError: the task does not begin with pretrained weights, or these are of another task.
        """
        if type(task).start_from is Task.start_from:
            raise UserError(f"{task.name} does not start from pretrained weights")
        if self.header is None:
            return
        if self.header.task != task.name:
            raise UserError(f"{shown(self.path)} was trained on {self.header.task}, not on {task.name}")
        try:
            task.start_from(self.header.facts)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{shown(self.path)} has facts that are not ours: {shown(str(error))}") from None

    def weights_for(self, model_name: str, config: Any) -> dict[str, Tensor]:
        """The weights by the network's own names; without the classifier where it has another number of classes.

        Raises:
            UserError: they do not fit the network.
        """
        with sizes_only():
            planned = build(model_name, config).state_dict()
        own = self._by_our_names(model_name, config)
        if unknown := sorted(set(own) ^ set(planned)):
            raise UserError(f"{shown(self.path)} does not fit {model_name}: {listed(unknown)} differ")
        fitting = {name: tensor for name, tensor in own.items() if tensor.shape == planned[name].shape}
        for name in sorted(set(own) - set(fitting)):
            was, needed = tuple(own[name].shape), tuple(planned[name].shape)
            if was[1:] != needed[1:] or needed[:1] != (getattr(config, "num_classes", None),):
                hint = "; --set channels=3 makes the images fit" if was[1:2] == (3,) and needed[1:2] == (1,) else ""
                raise UserError(f"{shown(self.path)} does not fit {model_name}: {name} is {was}, not {needed}{hint}")
        return fitting

    def _by_our_names(self, model_name: str, config: Any) -> dict[str, Tensor]:
        if self.header is not None:
            try:
                return checkpoint.network_state(self.header, self.tensors)
            except KeyError as error:
                raise UserError(f"{shown(self.path)} lacks the weight {error.args[0]}") from None
        told: Exception | None = None
        for tried in self._with_class_counts(config):
            model: Any = build(model_name, tried)
            try:
                model.load_reference(self.tensors)
            except (KeyError, ValueError, RuntimeError) as error:
                told = told or error
                continue
            return model.state_dict()
        reason = shown(str(told.args[0] if told is not None and told.args else told), 300)
        raise UserError(f"{shown(self.path)} has no layout that {model_name} knows: {reason}")

    def _with_class_counts(self, config: Any) -> list[Any]:
        """The config with each number of classes that the file may have.

        These are the lengths of biases of what is named like a classifier, and the config's own.
        """
        if not hasattr(config, "num_classes"):
            return [config]
        counts = [
            len(tensor)
            for name, tensor in reversed(list(self.tensors.items()))
            if tensor.ndim == 1 and name.endswith("bias") and _CLASSIFIER.search(name)
        ][:6]
        return [replace(config, num_classes=classes) for classes in dict.fromkeys([*counts, config.num_classes])]


def read_pretrained(path: Path) -> Pretrained:
    """Weights from a file, or from the folder of a run.

    Raises:
        UserError: missing, damaged, or no weights.
    """
    if path.is_dir() or _is_ours(path):
        header, tensors = checkpoint.read(path)
        return Pretrained(path, header, tensors)
    if not path.is_file():
        raise UserError(f"there is no file {shown(path)}")
    tensors = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    if not tensors:
        raise UserError(f"{shown(path)} holds no weights")
    return Pretrained(path, None, tensors)


def _is_ours(path: Path) -> bool:
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as stored:
            return "regard" in (stored.metadata() or {})
    except (SafetensorError, OSError, ValueError, RuntimeError):
        # it is told when it is read
        return False


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{shown(path)} is no safetensors file, or a damaged one: {shown(str(error))}") from None


def _pickled(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # a damaged or hostile file can raise anything on the way to being refused
        told = shown(str(error).partition("\n")[0] or type(error).__name__, 160)
        raise UserError(f"{shown(path)} is no file of weights that can be read safely: {told}") from None
    while isinstance(content, dict):
        inner = next((content[name] for name in WRAPPERS if isinstance(content.get(name), dict)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{shown(path)} holds something other than the weights of a network")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}
