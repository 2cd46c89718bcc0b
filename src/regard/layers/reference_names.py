"""Names of a published checkpoint as ours: an ordered list of rewriting rules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

Rules = Iterable[tuple[str, str]]


def rename(name: str, rules: Rules) -> str:
    """A name after all rules, in order; each is a regular expression and what replaces its first match."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name, count=1)
    return name


def rename_all(state_dict: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """The tensors under the names that the rules make of theirs.

    Raises:
        KeyError: two names become one.
    """
    rules = tuple(rules)
    made: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        own = rename(name, rules)
        if own in made:
            raise KeyError(f"unknown keys: {name}, beside another that stands for {own}")
        made[own] = tensor
    return made
