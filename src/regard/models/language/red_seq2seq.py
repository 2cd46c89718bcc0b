"""The regularised encoder-decoder: an encoder-decoder and five regularisations that together make it a language model.

Paper: "Decoder-Only or Encoder-Decoder? Interpreting Language Model as a Regularized Encoder-Decoder", Fu et al., 2023,
https://arxiv.org/abs/2304.04052, the RED section. The authors published no code: compared with this package's LM, which
it equals with all five, and with its ED, which it equals with none.

A norm stands before each sub-block here, so "the encoder's layer l" that layer l of the decoder reads is what enters
that layer: it is what a language model's layer l projects to keys and values. Two softmaxes read states through the
encoder's last norm, one softmax through the norm of the reading layer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from regard.layers.kv_cache import KVCache
from regard.layers.projected_attention import KeysValues
from regard.metadata import Variant
from regard.mixers.sequence.palm import PALM_PAPER
from regard.models.language.seq2seq import Layout
from regard.models.language.seq2seq_blocks import (
    BlockSeq2Seq,
    Seq2SeqBlock,
    Seq2SeqConfig,
    Seq2SeqEmbedding,
    blocks_of,
    check_layers,
    encoded_layer,
    make_blocks,
    make_norm,
)
from regard.ops.prefix_visibility import prefix_visible
from regard.registry import register


@dataclass(frozen=True, kw_only=True)
class REDSeq2SeqConfig(Seq2SeqConfig):
    """An encoder-decoder with regularisations.

    Args:
        num_layers: layers of the encoder, and of the decoder.
        unidirectional_cross_attention: UniCA: one softmax over source and target, and an encoder that does not look
            ahead; else cross-attention apart, and a bidirectional encoder.
        source_auto_encoding: SAE: scores of the source, for its loss.
        parameter_sharing: PS: the encoder is the decoder.
        layer_wise_coordination: LC: layer l of the decoder reads layer l of the encoder; else its last.
        consecutive_positions: CPE: the target's positions go on from the source's; else they start at 0.
    """

    num_layers: int = 15
    unidirectional_cross_attention: bool = True
    source_auto_encoding: bool = True
    parameter_sharing: bool = True
    layer_wise_coordination: bool = True
    consecutive_positions: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers(num_layers=self.num_layers)


REGULARISATIONS = (
    "unidirectional_cross_attention",
    "source_auto_encoding",
    "parameter_sharing",
    "layer_wise_coordination",
    "consecutive_positions",
)


@register(name="red_seq2seq", system="palm", paper=replace(PALM_PAPER, where="regularized encoder-decoder (RED)"))
class REDSeq2Seq(BlockSeq2Seq):
    """Regularised encoder-decoder: with all five regularisations the LM exactly, with none the encoder-decoder.

    Without SAE and with UniCA nothing reads the last encoder layer's output: then it has no gradient.

    Args:
        config: sizes, and which regularisations.
    """

    SMALL: ClassVar[REDSeq2SeqConfig] = REDSeq2SeqConfig(dim=96, mlp_dim=192, num_layers=5, dropout=0.1)
    VARIANTS: ClassVar[dict[str, Variant]] = {"red_iwslt": Variant(config=REDSeq2SeqConfig())}

    def __init__(self, config: REDSeq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        one_softmax, shared = config.unidirectional_cross_attention, config.parameter_sharing
        self.source_shift = 1 if one_softmax else 0
        self.models_source = config.source_auto_encoding
        self.consecutive_positions = config.consecutive_positions
        self.embedding = Seq2SeqEmbedding(config, language=False)
        self.decoder = make_blocks(config, config.num_layers, reader="nothing" if one_softmax else "cross")
        self.norm = make_norm(config)
        self.encoder = None if shared else make_blocks(config, config.num_layers, reader="nothing")
        self.encoder_norm = None if shared else make_norm(config)

    def _last_encoder_norm(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.encoder_norm is None else self.encoder_norm(x)

    def _encoded(self, source: Tensor, layout: Layout) -> tuple[Tensor, list[Tensor]]:
        """The encoder's last states, and what each layer of the decoder reads."""
        x, entering = source, []
        causal = self.config.unidirectional_cross_attention
        for block in blocks_of(self.decoder if self.encoder is None else self.encoder):
            entering.append(x)
            x = self.run(encoded_layer, block, x, layout.source_positions, layout.source_mask, causal)
        read = entering if self.config.layer_wise_coordination else [x] * len(entering)
        return self._last_encoder_norm(x), read

    def _source(self, block: Seq2SeqBlock, read: Tensor, layout: Layout) -> KeysValues:
        """Keys and values of what a layer of the decoder reads, by its own projections."""
        if block.reader is None:
            return block.keys_values(read, layout.source_positions)
        return block.reader.keys_values(self._last_encoder_norm(read), layout.source_positions)

    def _layer(self, block: Seq2SeqBlock, x: Tensor, read: Tensor, layout: Layout, visible: Tensor | None) -> Tensor:
        q, k, v = block.project(x, layout.target_positions)
        source_k, source_v = self._source(block, read, layout)
        if block.reader is None:
            keys, values = torch.cat((source_k, k), dim=2), torch.cat((source_v, v), dim=2)
            return block.fed(block.attended(x, q, keys, values, visible=visible))
        x = block.attended(x, q, k, v, causal=True)
        return block.fed(block.informed(x, layout.target_positions, (source_k, source_v), layout.source_mask))

    def transform(
        self, source: Tensor, target: Tensor, layout: Layout, *, layers: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The encoder, then the decoder."""
        encoded, reads = self._encoded(source, layout)
        length, visible = source.shape[1], None
        if self.config.unidirectional_cross_attention:
            both = prefix_visible(length, target.shape[1], source_mask=layout.source_mask, device=source.device)
            visible = both[:, :, length:]
        x = target
        for block, read in zip(self.blocks(), reads, strict=True):
            x = self.run(self._layer, block, x, read, layout, visible)
            if layers is not None:
                layers.append(x)
        return encoded, self.norm(x)

    def encode_packed(
        self, source: Tensor, layout: Layout, max_len: int | None
    ) -> tuple[tuple[KVCache, ...], tuple[KeysValues, ...]]:
        """With one softmax the source goes into the caches; else it is kept beside them."""
        _, reads = self._encoded(source, layout)
        sources = [self._source(block, read, layout) for block, read in zip(self.blocks(), reads, strict=True)]
        if not self.config.unidirectional_cross_attention:
            return tuple(self.empty_caches(source.shape[0], max_len)), tuple(sources)
        room = None if max_len is None else source.shape[1] + max_len
        empty = self.empty_caches(source.shape[0], room)
        filled = [cache.append(*pair, layout.source_mask) for cache, pair in zip(empty, sources, strict=True)]
        return tuple(filled), ()
