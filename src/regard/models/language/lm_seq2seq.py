"""Decoder-only sequence-to-sequence: one causal stack over `[source ; target]`, the LM of the PALM paper's comparison.

Paper: "Decoder-Only or Encoder-Decoder?", Fu et al., 2023, https://arxiv.org/abs/2304.04052: the language model that
its regularised encoder-decoder replicates. The target's positions go on from the source's; the source is modelled too.
Compared with this package's regularised encoder-decoder, which must equal it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from regard.layers.kv_cache import KVCache
from regard.metadata import Variant
from regard.mixers.sequence.palm import PALM_PAPER
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
class LMSeq2SeqConfig(Seq2SeqConfig):
    """A decoder-only model.

    Args:
        num_layers: number of layers; 15 have as many parameters as an encoder-decoder of 6 and 6.
    """

    num_layers: int = 15

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers(num_layers=self.num_layers)


@register(name="lm_seq2seq", system="palm", paper=replace(PALM_PAPER, where="language model (LM)"))
class LMSeq2Seq(BlockSeq2Seq):
    """Decoder-only model of targets given sources: one causal stack over both.

    Args:
        config: sizes.
    """

    SMALL: ClassVar[LMSeq2SeqConfig] = LMSeq2SeqConfig(dim=96, mlp_dim=192, num_layers=5, dropout=0.1)
    VARIANTS: ClassVar[dict[str, Variant]] = {"lm_iwslt": Variant(config=LMSeq2SeqConfig())}
    source_shift = 1
    models_source = True
    consecutive_positions = True

    def __init__(self, config: LMSeq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Seq2SeqEmbedding(config, language=False)
        self.decoder = make_blocks(config, config.num_layers, reader="nothing")
        self.norm = make_norm(config)

    def transform(
        self, source: Tensor, target: Tensor, layout: Layout, *, layers: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Both through the one stack; without padding, by the causal kernel."""
        length, x = source.shape[1], torch.cat((source, target), dim=1)
        positions = joint_positions(layout)
        visible = None
        if layout.source_mask is not None:
            visible = prefix_visible(
                length, target.shape[1], source_mask=layout.source_mask, causal_source=True, device=x.device
            )
        for block in self.blocks():
            x = self.run(_layer, block, x, positions, visible)
            if layers is not None:
                layers.append(x[:, length:])
        return self.norm(x[:, :length]), self.norm(x[:, length:])

    def encode_packed(
        self, source: Tensor, layout: Layout, max_len: int | None
    ) -> tuple[tuple[KVCache, ...], tuple[tuple[Tensor, Tensor], ...]]:
        """The source into the caches, as a prompt."""
        x, caches = source, []
        room = None if max_len is None else source.shape[1] + max_len
        for block, empty in zip(self.blocks(), self.empty_caches(source.shape[0], room), strict=True):
            q, k, v = block.project(x, layout.source_positions)
            caches.append(empty.append(k, v, layout.source_mask))
            x = block.fed(block.attended(x, q, k, v, causal=True))
        return tuple(caches), ()


def joint_positions(layout: Layout) -> Int[Tensor, "#batch tokens"]:
    """Positions of the source's tokens, then of the target's."""
    rows = layout.target_positions
    return torch.cat((layout.source_positions.expand(rows.shape[0], -1), rows), dim=1)


def _layer(block: Seq2SeqBlock, x: Tensor, positions: Tensor, visible: Tensor | None) -> Tensor:
    q, k, v = block.project(x, positions)
    return block.fed(block.attended(x, q, k, v, causal=visible is None, visible=visible))
