"""A decoder-only language model around any causal mixer: the network in which mechanisms are trained and compared.

Pre-norm residual blocks (mixer, then a two-layer perceptron), a final norm, a head of its own or tied. It is nobody's
published network: the width, depth and positions are the user's, and only the mixer differs between two of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.contract import load_strictly
from regard.layers.mixer_by_name import mixer_by_name
from regard.metadata import Paper, Variant
from regard.models.language.stack import LanguageBlock, StackedLanguageModel
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


def _block(config: DecoderConfig, layer: int) -> LanguageBlock:
    dim, hidden = config.dim, config.hidden or 4 * config.dim
    mixer = mixer_by_name(
        config.mixer,
        dim=dim,
        num_heads=config.num_heads,
        causal=True,
        layer_idx=layer,
        num_layers=config.num_layers,
        rotary=config.rotary,
        options=config.mixer_options,
    )
    return LanguageBlock(
        mixer_norm=nn.LayerNorm(dim),
        mixer=mixer,
        mlp_norm=nn.LayerNorm(dim),
        mlp=nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)),
        dropout=config.dropout,
    )


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
class Decoder(StackedLanguageModel):
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
        blocks = [_block(config, layer) for layer in range(config.num_layers)]
        super().__init__(config, blocks, nn.LayerNorm(config.dim))

    def embed(
        self,
        tokens: Int[Tensor, "batch tokens"],
        mask: Bool[Tensor, "batch tokens"] | None,
        segments: Int[Tensor, "batch tokens"] | None,
        start: Int[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Embeddings, with sinusoidal positions where the config has them."""
        x = self.embedding(tokens)
        if self.config.positions == "sinusoidal":
            positions = token_positions(tokens, mask=mask, segments=segments, start=start)
            x = x + sinusoids(positions, self.config.dim).to(x.dtype)
        return x

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load our own layout, strictly: no authors' checkpoint exists."""
        load_strictly(self, state_dict)
