"""The contestants inside a trained model: every mechanism at every budget, with the options that the budget means."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from regard.compare.pretrained.settings import YARDSTICK
from regard.errors import UserError
from regard.integrations.transformers.attention import MECHANISMS
from regard.registry import systems
from regard.wording import shown

RECYCLED_STRIDE = 16
MOST_DENSE_LAYERS = 3
TITLES = {
    YARDSTICK: "The model's own",
    "softmax": "Softmax, preallocated",
    "hip": "HiP",
    "recycled": "Recycled",
    "streaming_llm": "StreamingLLM",
    "h2o": "H2O",
    "landmark": "Landmark retrieval",
}


@dataclass(frozen=True)
class Contestant:
    """A way to attend.

    Args:
        name: unique in the race.
        mechanism: registered for transformers; the yardstick is the model's own.
        budget: keys that it may attend to at once; None = all.
        options: of the mechanism.
    """

    name: str
    mechanism: str
    budget: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """A name for people."""
        title = TITLES.get(self.mechanism, self.mechanism)
        return title if self.budget is None else f"{title}, {self.budget:,} keys"

    @property
    def system(self) -> str:
        """The system that it belongs to."""
        entry = systems().get(self.mechanism)
        return "softmax" if entry is None else entry.system


def _hip(budget: int, num_layers: int) -> dict[str, Any]:
    window, sinks = budget // 4, min(16, budget // 8)
    chosen = budget - window - sinks
    return {
        "mask_k": chosen - chosen % 2,
        "window": window,
        "sinks": sinks,
        "refresh": max(1, min(8, window - 1)),
        "dense_layers": min(MOST_DENSE_LAYERS, num_layers // 4),
    }


def _landmark(budget: int, _: int) -> dict[str, Any]:
    """Of eight blocks, four are retrieved; the query's own, two before it and the first of the text are always seen."""
    return {"block_size": max(1, budget // 8), "top_k": 4, "recent": 2, "sinks": 1}


BUDGETED: Mapping[str, Callable[[int, int], dict[str, Any]]] = {
    "hip": _hip,
    "recycled": lambda budget, _: {"top_k": budget, "stride": RECYCLED_STRIDE},
    "streaming_llm": lambda budget, _: {"cache_size": budget},
    "h2o": lambda budget, _: {"cache_size": budget},
    "landmark": _landmark,
}
"""Options by mechanism, from a budget of keys and the model's number of layers."""
EXACT = (YARDSTICK, "softmax")
KNOWN = (*EXACT, *BUDGETED)


def choose(wanted: str | None) -> tuple[str, ...]:
    """The mechanisms that the user named, the yardstick first; None or "all" = every one.

    Raises:
        UserError: an unknown name; the nearest is suggested.
    """
    names = [name.strip() for name in (wanted or "all").split(",") if name.strip()]
    if names == ["all"]:
        return KNOWN
    if not names:
        raise UserError("--mechanisms names no mechanism: give names separated by commas, or all")
    for name in names:
        if name not in KNOWN:
            near = difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(KNOWN)}"
            raise UserError(f"{shown(name)!r} is no training-free attention for a trained model: {hint}")
    return tuple(dict.fromkeys((YARDSTICK, *names)))


def contestants(mechanisms: tuple[str, ...], budgets: tuple[int, ...], *, num_layers: int) -> list[Contestant]:
    """Every mechanism at every budget; those that attend to all keys once.

    Args:
        mechanisms: their names.
        budgets: keys to attend to at once.
        num_layers: of the model.

    Raises:
        UserError: a budget that is too small for a mechanism.
    """
    found = []
    for name in mechanisms:
        if name not in BUDGETED:
            found.append(Contestant(name, name))
            continue
        for budget in budgets:
            options = BUDGETED[name](budget, num_layers)
            try:
                MECHANISMS[name](**options)
            except ValueError as error:
                raise UserError(f"--budgets {budget} does not suit {name}: {error}") from None
            found.append(Contestant(f"{name} {budget}", name, budget, options))
    return found
