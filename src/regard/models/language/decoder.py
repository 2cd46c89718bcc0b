"""A decoder-only language model around any causal mixer: the network in which mechanisms are trained and compared.

Pre-norm residual blocks (mixer, then a two-layer perceptron), a final norm, a head of its own or tied. It is nobody's
published network: the width, depth and positions are the user's, and only the mixer differs between two of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regard.contract import SequenceMixer, load_strictly
from regard.layers.mixer_by_name import mixer_by_name
from regard.metadata import Paper, Variant
from regard.models.language.base import LanguageModel, ModelState
from regard.ops.absolute_positions import sinusoids, token_positions
from regard.registry import register

Positions = Literal["none", "sinusoidal"]


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The network's sizes.

    Args:
        vocab_size: number of token ids.
        dim: width.
        num_layers: number of blocks.
        num_heads: heads of every mixer.
        mixer: registered name of a causal sequence mixer.
        mixer_options: further constructor arguments of the mixer.
        hidden: width inside the perceptrons; 0 = four times `dim`.
        positions: "sinusoidal" are added to the embedding; "none" leaves positions to the mixer.
        rotary: rotary positions in mixers that have them as an option.
        tied: the head shares the embedding's weights.
        dropout: probability after every mixer and perceptron.
        checkpointing: recompute the blocks' activations in backward.
    """

    vocab_size: int = 256
    dim: int = 128
    num_layers: int = 4
    num_heads: int = 4
    mixer: str = "softmax"
    mixer_options: Mapping[str, Any] = field(default_factory=dict)
    hidden: int = 0
    positions: Positions = "none"
    rotary: bool = True
    tied: bool = False
    dropout: float = 0.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "num_layers", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.hidden < 0:
            raise ValueError(f"hidden must not be negative, got {self.hidden}")
        if self.positions not in ("none", "sinusoidal"):
            raise ValueError(f"positions must be none or sinusoidal, got {self.positions!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")


class _Block(nn.Module):
    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        dim, hidden = config.dim, config.hidden or 4 * config.dim
        self.mixer_norm = nn.LayerNorm(dim)
        self.mixer = mixer_by_name(
            config.mixer,
            dim=dim,
            num_heads=config.num_heads,
            causal=True,
            layer_idx=layer,
            num_layers=config.num_layers,
            rotary=config.rotary,
            options=config.mixer_options,
        )
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None, segments: Tensor | None) -> Tensor:
        x = x + self.dropout(self.mixer(self.mixer_norm(x), mask=mask, segments=segments))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))

    def step(self, x: Tensor, state: Any, mask: Tensor | None) -> tuple[Tensor, Any]:
        mixed, state = self.mixer.step(self.mixer_norm(x), state, mask=mask)
        x = x + self.dropout(mixed)
        return x + self.dropout(self.mlp(self.mlp_norm(x))), state


@register(
    name="decoder_lm",
    system="decoder",
    paper=Paper(
        title="Attention Is All You Need",
        authors="Vaswani et al.",
        venue="NeurIPS",
        year=2017,
        url="https://arxiv.org/abs/1706.03762",
        where="the decoder without cross-attention, pre-norm",
    ),
)
class Decoder(LanguageModel):
    """A decoder-only language model whose mixer is any registered causal mechanism.

    Args:
        config: its sizes.

    Raises:
        UnknownSystemError: no such mixer.
        ValueError: a mixer without a causal form, or sizes that it refuses.
    """

    SMALL: ClassVar[DecoderConfig] = DecoderConfig(dim=128, num_layers=3, num_heads=4)
    VARIANTS: ClassVar[dict[str, Variant]] = {"decoder_small": Variant(config=SMALL)}

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_Block(config, layer) for layer in range(config.num_layers))
        self.norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        nn.init.normal_(self.embedding.weight, std=config.dim**-0.5 if config.tied else 1.0)
        if config.tied:
            self.head.weight = self.embedding.weight

    def mixers(self) -> list[SequenceMixer]:
        """The mechanism of every layer."""
        return [block.mixer for block in self._blocks()]

    def forward(
        self,
        tokens: Int[Tensor, "batch tokens"],
        *,
        mask: Bool[Tensor, "batch tokens"] | None = None,
        segments: Int[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens vocab"]:
        """Scores of the token after every token."""
        self.check_tokens(tokens)
        x = self._embed(tokens, mask, segments, start=None)
        for block in self._blocks():
            if self.config.checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, mask, segments, use_reentrant=False)
            else:
                x = block(x, mask, segments)
        return self.head(self.norm(x))

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
        x, after = self._embed(tokens, mask, None, start=state[0].position), []
        for block, before in zip(self._blocks(), state, strict=True):
            x, layer_state = block.step(x, before, mask)
            after.append(layer_state)
        return self.head(self.norm(x)), tuple(after)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load our own layout, strictly: no authors' checkpoint exists."""
        load_strictly(self, state_dict)

    def _blocks(self) -> list[_Block]:
        return [block for block in self.blocks if isinstance(block, _Block)]

    def _embed(self, tokens: Tensor, mask: Tensor | None, segments: Tensor | None, *, start: Tensor | None) -> Tensor:
        x = self.embedding(tokens)
        if self.config.positions == "sinusoidal":
            positions = token_positions(tokens, mask=mask, segments=segments, start=start)
            x = x + sinusoids(positions, self.config.dim).to(x.dtype)
        return self.dropout(x)
