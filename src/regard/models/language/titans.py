"""Titans: language models with a neural long-term memory, in the paper's four architectures.

Paper: "Titans: Learning to Memorize at Test Time", Behrouz, Zhong and Mirrokni, 2025, https://arxiv.org/abs/2501.00663,
sections 4 and 5. The authors published no code. The network of lucidrains/titans-pytorch@cc016ebc, which departs from
the paper, is `regard.models.language.titans_lucidrains`.
Blocks as in the paper's experiments: residual, RMSNorm before each part, a gated perceptron with SiLU as in Llama. The
widths and depths of its models (170M to 760M parameters) are not published, so no configuration here claims a count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor

from regard.contract import SequenceMixer, load_strictly
from regard.layers.gated_feed_forward import SGLU
from regard.layers.head_norm import HeadNorm
from regard.metadata import Variant
from regard.mixers.sequence.titans import PAPER, TitansLMM
from regard.mixers.sequence.titans_mac import TitansMAC
from regard.mixers.sequence.titans_mag import TitansMAG
from regard.mixers.sequence.titans_mal import TitansMAL
from regard.models.language.stack import LanguageBlock, StackedLanguageModel
from regard.ops.heads import head_width
from regard.registry import register

TitansVariant = Literal["mac", "mag", "mal", "lmm"]
VARIANTS: tuple[TitansVariant, ...] = ("mac", "mag", "mal", "lmm")


@dataclass(frozen=True, kw_only=True)
class TitansConfig:
    """The network's sizes, and what the paper varies.

    Args:
        vocab_size: number of token ids.
        dim: width.
        num_layers: number of blocks.
        num_heads: heads of attention, and memories of a layer; must divide `dim`.
        variant: "mac" (memory as a context), "mag" (as a gate), "mal" (as a layer) or "lmm" (memory alone).
        window: tokens in a segment (mac) or in a sliding window (mag, mal); "lmm" has none.
        chunk_size: tokens whose gradients are taken at the same weights; "mac" takes its segment.
        memory_depth: matrices of a memory; 1 = a linear memory.
        expansion: hidden width of a memory, in widths of a head.
        momentum: past surprise counts.
        forgetting: memories decay.
        convolution: short convolutions on the memories' queries, keys and values.
        num_persistent: learned tokens before the sequence, in every layer.
        rope_base: base of attention's rotary embedding; None = no positions.
        hidden: width inside the perceptrons; 0 = 8 / 3 of `dim`.
        tied: the head shares the embedding's weights.
        dropout: probability after every mixer and perceptron.
        checkpointing: recompute the blocks' activations in backward.

    Raises:
        ValueError: a size that is not positive or does not divide, or an unknown variant.
    """

    vocab_size: int = 256
    dim: int = 128
    num_layers: int = 3
    num_heads: int = 4
    variant: TitansVariant = "mac"
    window: int = 64
    chunk_size: int = 64
    memory_depth: int = 2
    expansion: int = 2
    momentum: bool = True
    forgetting: bool = True
    convolution: bool = True
    num_persistent: int = 4
    rope_base: float | None = 10000.0
    hidden: int = 0
    tied: bool = False
    dropout: float = 0.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "num_layers", "window", "chunk_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        head_width(self.dim, self.num_heads)
        if self.variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {self.variant!r}")
        if self.hidden < 0:
            raise ValueError(f"hidden must not be negative, got {self.hidden}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    def mixer(self) -> SequenceMixer:
        """The mechanism of one layer."""
        memory: dict[str, Any] = {
            "num_heads": self.num_heads,
            "memory_depth": self.memory_depth,
            "expansion": self.expansion,
            "momentum": self.momentum,
            "forgetting": self.forgetting,
            "convolution": self.convolution,
            "num_persistent": self.num_persistent,
        }
        if self.variant == "lmm":
            return TitansLMM(self.dim, chunk_size=self.chunk_size, **memory)
        if self.variant == "mac":
            return TitansMAC(self.dim, segment_len=self.window, rope_base=self.rope_base, **memory)
        beside: type[TitansMAG] | type[TitansMAL] = TitansMAG if self.variant == "mag" else TitansMAL
        return beside(self.dim, window_size=self.window, chunk_size=self.chunk_size, rope_base=self.rope_base, **memory)


def _block(config: TitansConfig) -> LanguageBlock:
    return LanguageBlock(
        mixer_norm=HeadNorm(config.dim),
        mixer=config.mixer(),
        mlp_norm=HeadNorm(config.dim),
        mlp=SGLU(config.dim, config.hidden or max(1, 8 * config.dim // 3), activation="silu"),
        dropout=config.dropout,
    )


_SMALL = TitansConfig(dim=96, num_layers=2, num_heads=4, variant="mag")
_LARGER = TitansConfig(dim=384, num_layers=8, num_heads=8, window=128)


@register(name="titans_lm", system="titans", paper=PAPER)
class TitansLM(StackedLanguageModel):
    """A language model with long-term memories that learn while it reads, and a state of constant size.

    x <- x + mixer(norm(x)), x <- x + SwiGLU(norm(x)) in every layer, a final norm, a head without bias.

    Args:
        config: its sizes.

    Raises:
        ValueError: an option that the mixer refuses.
    """

    SMALL: ClassVar[TitansConfig] = _SMALL
    VARIANTS: ClassVar[dict[str, Variant]] = {
        **{f"titans_{name}_small": Variant(config=replace(_SMALL, variant=name)) for name in VARIANTS},
        **{f"titans_{name}_larger": Variant(config=replace(_LARGER, variant=name)) for name in VARIANTS},
    }

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config, [_block(config) for _ in range(config.num_layers)], HeadNorm(config.dim))

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load our own layout, strictly: the authors published no checkpoint."""
        load_strictly(self, state_dict)
