"""A network's weights by depth: stem, blocks in order, and what follows; which are frozen, and their learning rates.

Depth is read from the order in which a network declares its parts. Blocks are the elements of its lists of composite
parts, so that it holds for every network of the library without a table of names.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from torch import nn

from regard.errors import UserError
from regard.meta_device import sizes_only
from regard.tasks.recipe import Frozen, Recipe

LEVELS = 12
"""Levels of depth between the stem and the head, at most; more blocks share levels with their neighbours."""
_STEM = re.compile(r"stem|patch|embed|position|token", re.IGNORECASE)
"""A part with such a name is no row of blocks, whatever is in it."""


def blocks_of(model: nn.Module) -> list[str]:
    """Paths of the blocks of a network, in order."""
    return _blocks(model, "", within_block=False)


def _blocks(module: nn.Module, prefix: str, *, within_block: bool) -> list[str]:
    """The blocks below a part; what may be a block itself is searched only one level deep."""
    found: list[str] = []
    for name, part in module.named_children():
        if _STEM.search(name):
            continue
        if _is_row(part):
            found += _row(part, f"{prefix}{name}")
        elif any(map(_is_row, part.children() if within_block else part.modules())):
            found += _blocks(part, f"{prefix}{name}.", within_block=within_block)
    return found


def _row(row: nn.Module, path: str) -> list[str]:
    found: list[str] = []
    for name, part in row.named_children():
        here = f"{path}.{name}"
        found += _row(part, here) if _is_row(part) else _blocks(part, f"{here}.", within_block=True) or [here]
    return found


def _is_row(part: nn.Module) -> bool:
    """Whether it is a list of parts that have parts of their own."""
    if not isinstance(part, nn.ModuleList | nn.Sequential):
        return False
    return any(next(inner.children(), None) is not None for inner in part)


def levels_of(model: nn.Module) -> dict[str, int]:
    """The level of every parameter by name: 0 for the stem, then the blocks', the highest for what follows them.

    A parameter between two blocks belongs to the latter.
    """
    blocks = blocks_of(model)
    levels = min(LEVELS, len(blocks))
    level_of = {path: 1 + index * levels // len(blocks) for index, path in enumerate(blocks)}
    names = [name for name, _ in model.named_parameters()]
    owner = {name: next((path for path in blocks if name.startswith(f"{path}.")), None) for name in names}
    places = [index for index, name in enumerate(names) if owner[name] is not None]
    found, following = {}, levels + 1
    for index in reversed(range(len(names))):
        path = owner[names[index]]
        if path is not None:
            following = level_of[path]
        elif places and index < places[0]:
            following = 0
        found[names[index]] = following
    return dict(reversed(found.items()))


def head_of(model: Any) -> set[str]:
    """Names of the parameters whose shape depends on the number of classes.

    Raises:
        UserError: the network's config has no number of classes.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "num_classes"):
        raise UserError(f"{type(model).__name__} has no classifier: freeze=body would leave nothing to train")
    with sizes_only():
        other = type(model)(replace(config, num_classes=config.num_classes + 1))
    sizes = {name: parameter.shape for name, parameter in other.named_parameters()}
    return {name for name, parameter in model.named_parameters() if sizes[name] != parameter.shape}


def freeze(model: nn.Module, what: Frozen) -> None:
    """Keep some weights from being trained.

    Raises:
        UserError: the network has no such part.
    """
    if what == "none":
        return
    if what == "body":
        trained = head_of(model)
        frozen = {name for name, _ in model.named_parameters()} - trained
    else:
        frozen = {name for name, level in levels_of(model).items() if level == 0}
    if not frozen:
        raise UserError(f"{type(model).__name__} has no {what} that could be frozen")
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)


def frozen_parts(model: nn.Module) -> list[nn.Module]:
    """The largest parts whose weights are all frozen: they stay in evaluation mode, so that their statistics do too."""
    found: list[nn.Module] = []

    def look(module: nn.Module) -> None:
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            found.append(module)
            return
        for child in module.children():
            look(child)

    look(model)
    return found


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The optimiser's groups: one for all weights, unless the recipe tells some apart.

    A group's `lr_scale` is the factor on the learning rate.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if recipe.layer_decay == 1 and recipe.decay_vectors:
        return [{"params": list(trained.values()), "lr_scale": 1.0}]
    levels = levels_of(model)
    deepest = max(levels.values(), default=0)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in trained.items():
        decays = recipe.decay_vectors or parameter.ndim > 1
        level = levels[name] if recipe.layer_decay < 1 else deepest
        group = groups.setdefault(
            (level, decays),
            {
                "params": [],
                "lr_scale": recipe.layer_decay ** (deepest - level),
                "weight_decay": recipe.weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())
