"""Language models that are a stack of residual blocks: what TransNormerLLM, Titans and the plain decoder share.

x <- x + mixer(norm(x)), x <- x + MLP(norm(x)) in every block, a final norm, a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regard.contract import SequenceMixer
from regard.models.language.base import LanguageModel, ModelState


class LanguageBlock(nn.Module):
    """A mixer and a perceptron, each behind a norm, with dropout and a residual connection.

    Args:
        mixer_norm: before the mixer.
        mixer: the mechanism.
        mlp_norm: before the perceptron.
        mlp: the perceptron.
        dropout: probability after both.
    """

    def __init__(
        self, *, mixer_norm: nn.Module, mixer: SequenceMixer, mlp_norm: nn.Module, mlp: nn.Module, dropout: float
    ) -> None:
        super().__init__()
        self.mixer_norm, self.mlp_norm = mixer_norm, mlp_norm
        self.mixer, self.mlp = mixer, mlp
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        mask: Bool[Tensor, "batch tokens"] | None,
        segments: Int[Tensor, "batch tokens"] | None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Mix tokens, then features."""
        x = x + self.dropout(self.mixer(self.mixer_norm(x), mask=mask, segments=segments))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))

    def step(
        self, x: Float[Tensor, "batch tokens dim"], state: Any, mask: Bool[Tensor, "batch tokens"] | None
    ) -> tuple[Float[Tensor, "batch tokens dim"], Any]:
        """The same for tokens that follow those in `state`, which is consumed."""
        mixed, state = self.mixer.step(self.mixer_norm(x), state, mask=mask)
        x = x + self.dropout(mixed)
        return x + self.dropout(self.mlp(self.mlp_norm(x))), state


class StackedLanguageModel(LanguageModel):
    """A language model of equal blocks; a subclass makes the parts and says how tokens are embedded.

    Args:
        config: with `vocab_size`, `dim`, `tied`, `dropout` and `checkpointing`.
        blocks: one per layer.
        norm: before the head.
    """

    def __init__(self, config: Any, blocks: Sequence[LanguageBlock], norm: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tied:
            # the scores of a unit-variance embedding would have variance dim
            nn.init.normal_(self.embedding.weight, std=config.dim**-0.5)
            self.head.weight = self.embedding.weight

    def embed(
        self,
        tokens: Int[Tensor, "batch tokens"],
        mask: Bool[Tensor, "batch tokens"] | None,
        segments: Int[Tensor, "batch tokens"] | None,
        start: Int[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Embeddings of tokens; `start` counts the tokens before them, per row."""
        return self.embedding(tokens)

    def mixers(self) -> list[SequenceMixer]:
        """The mechanism of every layer."""
        return [block.mixer for block in self._blocks()]

    def features(
        self,
        tokens: Int[Tensor, "batch tokens"],
        *,
        mask: Bool[Tensor, "batch tokens"] | None = None,
        segments: Int[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """What the head reads: the last layer's output, normalised; arguments as for `forward`."""
        self.check_tokens(tokens)
        x = self.dropout(self.embed(tokens, mask, segments, None))
        recompute = self.config.checkpointing and self.training and torch.is_grad_enabled()
        for block in self._blocks():
            x = checkpoint(block, x, mask, segments, use_reentrant=False) if recompute else block(x, mask, segments)
        return self.norm(x)

    def forward(
        self,
        tokens: Int[Tensor, "batch tokens"],
        *,
        mask: Bool[Tensor, "batch tokens"] | None = None,
        segments: Int[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens vocab"]:
        """Scores of the token after every token."""
        return self.head(self.features(tokens, mask=mask, segments=segments))

    def init_state(self, batch: int, *, max_len: int | None = None) -> ModelState:
        """One empty state per layer."""
        return tuple(mixer.init_state(batch, max_len=max_len) for mixer in self.mixers())

    def step(
        self,
        tokens: Int[Tensor, "batch tokens"],
        state: ModelState,
        *,
        mask: Bool[Tensor, "batch tokens"] | None = None,
    ) -> tuple[Float[Tensor, "batch tokens vocab"], ModelState]:
        """Scores after tokens that follow those in `state`."""
        self.check_tokens(tokens)
        x, after = self.dropout(self.embed(tokens, mask, None, state[0].position)), []
        for block, before in zip(self._blocks(), state, strict=True):
            x, layer_state = block.step(x, before, mask)
            after.append(layer_state)
        return self.head(self.norm(x)), tuple(after)

    def _blocks(self) -> list[LanguageBlock]:
        return [block for block in self.blocks if isinstance(block, LanguageBlock)]
