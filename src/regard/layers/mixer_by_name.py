"""A sequence mixer by its registered name, told of its place in a network."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from regard.contract import SequenceMixer
from regard.registry import create, get_class

ROPE_BASE = 10000.0


def mixer_by_name(
    name: str,
    *,
    dim: int,
    num_heads: int,
    causal: bool,
    layer_idx: int = 0,
    num_layers: int = 1,
    rotary: bool = True,
    max_positions: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> SequenceMixer:
    """Build a sequence mixer; rotary positions and its place in the network are given to those that ask for them.

    Args:
        name: its public name.
        dim: width of the network.
        num_heads: number of heads.
        causal: which form.
        layer_idx: number of the layer, from 0.
        num_layers: layers of the network.
        rotary: rotary positions where the mechanism has them as an option.
        max_positions: most tokens, for mechanisms that learn something for every position; None = their own default.
        options: further constructor arguments; they win over what is given by itself.

    Raises:
        UnknownSystemError: no such name.
        TypeError: an option that the mechanism does not have.
        ValueError: sizes that the mechanism refuses.
    """
    accepted = inspect.signature(get_class(name)).parameters
    offered: dict[str, Any] = {"layer_idx": layer_idx, "num_layers": num_layers}
    if rotary:
        offered["rope_base"] = ROPE_BASE
    if max_positions is not None:
        offered["max_positions"] = max_positions
    given = {option: value for option, value in offered.items() if option in accepted}
    mixer = create(name, dim=dim, num_heads=num_heads, causal=causal, **{**given, **(options or {})})
    if not isinstance(mixer, SequenceMixer):
        raise ValueError(f"{name} is a {type(mixer).__name__}, and a sequence mixer is needed here")
    return mixer
