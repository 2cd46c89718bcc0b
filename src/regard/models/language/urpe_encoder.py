"""The encoder of URPE's synthetic tasks: RoBERTa's, post-norm, with one pair of tables for all layers.

Paper: "Your Transformer May Not be as Powerful as You Expect", Luo et al., NeurIPS 2022,
https://arxiv.org/abs/2205.13401, the synthetic tasks. Compared with lsj2408/URPE@47b711f8,
`fairseq/modules/transformer_sentence_encoder.py:TransformerSentenceEncoder`, on which parameters are counted; the head
is that of its RoBERTa. There is no absolute position: without biases and factors (noPE) tokens have no order at all.
Different from the code: outputs at padding mean nothing here, where there a padded query attends like any other; rows
of the embedding that stand for padding are trained like any other, though nothing reads them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu, linear
from torch.utils.checkpoint import checkpoint

from regard.contract import Model, load_strictly
from regard.layers.feed_forward import FeedForward
from regard.layers.reference_names import rename_all
from regard.layers.urpe_positions import BIASES, FACTORS, Biases, Factors, URPEPositions
from regard.metadata import Reported, Variant
from regard.mixers.sequence.urpe import URPE_PAPER, URPEAttention
from regard.ops.heads import head_width
from regard.registry import register

Head = Literal["none", "tied", "untied"]
HEADS: tuple[Head, ...] = ("none", "tied", "untied")

REFERENCE_NAMES = (
    (r"^embed_tokens\.", "embedding."),
    (r"^emb_layer_norm\.", "embedding_norm."),
    (r"^layers\.(\d+)\.self_attn\.out_proj\.", r"blocks.\1.mixer.o_proj."),
    (r"^layers\.(\d+)\.self_attn\.", r"blocks.\1.mixer."),
    (r"^layers\.(\d+)\.self_attn_layer_norm\.", r"blocks.\1.mixer_norm."),
    (r"^layers\.(\d+)\.fc1\.", r"blocks.\1.mlp.up_proj."),
    (r"^layers\.(\d+)\.fc2\.", r"blocks.\1.mlp.down_proj."),
    (r"^layers\.(\d+)\.final_layer_norm\.", r"blocks.\1.mlp_norm."),
    (r"^rp_bias\.", "blocks.0.mixer.own_positions.biases."),
    (r"^ur_rp_bias\.", "blocks.0.mixer.own_positions.factors."),
    (r"^lm_head\.dense\.", "head.dense."),
    (r"^lm_head\.layer_norm\.", "head.norm."),
    (r"^lm_head\.(weight|bias)$", r"head.\1"),
)
"""The authors' names as ours; a whole checkpoint has `encoder.` before the head and `encoder.sentence_encoder.`."""


@dataclass(frozen=True, kw_only=True)
class URPEEncoderConfig:
    """The network's sizes, and which of B and C it has.

    Args:
        vocab_size: number of token ids.
        dim: width.
        num_layers: number of layers.
        num_heads: heads of every layer; must divide `dim`.
        hidden: width inside the perceptrons.
        biases: B of all layers: "unique", "log", "transformer_xl", "alibi" or "none".
        factors: C of all layers: "unique", "log" or "none"; noPE has neither, RPE has biases alone.
        max_positions: most tokens.
        num_buckets: buckets of a "log" table.
        max_distance: distance from which on all share the last bucket of a "log" table.
        head: scores of the vocabulary: "tied" to the embedding, "untied", or "none".
        init_std: standard deviation of all weights and of biases B at first.
        dropout: probability after the embedding, every attention and every perceptron.
        attn_drop: probability of dropping a weight.
        checkpointing: recompute the layers' activations in backward.

    Raises:
        ValueError: a size that is not positive or does not divide, or an unknown option.
    """

    vocab_size: int = 1011
    dim: int = 768
    num_layers: int = 3
    num_heads: int = 12
    hidden: int = 3072
    biases: Biases = "unique"
    factors: Factors = "unique"
    max_positions: int = 512
    num_buckets: int = 64
    max_distance: int = 128
    head: Head = "tied"
    init_std: float = 0.02
    dropout: float = 0.0
    attn_drop: float = 0.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "num_layers", "hidden", "max_positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        head_width(self.dim, self.num_heads)
        for name, value, allowed in (
            ("biases", self.biases, BIASES),
            ("factors", self.factors, FACTORS),
            ("head", self.head, HEADS),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        if self.init_std < 0:
            raise ValueError(f"init_std must not be negative, got {self.init_std}")
        for name in ("dropout", "attn_drop"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")


class PostNormBlock(nn.Module):
    """norm(x + mixer(x)), then norm(x + MLP(x)).

    Args:
        config: of the network.
    """

    def __init__(self, config: URPEEncoderConfig) -> None:
        super().__init__()
        self.mixer = URPEAttention(
            config.dim,
            num_heads=config.num_heads,
            biases=config.biases,
            factors=config.factors,
            max_positions=config.max_positions,
            num_buckets=config.num_buckets,
            max_distance=config.max_distance,
            attn_drop=config.attn_drop,
        )
        self.mixer_norm = nn.LayerNorm(config.dim)
        self.mlp = FeedForward(config.dim, config.hidden, dropout=config.dropout)
        self.mlp_norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], mask: Bool[Tensor, "batch tokens"] | None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Mix tokens, then features."""
        x = self.mixer_norm(x + self.dropout(self.mixer(x, mask=mask)))
        return self.mlp_norm(x + self.mlp(x))


class VocabularyHead(nn.Module):
    """W norm(gelu(D x)) + b, where W may be the embedding.

    Args:
        dim: width.
        vocab_size: number of token ids.
        tied: W is given with every call.
    """

    def __init__(self, dim: int, vocab_size: int, *, tied: bool) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.weight = None if tied else nn.Parameter(torch.empty(vocab_size, dim))
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], embedding: Float[Tensor, "vocab dim"]
    ) -> Float[Tensor, "batch tokens vocab"]:
        """Scores of the vocabulary."""
        weight = embedding if self.weight is None else self.weight
        return linear(self.norm(gelu(self.dense(x))), weight, self.bias)


def _counted(factors: Factors, params: int) -> Variant:
    where = "counted on the authors' encoder, without its head"
    return Variant(
        config=URPEEncoderConfig(factors=factors, head="none"),
        reported=Reported(params=params, where=where, params_tolerance=0.0),
    )


@register(name="urpe_encoder", system="urpe", paper=URPE_PAPER)
class URPEEncoder(Model):
    """A bidirectional encoder over token ids with relative positions alone, and a head that scores the vocabulary.

    Args:
        config: its sizes.

    Raises:
        ValueError: an option that the mixer refuses.
    """

    SMALL: ClassVar[URPEEncoderConfig] = URPEEncoderConfig(
        vocab_size=61, dim=64, num_layers=2, num_heads=4, hidden=256, max_positions=128
    )
    VARIANTS: ClassVar[dict[str, Variant]] = {
        "urpe_synthetic": _counted("unique", 22_066_152),
        "urpe_synthetic_rpe": _counted("none", 22_053_876),
        "urpe_synthetic_nope": Variant(config=URPEEncoderConfig(biases="none", factors="none", head="none")),
    }

    def __init__(self, config: URPEEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.embedding_norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(PostNormBlock(config) for _ in range(config.num_layers))
        first, *others = self.layers()
        for block in others:
            block.mixer.share_positions(first.mixer)
        self.head = (
            None if config.head == "none" else VocabularyHead(config.dim, config.vocab_size, tied=config.head == "tied")
        )
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        std = self.config.init_std
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, VocabularyHead) and module.weight is not None:
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, URPEPositions) and module.biases is not None:
            nn.init.normal_(module.biases.weight, std=std)

    def layers(self) -> list[PostNormBlock]:
        """All layers, from the first."""
        return [block for block in self.blocks if isinstance(block, PostNormBlock)]

    def features(
        self, tokens: Int[Tensor, "batch tokens"], *, mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """The last layer's output; what stands at padding means nothing.

        Args:
            tokens: ids below `config.vocab_size`.
            mask: True = real token.

        Raises:
            ValueError: no `(batch, tokens)` of ids, or more tokens than `config.max_positions`.
        """
        if tokens.ndim != 2 or tokens.shape[1] == 0:
            raise ValueError(f"tokens must have shape (batch, tokens) with at least 1 token, got {tuple(tokens.shape)}")
        x = self.dropout(self.embedding_norm(self.embedding(tokens)))
        recompute = self.config.checkpointing and self.training and torch.is_grad_enabled()
        for block in self.layers():
            x = checkpoint(block, x, mask, use_reentrant=False) if recompute else block(x, mask)
        return x

    def forward(
        self, tokens: Int[Tensor, "batch tokens"], *, mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens vocab"]:
        """Scores of the vocabulary at every token.

        Raises:
            ValueError: a network without a head, or tokens that `features` refuses.
        """
        if self.head is None:
            raise ValueError("this network was built with head='none': it has features, and no scores")
        return self.head(self.features(tokens, mask=mask), self.embedding.weight)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout: of their encoder alone, or of a whole checkpoint with its head.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, rename_all(_without_prefixes(state_dict, head=self.config.head), REFERENCE_NAMES))


def _without_prefixes(state_dict: Mapping[str, Tensor], *, head: Head) -> dict[str, Tensor]:
    """`encoder.sentence_encoder.` and `encoder.` cut; a tied head's copy of the embedding left out."""
    cut = {re.sub(r"^encoder\.(sentence_encoder\.)?", "", name): tensor for name, tensor in state_dict.items()}
    if head == "tied":
        cut.pop("lm_head.weight", None)
    return cut
