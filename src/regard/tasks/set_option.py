"""`--set NAME=VALUE,...`: what it says, and whether the task, the network or the recipe is meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import fields
from itertools import pairwise

from regard.errors import UserError
from regard.tasks.networks import default_config
from regard.tasks.recipe import Recipe
from regard.tasks.task import Task
from regard.wording import shown


def share_out(
    settings: Mapping[str, str], task: type[Task], model_name: str
) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """The settings that belong to the task, to the network, and to the recipe, in this order where names are shared."""
    of_task = {item.name for item in fields(task.Settings)}
    of_network = {item.name for item in fields(default_config(model_name))}
    of_recipe = {item.name for item in fields(Recipe)}
    for name in settings:
        if name not in of_task | of_network | of_recipe:
            near = difflib.get_close_matches(name, of_task | of_network | of_recipe, n=1)
            known = f"{task.name} has {', '.join(sorted(of_task))}; {model_name} has {', '.join(sorted(of_network))}"
            known += f"; the recipe has {', '.join(sorted(of_recipe))}"
            raise UserError(f"no setting {shown(name)!r}: " + (f"did you mean {near[0]}?" if near else known))
    shares: tuple[dict[str, str], ...] = ({}, {}, {})
    for name, value in settings.items():
        shares[0 if name in of_task else 1 if name in of_network else 2][name] = value
    return shares[0], shares[1], shares[2]


def split_settings(text: str | None, *, option: str = "--set") -> dict[str, str]:
    """`"dim=64,mixer_options={...}"` as names and values; commas inside brackets do not separate.

    Args:
        text: what the user gave.
        option: where, for the message.

    Raises:
        UserError: a part that is not NAME=VALUE.
    """
    found: dict[str, str] = {}
    if not text:
        return found
    for part in _between_commas(text):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            raise UserError(f"{option} takes NAME=VALUE,NAME=VALUE, got {shown(part)!r}")
        found[name.strip()] = value.strip()
    return found


def _between_commas(text: str) -> list[str]:
    """The text cut at the commas that a `NAME=` follows, outside brackets and the texts inside them."""
    cuts, depth, quoted = [-1], 0, False
    for place, char in enumerate(text):
        if quoted:
            quoted = char != '"' or text[place - 1] == "\\"
        elif char in "{[":
            depth += 1
        elif char in "}]":
            depth = max(0, depth - 1)
        elif depth:
            quoted = char == '"'
        elif char == "," and re.match(r"\s*\w+\s*=", text[place + 1 :]):
            cuts.append(place)
    return [text[start + 1 : end] for start, end in pairwise([*cuts, len(text)])]
