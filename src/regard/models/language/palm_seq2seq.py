"""PALM: a language model over `[source ; target]` with a second attention in every layer, to the source alone.

Paper: "Decoder-Only or Encoder-Decoder? Interpreting Language Model as a Regularized Encoder-Decoder", Fu et al., 2023,
https://arxiv.org/abs/2304.04052, the PALM section. The source sees itself whole, the target sees source and earlier
target; partial attention reads this layer's own source states, after self-attention; the target's positions start at
0 (SPE), and a learned vector says which language a token is of (LE). One set of parameters serves both.
Compared with christianThardy/Partial-Attention-Language-Model@208c1d39 (third party; the authors published no code),
`palm/model/palm.py`, whose layer is the one of `palm_modern`: RMSNorm, rotary positions, SwiGLU, grouped heads.
Different from that code: partial attention is masked per row, not by the batch's longest source; targets are shifted in
the loss; scores of the source come from the shared word embedding, not from a head of their own. The scores at a source
token are of that token (of the next one where the source is causal), for a source that sees all would copy the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from regard.layers.kv_cache import KVCache
from regard.layers.projected_attention import KeysValues
from regard.metadata import Variant
from regard.mixers.sequence.palm import PALM_PAPER
from regard.models.language.lm_seq2seq import joint_positions
from regard.models.language.seq2seq import Layout
from regard.models.language.seq2seq_blocks import (
    BlockSeq2Seq,
    Seq2SeqBlock,
    Seq2SeqConfig,
    Seq2SeqEmbedding,
    check_layers,
    make_blocks,
    make_norm,
)
from regard.ops.prefix_visibility import prefix_visible
from regard.registry import register


@dataclass(frozen=True, kw_only=True)
class PALMSeq2SeqConfig(Seq2SeqConfig):
    """A partial attention language model; each of its parts can be left out.

    Args:
        num_layers: number of layers; 8 have fewer parameters than an encoder-decoder of 6 and 6.
        partial_attention: PA: the second attention, to the source alone.
        separate_positions: SPE: the target's positions start at 0; else they go on from the source's.
        language_embedding: LE: a learned vector for source and one for target.
        source_auto_encoding: SAE: scores of the source, for its loss.
        causal_source: the source does not look ahead, as in a language model.
    """

    num_layers: int = 8
    partial_attention: bool = True
    separate_positions: bool = True
    language_embedding: bool = True
    source_auto_encoding: bool = True
    causal_source: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers(num_layers=self.num_layers)


@register(name="palm_seq2seq", system="palm", paper=PALM_PAPER)
class PALMSeq2Seq(BlockSeq2Seq):
    """Partial attention language model: decoder-only, with undiminished attention to the source.

    Args:
        config: sizes, and which parts.
    """

    SMALL: ClassVar[PALMSeq2SeqConfig] = PALMSeq2SeqConfig(dim=96, mlp_dim=192, num_layers=3, dropout=0.1)
    VARIANTS: ClassVar[dict[str, Variant]] = {
        "palm_iwslt": Variant(config=PALMSeq2SeqConfig()),
        "palm_modern": Variant(
            config=PALMSeq2SeqConfig(
                norm="rms", feed_forward="swiglu", positions="rotary", bias=False, embedding_norm=True, num_kv_heads=2
            )
        ),
    }

    def __init__(self, config: PALMSeq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        self.source_shift = 1 if config.causal_source else 0
        self.models_source = config.source_auto_encoding
        self.consecutive_positions = not config.separate_positions
        self.embedding = Seq2SeqEmbedding(config, language=config.language_embedding)
        self.decoder = make_blocks(
            config, config.num_layers, reader="partial" if config.partial_attention else "nothing"
        )
        self.norm = make_norm(config)

    def transform(
        self, source: Tensor, target: Tensor, layout: Layout, *, layers: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Both through the one stack."""
        length = source.shape[1]
        x, causal_source = torch.cat((source, target), dim=1), self.config.causal_source
        for block in self.blocks():
            x = self.run(palm_layer, block, x, layout, causal_source)
            if layers is not None:
                layers.append(x[:, length:])
        return self.norm(x[:, :length]), self.norm(x[:, length:])

    def encode_packed(
        self, source: Tensor, layout: Layout, max_len: int | None
    ) -> tuple[tuple[KVCache, ...], tuple[KeysValues, ...]]:
        """The source whole: into the caches, and as the kept keys and values of partial attention."""
        x, caches, sources = source, [], []
        room = None if max_len is None else source.shape[1] + max_len
        for block, empty in zip(self.blocks(), self.empty_caches(source.shape[0], room), strict=True):
            x, pair = _source_attended(block, x, layout, causal_source=self.config.causal_source)
            caches.append(empty.append(*pair, layout.source_mask))
            if block.reader is not None:
                sources.append(block.reader.keys_values(x, layout.source_positions))
                x = block.informed(x, layout.source_positions, sources[-1], layout.source_mask)
            x = block.fed(x)
        return tuple(caches), tuple(sources)


def palm_layer(
    block: Seq2SeqBlock, x: Float[Tensor, "batch tokens dim"], layout: Layout, causal_source: bool = False
) -> Float[Tensor, "batch tokens dim"]:
    """One layer over `[source ; target]`: self-attention, partial attention to this layer's source, feed-forward.

    Args:
        block: the layer; without a reader it is a layer of a language model with a prefix.
        x: states of the source, then of the target.
        layout: positions and mask; it says where the source ends.
        causal_source: the source does not look ahead.

    Raises:
        ValueError: the source is longer than `x`, or empty.
    """
    length = layout.source_positions.shape[1]
    if not 1 <= length <= x.shape[1]:
        raise ValueError(f"the source's length must be from 1 to the sequence's {x.shape[1]}, got {length}")
    # two calls: the source's rows never see the target, and a call without a mask is the faster one
    source, (source_k, source_v) = _source_attended(block, x[:, :length], layout, causal_source=causal_source)
    target = x[:, length:]
    q, k, v = block.project(target, layout.target_positions)
    both = prefix_visible(length, target.shape[1], source_mask=layout.source_mask, device=x.device)
    target = block.attended(
        target, q, torch.cat((source_k, k), dim=2), torch.cat((source_v, v), dim=2), visible=both[:, :, length:]
    )
    x = torch.cat((source, target), dim=1)
    if block.reader is not None:
        kept = block.reader.keys_values(source, layout.source_positions)
        x = block.informed(x, joint_positions(layout), kept, layout.source_mask)
    return block.fed(x)


def _source_attended(
    block: Seq2SeqBlock, x: Tensor, layout: Layout, *, causal_source: bool
) -> tuple[Tensor, KeysValues]:
    """A source's states after self-attention, and the keys and values that were made for it."""
    q, k, v = block.project(x, layout.source_positions)
    mask = None if layout.source_mask is None or causal_source else layout.source_mask[:, None, None, :]
    return block.attended(x, q, k, v, causal=causal_source, visible=mask), (k, v)
