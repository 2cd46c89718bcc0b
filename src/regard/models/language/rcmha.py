"""RCMHA's language model: Transformer-XL's, whose layers attend to a memory of their earlier inputs.

Papers: "RCMHA: Relative Convolutional Multi-Head Attention for Natural Language Modelling", Sugiharto et al., 2023,
https://arxiv.org/abs/2308.03429; "Transformer-XL", Dai et al., ACL 2019, https://arxiv.org/abs/1901.02860, section 3.2.
Compared with hermansh-id/rcmha@87df49bf, `rcmha/model.py:AutoregressiveModel`, with its own attention in all layers, on
which parameters are counted.
Different from the code: batch first; the memory that a call returns is joined with the one before and cut already.
`forward` and `step` are those of every language model here: one sequence without a memory, and a cache of all tokens
instead of a memory of some; with `conv_state` both compute the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.contract import SequenceMixer, load_strictly
from regard.layers.reference_names import rename_all
from regard.layers.xl_attention import XLAttention
from regard.metadata import Reported, Variant
from regard.mixers.sequence.mdha import MDHA
from regard.mixers.sequence.rcmha import RCMHA, RCMHA_PAPER
from regard.mixers.sequence.rcmha import REFERENCE_NAMES as ATTENTION_NAMES
from regard.mixers.sequence.rmha import RMHA
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.models.language.stack import LanguageBlock, StackedLanguageModel
from regard.ops.heads import head_width
from regard.registry import register

Attention = Literal["rcmha", "rmha", "mdha", "softmax"]
ATTENTIONS: tuple[Attention, ...] = ("rcmha", "rmha", "mdha", "softmax")
Memory = tuple[Float[Tensor, "batch past dim"], ...]
"""The last inputs of every layer, without their history of gradients."""

REFERENCE_NAMES = (
    (r"^src_embed\.", "embedding."),
    (r"^generator\.", "head."),
    (r"^transformer\.norm\.", "norm."),
    (r"^transformer\.layers\.(\d+)\.norm_self_attn\.", r"blocks.\1.mixer_norm."),
    (r"^transformer\.layers\.(\d+)\.norm_ff\.", r"blocks.\1.mlp_norm."),
    (r"^transformer\.layers\.(\d+)\.feed_forward\.layer1\.", r"blocks.\1.mlp.0."),
    (r"^transformer\.layers\.(\d+)\.feed_forward\.layer2\.", r"blocks.\1.mlp.3."),
    (r"^transformer\.layers\.(\d+)\.self_attn\.", r"blocks.\1.mixer."),
    *ATTENTION_NAMES,
)
"""The authors' names as ours."""


@dataclass(frozen=True, kw_only=True)
class RCMHALanguageConfig:
    """The network's sizes, and which attention it has.

    Args:
        vocab_size: number of token ids.
        dim: width.
        num_layers: number of layers.
        num_heads: heads of every layer; must divide `dim`.
        hidden: width inside the perceptrons.
        attention: "rcmha", or what the paper compares with: "rmha", "mdha", "softmax" (MHA).
        mem_len: tokens that a layer's memory holds.
        max_positions: most tokens, memory included, where scores know the distance.
        conv_state: while decoding, the queries' convolution goes on where it was, so that steps equal one call.
        dropout: probability after the embedding, every attention and perceptron, and inside perceptrons.
        checkpointing: recompute the layers' activations in backward.

    Raises:
        ValueError: a size that is not positive or does not divide, or an unknown attention.
    """

    vocab_size: int = 256
    dim: int = 128
    num_layers: int = 6
    num_heads: int = 8
    hidden: int = 256
    attention: Attention = "rcmha"
    mem_len: int = 32
    max_positions: int = 4096
    conv_state: bool = False
    dropout: float = 0.0
    checkpointing: bool = False
    tied: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "num_layers", "hidden", "mem_len", "max_positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        head_width(self.dim, self.num_heads)
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention must be one of {', '.join(ATTENTIONS)}, got {self.attention!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    def mixer(self) -> SequenceMixer:
        """The attention of one layer."""
        if self.attention == "rcmha":
            return RCMHA(
                self.dim, num_heads=self.num_heads, max_positions=self.max_positions, conv_state=self.conv_state
            )
        if self.attention == "rmha":
            return RMHA(self.dim, num_heads=self.num_heads, max_positions=self.max_positions)
        if self.attention == "mdha":
            return MDHA(self.dim, num_heads=self.num_heads, qkv_bias=True, conv_state=self.conv_state)
        return SoftmaxAttention(self.dim, num_heads=self.num_heads, causal=True, qkv_bias=True)


def _block(config: RCMHALanguageConfig) -> LanguageBlock:
    dim, hidden = config.dim, config.hidden
    return LanguageBlock(
        mixer_norm=nn.LayerNorm(dim),
        mixer=config.mixer(),
        mlp_norm=nn.LayerNorm(dim),
        mlp=nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(hidden, dim)),
        dropout=config.dropout,
    )


def _shakespeare(attention: Attention, params: int) -> Variant:
    return Variant(
        config=RCMHALanguageConfig(vocab_size=65, attention=attention),
        reported=Reported(params=params, where="counted on the authors' code", params_tolerance=0.0),
    )


@register(name="rcmha_lm", system="rcmha", paper=RCMHA_PAPER)
class RCMHALanguageModel(StackedLanguageModel):
    """A language model on relative convolutional attention that reads text segment by segment, with a memory.

    x <- x + attention(norm(x), norm(memory)), x <- x + MLP(norm(x)) in every layer, a final norm, a head with bias; no
    position is added to the embedding.

    Args:
        config: its sizes.

    Raises:
        ValueError: an option that the mixer refuses.
    """

    SMALL: ClassVar[RCMHALanguageConfig] = RCMHALanguageConfig(
        dim=64, num_layers=2, num_heads=4, hidden=128, mem_len=64, max_positions=2048, conv_state=True
    )
    VARIANTS: ClassVar[dict[str, Variant]] = {
        "rcmha_shakespeare": _shakespeare("rcmha", 7_496_897),
        "rmha_shakespeare": _shakespeare("rmha", 7_495_745),
    }

    def __init__(self, config: RCMHALanguageConfig) -> None:
        blocks = [_block(config) for _ in range(config.num_layers)]
        super().__init__(config, blocks, nn.LayerNorm(config.dim))
        self.head = nn.Linear(config.dim, config.vocab_size)

    def read(
        self, tokens: Int[Tensor, "batch tokens"], memory: Memory | None = None
    ) -> tuple[Float[Tensor, "batch tokens vocab"], Memory]:
        """Scores of the token after every token of a segment, and the memory for the next one.

        Args:
            tokens: ids below `vocab_size`.
            memory: from the segment before; None at the start of a text.

        Raises:
            ValueError: tokens that are no ids, another number of memories than layers, or more tokens than positions.
        """
        self.check_tokens(tokens)
        blocks = self._blocks()
        if memory is not None and len(memory) != len(blocks):
            raise ValueError(f"there are {len(memory)} memories and {len(blocks)} layers: they must be equal in number")
        x, kept = self.dropout(self.embedding(tokens)), []
        for layer, block in enumerate(blocks):
            past = None if memory is None else memory[layer]
            kept.append(_remembered(past, x.detach(), self.config.mem_len))
            normed = None if past is None else block.mixer_norm(past)
            x = x + block.dropout(_attend(block.mixer, block.mixer_norm(x), normed))
            x = x + block.dropout(block.mlp(block.mlp_norm(x)))
        return self.head(self.norm(x)), tuple(kept)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, rename_all(state_dict, REFERENCE_NAMES))


def _remembered(past: Tensor | None, x: Tensor, mem_len: int) -> Tensor:
    everything = x if past is None else torch.cat((past, x), dim=1)
    return everything[:, -mem_len:]


def _attend(mixer: Any, x: Tensor, memory: Tensor | None) -> Tensor:
    if isinstance(mixer, XLAttention):
        return mixer.with_memory(x, memory)
    if memory is None:
        return mixer(x)
    # without positions and convolutions a memory is nothing but earlier tokens
    return mixer(torch.cat((memory, x), dim=1))[:, memory.shape[1] :]
