"""A tokenizer of transformers as one of ours."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from regard.tasks.tokenizers import Tokenizer


class PretrainedTokenizer(Tokenizer):
    """What came with a model.

    Args:
        tokenizer: of transformers.
    """

    stored = "transformers"

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = len(tokenizer)

    def encode(self, text: str) -> list[int]:
        """The ids, with those that the model's prompts begin with."""
        return list(self._tokenizer.encode(text))

    def decode(self, ids: Iterable[int]) -> str:
        """The text, without ids that stand for no text."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))
