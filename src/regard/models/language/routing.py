"""Routing Transformer: decoder-only language models with local heads and heads that route tokens to clusters.

Paper: "Efficient Content-Based Sparse Attention with Routing Transformers", Roy et al., TACL 2021,
https://arxiv.org/abs/2003.05997, sections 4 and 5.
Compared with lucidrains/routing-transformer@3f6c461a, `routing_transformer.py:RoutingTransformerLM` (`mode="compat"`,
`feed_forward="gelu"`). The variants are the language models among the configurations of
google-research/google-research@0c1bbe5f, `routing_transformer/sparse_transformer.py`; their sizes of vocabulary are
those of the corpora, and parameters are not reported anywhere that we could check.
Different from the authors' code: positions are rotary, or sinusoids where a head's width is odd (relative positions are
learned there); no translation networks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regard.contract import load_strictly
from regard.layers.feed_forward import FeedForward
from regard.layers.geglu import GEGLU
from regard.layers.reference_names import rename, rename_all
from regard.metadata import Variant
from regard.mixers.sequence.routing import ROUTING_PAPER, RoutingAttention, own_layout
from regard.models.language.stack import LanguageBlock, StackedLanguageModel
from regard.ops.absolute_positions import sinusoids, token_positions
from regard.ops.routing_form import Mode
from regard.registry import register

Positions = Literal["rotary", "sinusoidal", "none"]
POSITIONS: tuple[Positions, ...] = ("rotary", "sinusoidal", "none")
ROPE_BASE = 10000.0
EMBEDDING_STD = 0.02

MODEL_NAMES = ((r"^token_emb\.", "embedding."), (r"^out\.", "head."))
BLOCK_NAMES = (
    (r"^0\.norm\.", "mixer_norm."),
    (r"^1\.norm\.", "mlp_norm."),
    (r"^1\.fn\.fn\.w1\.", "mlp.up_proj."),
    (r"^1\.fn\.fn\.w2\.", "mlp.down_proj."),
)
CONSTANTS = ("sinu_pos_emb.emb",)
"""Tables of the compared network that are no parameters."""


@dataclass(frozen=True, kw_only=True)
class RoutingTransformerConfig:
    """The network's sizes, and what the published configurations vary.

    Args:
        vocab_size: number of token ids.
        dim: width.
        num_layers: number of layers.
        num_heads: heads of every layer.
        local_heads: heads that look at blocks; None = half of them, rounded down.
        local_layers: first layers in which all heads look at blocks.
        head_dim: width of a head; None = dim / num_heads.
        mode: "paper" or "compat"; "compat" has biases in local projections, gated perceptrons and the head.
        num_clusters: C, centroids of a routing head.
        window_size: w, tokens in a cluster.
        block_size: tokens in a block of the local heads.
        look_back: blocks before its own that a local head sees.
        shared_qk: keys of routing heads are their queries.
        num_memory: learned keys and values in every cluster.
        prefix_topk: choose a token's clusters among the tokens up to it, exactly causal and as in decoding.
        commitment: beta, factor of the commitment loss.
        decay: lambda, what is kept of the centroids' averages in an update.
        hidden: width inside the perceptrons; 0 = four times `dim`.
        feed_forward: "geglu", or "gelu", two layers with biases.
        positions: "rotary" in the heads, "sinusoidal" added to the embedding, or "none".
        embedding_dim: width of the embedding and of what the head reads, projected to `dim` and back; 0 = `dim`.
        tied: the head shares the embedding's weights.
        dropout: probability after the embedding, every mixer and every perceptron, and inside gated ones.
        attn_drop: probability of dropping a weight of attention.
        checkpointing: recompute the layers' activations in backward.

    Raises:
        ValueError: a size that is not positive or does not divide, or an unknown option.
    """

    vocab_size: int = 256
    dim: int = 128
    num_layers: int = 3
    num_heads: int = 4
    local_heads: int | None = None
    local_layers: int = 0
    head_dim: int | None = None
    mode: Mode = "paper"
    num_clusters: int = 8
    window_size: int = 32
    block_size: int = 32
    look_back: int = 1
    shared_qk: bool = True
    num_memory: int = 0
    prefix_topk: bool = False
    commitment: float = 1e-4
    decay: float = 0.999
    hidden: int = 0
    feed_forward: Literal["geglu", "gelu"] = "geglu"
    positions: Positions = "rotary"
    embedding_dim: int = 0
    tied: bool = False
    dropout: float = 0.0
    attn_drop: float = 0.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "num_layers", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("hidden", "embedding_dim"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.local_layers <= self.num_layers:
            raise ValueError(
                f"local_layers must be between 0 and num_layers={self.num_layers}, got {self.local_layers}"
            )
        if self.feed_forward not in ("geglu", "gelu"):
            raise ValueError(f"feed_forward must be geglu or gelu, got {self.feed_forward!r}")
        if self.positions not in POSITIONS:
            raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, got {self.positions!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    def mixer(self, layer: int) -> RoutingAttention:
        """The attention of a layer."""
        return RoutingAttention(
            self.dim,
            num_heads=self.num_heads,
            local_heads=self.num_heads if layer < self.local_layers else self.local_heads,
            head_dim=self.head_dim,
            causal=True,
            mode=self.mode,
            num_clusters=self.num_clusters,
            window_size=self.window_size,
            block_size=self.block_size,
            look_back=self.look_back,
            shared_qk=self.shared_qk,
            num_memory=self.num_memory,
            prefix_topk=self.prefix_topk,
            commitment=self.commitment,
            decay=self.decay,
            attn_drop=self.attn_drop,
            rope_base=ROPE_BASE if self.positions == "rotary" else None,
        )

    def mlp(self) -> nn.Module:
        """The perceptron of a layer."""
        hidden = self.hidden or 4 * self.dim
        if self.feed_forward == "gelu":
            return FeedForward(self.dim, hidden)
        return GEGLU(self.dim, hidden, dropout=self.dropout, bias=self.mode == "compat")


def _block(config: RoutingTransformerConfig, layer: int) -> LanguageBlock:
    return LanguageBlock(
        mixer_norm=nn.LayerNorm(config.dim),
        mixer=config.mixer(layer),
        mlp_norm=nn.LayerNorm(config.dim),
        mlp=config.mlp(),
        dropout=config.dropout,
    )


_ENWIK8 = RoutingTransformerConfig(
    dim=1024,
    num_layers=12,
    num_heads=8,
    num_clusters=16,
    window_size=512,
    block_size=256,
    hidden=3072,
)
_WIKITEXT = replace(
    _ENWIK8, vocab_size=267_735, num_layers=14, num_heads=16, num_clusters=8, embedding_dim=256, dropout=0.4
)
_PG19 = replace(
    _ENWIK8,
    vocab_size=32_768,
    dim=1032,
    num_layers=22,
    local_heads=6,
    local_layers=21,
    hidden=4096,
    positions="sinusoidal",
)


@register(name="routing_lm", system="routing", paper=ROUTING_PAPER)
class RoutingTransformerLM(StackedLanguageModel):
    """A language model whose heads look at near blocks and at clusters of similar tokens.

    x <- x + attention(norm(x)), x <- x + MLP(norm(x)) in every layer, a final norm, a head.

    Decoding goes through `step`, in which a token is routed among those so far; it equals `forward` with `prefix_topk`.

    Args:
        config: its sizes.

    Raises:
        ValueError: an option that the mixer refuses.
    """

    SMALL: ClassVar[RoutingTransformerConfig] = RoutingTransformerConfig(dim=128, num_layers=3, num_heads=4)
    VARIANTS: ClassVar[dict[str, Variant]] = {
        "routing_wikitext103_4k": Variant(config=_WIKITEXT),
        "routing_wikitext103_1k": Variant(config=replace(_WIKITEXT, num_layers=20, num_clusters=2)),
        "routing_enwik8_8k": Variant(config=_ENWIK8),
        "routing_enwik8_12k": Variant(config=replace(_ENWIK8, num_clusters=48, window_size=256, block_size=128)),
        "routing_pg19_8k": Variant(config=_PG19),
    }

    def __init__(self, config: RoutingTransformerConfig) -> None:
        width = config.embedding_dim or config.dim
        norm: nn.Module = nn.LayerNorm(width)
        if config.embedding_dim:
            norm = nn.Sequential(nn.Linear(config.dim, width), norm)
        super().__init__(config, [_block(config, layer) for layer in range(config.num_layers)], norm)
        self.embedding = nn.Embedding(config.vocab_size, width)
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        self.embedding_proj = nn.Linear(width, config.dim) if config.embedding_dim else None
        self.head = nn.Linear(width, config.vocab_size, bias=config.mode == "compat")
        if config.tied:
            self.head.weight = self.embedding.weight

    def embed(
        self,
        tokens: Int[Tensor, "batch tokens"],
        mask: Bool[Tensor, "batch tokens"] | None,
        segments: Int[Tensor, "batch tokens"] | None,
        start: Int[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Embeddings, projected and with sinusoidal positions where the config has them."""
        x = self.embedding(tokens)
        if self.embedding_proj is not None:
            x = self.embedding_proj(x)
        if self.config.positions == "sinusoidal":
            positions = token_positions(tokens, mask=mask, segments=segments, start=start)
            x = x + sinusoids(positions, self.config.dim).to(x.dtype)
        return x

    def forward_with_loss(
        self, tokens: Int[Tensor, "batch tokens"], *, mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> tuple[Float[Tensor, "batch tokens vocab"], Float[Tensor, ""]]:
        """Scores of the token after every token, and the commitment losses of all layers, to be added to the task's.

        Args:
            tokens: ids below `vocab_size`.
            mask: True = real token.
        """
        self.check_tokens(tokens)
        x = self.dropout(self.embed(tokens, mask, None, None))
        recompute = self.config.checkpointing and self.training and torch.is_grad_enabled()
        loss = x.new_zeros(())
        for block in self._blocks():
            assert isinstance(block.mixer, RoutingAttention)
            loss = loss + block.mixer.commitment_loss(block.mixer_norm(x), mask=mask)
            x = checkpoint(block, x, mask, None, use_reentrant=False) if recompute else block(x, mask, None)
        return self.head(self.norm(x)), loss

    def update_centroids(self) -> None:
        """Move the centroids of all layers by the training calls since the last update."""
        for mixer in self.mixers():
            assert isinstance(mixer, RoutingAttention)
            mixer.update_centroids()

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the compared code's layout.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape, or a config that the layout does not have.
        """
        config = self.config
        if config.mode != "compat" or config.feed_forward != "gelu" or config.embedding_dim or config.tied:
            raise ValueError(
                "the compared layout is that of mode='compat', feed_forward='gelu', embedding_dim=0, tied=False, got "
                f"{config.mode!r}, {config.feed_forward!r}, {config.embedding_dim} and {config.tied}"
            )
        load_strictly(self, own_names(state_dict))


def own_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`routing_transformer.layers.layers.1.0.fn.to_q.weight` as `blocks.1.mixer.q_proj.weight`, and so on."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        found = re.fullmatch(r"routing_transformer\.layers\.layers\.(\d+)\.(.+)", name)
        if found is None:
            if name not in CONSTANTS:
                renamed |= rename_all({name: tensor}, MODEL_NAMES)
            continue
        layer, part = found.groups()
        own: Mapping[str, Tensor]
        if part.startswith("0.fn."):
            own = {f"mixer.{key}": x for key, x in own_layout({part.removeprefix("0.fn."): tensor}).items()}
        else:
            own = {rename(part, BLOCK_NAMES): tensor}
        renamed |= {f"blocks.{layer}.{key}": x for key, x in own.items()}
    return renamed
