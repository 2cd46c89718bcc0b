"""What a race inside a trained model is run with: checked once, written beside the results, compared on resuming."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from regard.compare.settings import parse_lengths
from regard.errors import UserError
from regard.wording import shown

TASK = "pretrained"
"""The name of this race in its results, beside text, image and series."""
YARDSTICK = "sdpa"
"""The model's own attention, by PyTorch, with the cache that transformers makes."""
BUDGETS = (64, 256)
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
PASSAGES = 2
SCORED = 64
TOKENS_PER_TURN = 4
"""Tokens that are decoded before it is the other side's turn."""


@dataclass(frozen=True, kw_only=True)
class PretrainedSettings:
    """All that decides a race.

    Args:
        model: the absolute path of a folder in the layout of transformers, or a name on its hub.
        data: absolute path of the user's text; None = built-in.
        mechanisms: names of the mechanisms, the yardstick first.
        lengths: tokens of prompts, ascending.
        budgets: keys that a mechanism may attend to at once, ascending.
        passages: stretches of text that follow a prompt.
        scored: tokens of each stretch, which are decoded one by one.
        device: "cpu" or "cuda".

    Raises:
        UserError: a value that makes no sense; the message names the option.
    """

    model: str
    data: str | None = None
    mechanisms: tuple[str, ...]
    lengths: tuple[int, ...]
    budgets: tuple[int, ...]
    passages: int = PASSAGES
    scored: int = SCORED
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.passages < 1:
            raise UserError(f"--passages must be at least 1, got {self.passages}")
        if self.scored <= TOKENS_PER_TURN:
            raise UserError(f"--scored must be more than {TOKENS_PER_TURN} tokens, got {self.scored}")
        for option, numbers in (("--lengths", self.lengths), ("--budgets", self.budgets)):
            if not numbers or min(numbers) < 1:
                raise UserError(f"{option} must be positive whole numbers, got {','.join(map(str, numbers))}")

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> PretrainedSettings:
        """The settings of an earlier race.

        Raises:
            UserError: they were written by another version.
        """
        if odd := sorted(set(stored) ^ {item.name for item in fields(cls)}):
            raise UserError(f"the settings of that race are not this version's: {', '.join(map(shown, odd))}")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()
        }
        return cls(**values)

    def differences(self, other: PretrainedSettings) -> list[str]:
        """What stands in the way of resuming a race that has the settings `other`, one text per setting."""
        return [
            f"{item.name} {_in_words(getattr(other, item.name))} there, {_in_words(getattr(self, item.name))} now"
            for item in fields(self)
            if getattr(self, item.name) != getattr(other, item.name)
        ]

    def command_line(self) -> str:
        """The command that runs this race."""
        words = ["regard", "compare", "text", "--model", self.model]
        words += [] if self.data is None else ["--data", self.data]
        for option, value in (
            ("--mechanisms", self.mechanisms),
            ("--lengths", self.lengths),
            ("--budgets", self.budgets),
        ):
            words += [option, ",".join(map(str, value))]
        words += [] if self.passages == PASSAGES else ["--passages", str(self.passages)]
        words += [] if self.scored == SCORED else ["--scored", str(self.scored)]
        words += [] if self.device == "cpu" else ["--device", self.device]
        return shown(shlex.join(words), limit=2000)


def _in_words(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "none" if value is None else shown(str(value))


def parse_budgets(text: str) -> tuple[int, ...]:
    """Budgets from the command line, ascending and each once.

    Raises:
        UserError: not positive whole numbers separated by commas.
    """
    try:
        return parse_lengths(text)
    except UserError:
        raise UserError(f"--budgets must be positive whole numbers separated by commas, got {shown(text)!r}") from None


def absolute_model(model: str) -> str:
    """A folder's absolute path, so that a race can be resumed from elsewhere; a name on the hub as it is."""
    return os.path.abspath(model) if Path(model).is_dir() else model


def default_lengths(positions: int | None, scored: int) -> tuple[int, ...]:
    """Lengths that leave room for the scored tokens within a model's positions.

    Args:
        positions: that the model was built for; None = no limit is known.
        scored: tokens after each prompt.
    """
    if positions is None:
        return (512, 1024, 2048)
    fitting = tuple(length for length in LENGTHS if length + scored <= positions)
    return fitting[-3:] or (max(1, positions - scored),)
