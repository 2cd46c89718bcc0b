"""What every language model offers: scores of the next token, in parallel and step by step."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.contract import Model, State

ModelState = tuple[State, ...]
"""A language model's state: one per layer."""


class LanguageModel(Model):
    """A causal model over token ids; `config.vocab_size` is the number of ids.

    A subclass is final. What it computes in `step` over any chunking equals `forward`.
    """

    task: ClassVar[str] = "language"
    SMALL: ClassVar[Any]

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.config.vocab_size

    @abstractmethod
    def forward(
        self,
        tokens: Int[Tensor, "batch tokens"],
        *,
        mask: Bool[Tensor, "batch tokens"] | None = None,
        segments: Int[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens vocab"]:
        """Scores of the token after every token.

        Args:
            tokens: ids below `vocab_size`.
            mask: True = real token.
            segments: packed sequences, runs of equal numbers that never see each other.

        Raises:
            ValueError: an argument that the mixers do not take.
        """

    @abstractmethod
    def init_state(self, batch: int, *, max_len: int | None = None) -> ModelState:
        """An empty state for `batch` rows; `max_len` is the number of tokens to make room for, if known."""

    @abstractmethod
    def step(
        self,
        tokens: Int[Tensor, "batch tokens"],
        state: ModelState,
        *,
        mask: Bool[Tensor, "batch tokens"] | None = None,
    ) -> tuple[Float[Tensor, "batch tokens vocab"], ModelState]:
        """Scores after one or more tokens that follow those in `state`; it is consumed.

        Raises:
            ValueError: a mixer that does not decode.
        """

    def check_tokens(self, tokens: Tensor) -> None:
        """Refuse what is no `(batch, tokens)` of ids.

        Raises:
            ValueError: another shape, no token, or a type that is not int32 or int64.
        """
        if tokens.ndim != 2 or tokens.shape[1] == 0:
            raise ValueError(f"tokens must have shape (batch, tokens) with at least 1 token, got {tuple(tokens.shape)}")
        if tokens.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"tokens must be int32 or int64, got {tokens.dtype}")
