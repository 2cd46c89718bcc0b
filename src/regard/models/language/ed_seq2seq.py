"""The encoder-decoder Transformer: a bidirectional encoder, a causal decoder with cross-attention to its last layer.

Paper: "Attention Is All You Need", Vaswani et al., NeurIPS 2017, https://arxiv.org/abs/1706.03762, as the baseline (ED)
of "Decoder-Only or Encoder-Decoder?", Fu et al., 2023, https://arxiv.org/abs/2304.04052; sizes of fairseq's
`transformer_iwslt_de_en`.
Compared with this package's regularised encoder-decoder without any regularisation, which must equal it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

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
from regard.registry import register


@dataclass(frozen=True, kw_only=True)
class EDSeq2SeqConfig(Seq2SeqConfig):
    """An encoder-decoder.

    Args:
        num_encoder_layers: layers of the encoder.
        num_decoder_layers: layers of the decoder.
    """

    num_encoder_layers: int = 6
    num_decoder_layers: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers(num_encoder_layers=self.num_encoder_layers, num_decoder_layers=self.num_decoder_layers)


@register(name="ed_seq2seq", system="palm", paper=replace(PALM_PAPER, where="encoder-decoder (ED)"))
class EDSeq2Seq(BlockSeq2Seq):
    """Encoder-decoder Transformer: two softmaxes, one over the target so far and one over the encoded source.

    Args:
        config: sizes.
    """

    SMALL: ClassVar[EDSeq2SeqConfig] = EDSeq2SeqConfig(
        dim=96, mlp_dim=192, num_encoder_layers=2, num_decoder_layers=2, dropout=0.1
    )
    VARIANTS: ClassVar[dict[str, Variant]] = {"ed_iwslt": Variant(config=EDSeq2SeqConfig())}

    def __init__(self, config: EDSeq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Seq2SeqEmbedding(config, language=False)
        self.encoder = make_blocks(config, config.num_encoder_layers, reader="nothing")
        self.encoder_norm = make_norm(config)
        self.decoder = make_blocks(config, config.num_decoder_layers, reader="cross")
        self.norm = make_norm(config)

    def _encoded(self, source: Tensor, layout: Layout) -> Tensor:
        x = source
        for block in blocks_of(self.encoder):
            x = self.run(encoded_layer, block, x, layout.source_positions, layout.source_mask, False)
        return self.encoder_norm(x)

    def transform(
        self, source: Tensor, target: Tensor, layout: Layout, *, layers: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The encoder, then the decoder over its last layer."""
        encoded, x = self._encoded(source, layout), target
        for block in self.blocks():
            x = self.run(_layer, block, x, encoded, layout)
            if layers is not None:
                layers.append(x)
        return encoded, self.norm(x)

    def encode_packed(
        self, source: Tensor, layout: Layout, max_len: int | None
    ) -> tuple[tuple[KVCache, ...], tuple[KeysValues, ...]]:
        """Keys and values of cross-attention for every layer of the decoder; empty caches."""
        encoded = self._encoded(source, layout)
        return tuple(self.empty_caches(source.shape[0], max_len)), tuple(
            _source(block, encoded, layout) for block in self.blocks()
        )


def _source(block: Seq2SeqBlock, encoded: Tensor, layout: Layout) -> KeysValues:
    assert block.reader is not None
    return block.reader.keys_values(encoded, layout.source_positions)


def _layer(block: Seq2SeqBlock, x: Tensor, encoded: Tensor, layout: Layout) -> Tensor:
    q, k, v = block.project(x, layout.target_positions)
    x = block.attended(x, q, k, v, causal=True)
    return block.fed(block.informed(x, layout.target_positions, _source(block, encoded, layout), layout.source_mask))
