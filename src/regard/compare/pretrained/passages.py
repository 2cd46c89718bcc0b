"""Prompts from the user's text: stretches with what follows them, and the same with a number hidden in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from regard.errors import UserError
from regard.tasks import text_files
from regard.tasks.tokenizers import Tokenizer
from regard.wording import count_in_words, shown

BYTES_PER_TOKEN = 8
"""Text that is read for each token that is wanted: tokens are hardly ever longer on average."""
HIDDEN = "\nThe secret number is {key}. Remember it: {key} is the secret number.\n"
QUESTION = "\nWhat is the secret number? The secret number is"
ANSWER = " {key}"
DEPTHS = (0.1, 0.5, 0.9)
KEYS = (68417, 20953, 94136)


@dataclass(frozen=True)
class Passages:
    """Stretches of the user's text as tokens.

    Args:
        ids: each as long as the longest prompt and the scored tokens after it.
        description: one line for the report.
        source: where the text comes from.
    """

    ids: Int[Tensor, "passages tokens"]
    description: str
    source: str


def read_passages(path: str | None, tokenizer: Tokenizer, *, tokens: int, count: int) -> Passages:
    """Cut stretches out of a text, evenly spaced over it.

    Args:
        path: a UTF-8 file or a folder of them; None = the Python standard library's own sources.
        tokenizer: of the model.
        tokens: length of a stretch.
        count: how many.

    Raises:
        UserError: missing, unreadable, binary or too short a text.
    """
    gathered = text_files.standard_library() if path is None else text_files.gather_text(Path(path))
    source = "the Python standard library's own sources" if path is None else shown(path)
    text = b"".join(gathered.parts).decode("utf-8", "replace")
    wanted = tokens * BYTES_PER_TOKEN
    stretches = []
    for number in range(count):
        start = max(0, (len(text) - wanted) * (number + 1) // (count + 1)) if count > 1 else max(0, len(text) - wanted)
        ids = tokenizer.encode(text[start : start + wanted])[:tokens]
        if len(ids) < tokens:
            raise UserError(
                f"{source} gives {len(ids):,} tokens, and the longest prompt with what follows it needs {tokens:,}: "
                "give more text or smaller --lengths"
            )
        stretches.append(ids)
    words = (
        f"{source}, {count_in_words(gathered.files, 'file')}: {count_in_words(count, 'passage')} of {tokens:,} tokens"
    )
    return Passages(torch.tensor(stretches, dtype=torch.int64), words, source)


@dataclass(frozen=True)
class Hidden:
    """A prompt with a number hidden in it, and the number's tokens.

    Args:
        prompt: the text, the number within, and the question at its end.
        answer: what should follow.
        depth: where the number is, from 0 (start) to 1 (end).
    """

    prompt: Int[Tensor, " tokens"]
    answer: Int[Tensor, " answer"]
    depth: float


def hide_numbers(text: Int[Tensor, " tokens"], tokenizer: Tokenizer) -> list[Hidden]:
    """A prompt for each depth, as long as the text; empty where the text is too short to hide anything.

    Args:
        text: what the number is hidden in; its last tokens make room.
        tokenizer: of the model.
    """
    found = []
    for depth, key in zip(DEPTHS, KEYS, strict=True):
        hidden, question, answer = (_plain(tokenizer, part.format(key=key)) for part in (HIDDEN, QUESTION, ANSWER))
        if not tokenizer.decode(answer[:1].tolist()).strip():
            # a blank of its own tells nothing about the number
            question, answer = torch.cat((question, answer[:1])), answer[1:]
        room = len(text) - len(hidden) - len(question)
        if room < len(hidden):
            return []
        start = round(depth * room)
        pieces = (text[:start], hidden.to(text), text[start:room], question.to(text))
        found.append(Hidden(torch.cat(pieces), answer.to(text), depth))
    return found


def _plain(tokenizer: Tokenizer, text: str) -> Int[Tensor, " tokens"]:
    """Tokens without those that every text of the tokenizer's begins with."""
    ids, empty = tokenizer.encode(text), tokenizer.encode("")
    return torch.tensor(ids[len(empty) :] if ids[: len(empty)] == empty else ids, dtype=torch.int64)
