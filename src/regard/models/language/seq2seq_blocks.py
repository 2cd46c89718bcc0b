"""What the sequence-to-sequence networks share: their config, embeddings, one block, and decoding over its caches.

A block is self-attention, then, in networks that have it, attention to a source (`cross` or `partial`), then a
feed-forward, each behind a norm and added to what came in. Projections and meeting are apart, so that a block can read
keys and values of another stack (one softmax over encoder and decoder) or of a cache.
Different from fairseq's networks, whose sizes are used: the norm stands before a sub-block and once more at the end,
positions are learned, and word, position and language embeddings are scaled together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regard.contract import load_strictly
from regard.layers.kv_cache import KVCache, empty_cache
from regard.layers.projected_attention import KeysValues, ProjectedAttention
from regard.mixers.sequence.palm import PartialAttention, own_name
from regard.models.language.seq2seq import Seq2SeqModel, Seq2SeqState
from regard.ops.heads import head_width, kv_head_count

Reader = Literal["nothing", "cross", "partial"]
REFERENCE_LIMIT = 100.0
_REFERENCE_LAYERS = {
    "attn_norm": "norm",
    "partial_attention": "reader",
    "partial_attn_norm": "reader_norm",
    "mlp_norm": "feed_forward_norm",
    "mlp": "feed_forward",
}


@dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig:
    """What all sequence-to-sequence networks have.

    Args:
        vocab_size: number of ids, one vocabulary for source and target.
        dim: width of the model.
        num_heads: number of query heads.
        num_kv_heads: number of key/value heads; None = `num_heads`.
        mlp_dim: inner width of the feed-forward.
        norm: "layer" (LayerNorm) or "rms" (RMSNorm).
        norm_eps: epsilon of the norms.
        feed_forward: "relu" (two layers) or "swiglu" (three, without bias).
        bias: bias in the projections of attention.
        positions: "learned" embeddings, or "rotary" ones inside self-attention and partial attention.
        rope_base: base of the rotary embedding.
        max_positions: number of learned positions.
        embedding_norm: normalise embeddings, instead of scaling them by sqrt(dim).
        dropout: probability of dropping a feature, after every sub-block and on embeddings, in training.
        attn_drop: probability of dropping a weight of attention in training.
        pad_id: id of padding: a batch that has it and no mask is refused; None = not known.
        checkpointing: in training, compute the activations inside blocks again instead of keeping them.

    Raises:
        ValueError: a size that is not positive or does not divide, or an unknown option.
    """

    vocab_size: int = 10_000
    dim: int = 512
    num_heads: int = 4
    num_kv_heads: int | None = None
    mlp_dim: int = 1024
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-5
    feed_forward: Literal["relu", "swiglu"] = "relu"
    bias: bool = True
    positions: Literal["learned", "rotary"] = "learned"
    rope_base: float = 10_000.0
    max_positions: int = 1024
    embedding_norm: bool = False
    dropout: float = 0.3
    attn_drop: float = 0.0
    pad_id: int | None = None
    checkpointing: bool = False

    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "norm": ("layer", "rms"),
        "feed_forward": ("relu", "swiglu"),
        "positions": ("learned", "rotary"),
    }

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "num_heads", "mlp_dim", "max_positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name, allowed in self.choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        head_width(self.dim, self.num_heads)
        kv_head_count(self.num_heads, self.num_kv_heads)

    @property
    def rotary_base(self) -> float | None:
        """The base where positions are rotary."""
        return self.rope_base if self.positions == "rotary" else None


def check_layers(**counts: int) -> None:
    """Refuse stacks without layers.

    Raises:
        ValueError: a number that is not positive, with its name.
    """
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be positive, got {count}")


def make_norm(config: Seq2SeqConfig) -> nn.Module:
    """The config's norm."""
    made: nn.Module = (nn.LayerNorm if config.norm == "layer" else nn.RMSNorm)(config.dim, eps=config.norm_eps)
    return made


class FeedForward(nn.Module):
    """Two layers with ReLU, or SwiGLU: W_down (silu(W_gate x) * W_up x).

    Args:
        config: widths and which one.
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        gated = config.feed_forward == "swiglu"
        self.gate_proj = nn.Linear(config.dim, config.mlp_dim, bias=False) if gated else None
        self.up_proj = nn.Linear(config.dim, config.mlp_dim, bias=not gated)
        self.down_proj = nn.Linear(config.mlp_dim, config.dim, bias=not gated)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """The feed-forward."""
        up = self.up_proj(x)
        inner = up.relu() if self.gate_proj is None else nn.functional.silu(self.gate_proj(x)) * up
        return self.down_proj(inner)


class Seq2SeqBlock(nn.Module):
    """One layer: self-attention, attention to a source, feed-forward.

    Args:
        config: sizes and options.
        reader: the middle sub-block: "nothing", "cross" or "partial" attention.
    """

    def __init__(self, config: Seq2SeqConfig, *, reader: Reader) -> None:
        super().__init__()
        self.norm = make_norm(config)
        self.attention = ProjectedAttention(
            config.dim,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            bias=config.bias,
            rope_base=config.rotary_base,
            attn_drop=config.attn_drop,
        )
        self.reader_norm = None if reader == "nothing" else make_norm(config)
        self.reader = _make_reader(config, reader)
        self.feed_forward_norm = make_norm(config)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def project(self, x: Tensor, positions: Int[Tensor, "#batch tokens"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of self-attention, from one norm."""
        normed = self.norm(x)
        return (self.attention.queries(normed, positions), *self.attention.keys_values(normed, positions))

    def keys_values(self, x: Tensor, positions: Int[Tensor, "#batch keys"]) -> KeysValues:
        """Keys and values of self-attention for states of another stack."""
        return self.attention.keys_values(self.norm(x), positions)

    def attended(
        self, x: Tensor, q: Tensor, keys: Tensor, values: Tensor, *, causal: bool = False, visible: Tensor | None = None
    ) -> Tensor:
        """`x` after self-attention."""
        return x + self.dropout(self.attention.attend(q, keys, values, causal=causal, visible=visible))

    def informed(
        self, x: Tensor, positions: Int[Tensor, "#batch tokens"], source: KeysValues, source_mask: Tensor | None
    ) -> Tensor:
        """`x` after attention to a source, whose keys and values `reader.keys_values` gave."""
        assert self.reader is not None
        assert self.reader_norm is not None
        visible = None if source_mask is None else source_mask[:, None, None, :]
        q = self.reader.queries(self.reader_norm(x), positions)
        return x + self.dropout(self.reader.attend(q, *source, visible=visible))

    def fed(self, x: Tensor) -> Tensor:
        """`x` after the feed-forward."""
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the compared code's `PALMLayer`: `attn_norm`, `attention.query`, `partial_attention.Fp_linear1`, ...

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, {reference_name(name): tensor for name, tensor in state_dict.items()})


def reference_name(name: str) -> str:
    """`partial_attention.key.weight` as `reader.k_proj.weight`, and so on."""
    layer, _, rest = name.partition(".")
    inner = own_name(rest) if layer in ("attention", "partial_attention") else rest
    return f"{_REFERENCE_LAYERS.get(layer, layer)}.{inner}"


def _make_reader(config: Seq2SeqConfig, reader: Reader) -> ProjectedAttention | PartialAttention | None:
    if reader == "nothing":
        return None
    if reader == "cross":
        return ProjectedAttention(
            config.dim,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            bias=config.bias,
            attn_drop=config.attn_drop,
            of_source=True,
        )
    modern = config.feed_forward == "swiglu"
    return PartialAttention(
        config.dim,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        activation="silu" if modern else "relu",
        limit=REFERENCE_LIMIT if modern else None,
        qkv_bias=config.bias,
        out_bias=config.bias,
        rope_base=config.rotary_base,
        attn_drop=config.attn_drop,
    )


class Seq2SeqEmbedding(nn.Module):
    """Word, position and language embeddings, and the scores through the same words.

    Args:
        config: sizes and options.
        language: whether source and target have a learned vector each.
    """

    def __init__(self, config: Seq2SeqConfig, *, language: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.dim)
        self.positions = nn.Embedding(config.max_positions, config.dim) if config.positions == "learned" else None
        self.language = nn.Embedding(2, config.dim) if language else None
        self.norm = make_norm(config) if config.embedding_norm else None
        self.scale = 1.0 if config.embedding_norm else config.dim**0.5
        self.dropout = nn.Dropout(config.dropout)
        for table in (self.words, self.positions, self.language):
            if table is not None:
                nn.init.normal_(table.weight, std=config.dim**-0.5)

    def forward(
        self, tokens: Int[Tensor, "batch tokens"], positions: Int[Tensor, "#batch tokens"], *, is_source: bool
    ) -> Float[Tensor, "batch tokens dim"]:
        """Embeddings of tokens."""
        x = self.words(tokens)
        if self.positions is not None:
            x = x + self.positions(positions)
        if self.language is not None:
            x = x + self.language.weight[0 if is_source else 1]
        return self.dropout(x * self.scale if self.norm is None else self.norm(x))

    def scores(self, hidden: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens vocab"]:
        """Scores of all words."""
        return nn.functional.linear(hidden, self.words.weight)


def make_blocks(config: Seq2SeqConfig, count: int, *, reader: Reader) -> nn.ModuleList:
    """A stack of blocks."""
    return nn.ModuleList(Seq2SeqBlock(config, reader=reader) for _ in range(count))


def blocks_of(stack: nn.ModuleList) -> list[Seq2SeqBlock]:
    """The blocks of a stack, as what they are."""
    return [block for block in stack if isinstance(block, Seq2SeqBlock)]


def encoded_layer(
    block: Seq2SeqBlock, x: Tensor, positions: Tensor, source_mask: Tensor | None, causal: bool
) -> Tensor:
    """A source's states after self-attention and feed-forward of a block, whatever reader it has.

    Real tokens come first, so that causal attention needs no mask: padding is later than all of them.
    """
    q, k, v = block.project(x, positions)
    visible = None if source_mask is None or causal else source_mask[:, None, None, :]
    return block.fed(block.attended(x, q, k, v, causal=causal, visible=visible))


class BlockSeq2Seq(Seq2SeqModel):
    """A network of `Seq2SeqBlock`s: embeddings, and decoding over the blocks that see the target.

    A subclass sets `embedding`, `decoder` (those blocks) and `norm` (after the last of them).
    """

    embedding: Seq2SeqEmbedding
    decoder: nn.ModuleList
    norm: nn.Module

    def embed(self, tokens: Tensor, positions: Tensor, *, is_source: bool) -> Tensor:
        """Embeddings of tokens at their positions."""
        return self.embedding(tokens, positions, is_source=is_source)

    def scores(self, hidden: Tensor) -> Tensor:
        """Scores of the vocabulary."""
        return self.embedding.scores(hidden)

    def run(self, function: Callable[..., Tensor], *arguments: object) -> Tensor:
        """Call a part of the network, by gradient checkpointing where that is on."""
        if self.config.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(function, *arguments, use_reentrant=False)
        return function(*arguments)

    def empty_caches(self, batch: int, max_len: int | None) -> list[KVCache]:
        """One empty cache for every block of the decoder."""
        attention = self.blocks()[0].attention
        width = attention.head_dim
        return [
            empty_cache(
                batch,
                num_kv_heads=attention.num_kv_heads,
                head_dim=width,
                value_dim=width,
                max_len=max_len,
                like=attention.k_proj.weight,
            )
            for _ in self.decoder
        ]

    def blocks(self) -> Sequence[Seq2SeqBlock]:
        """The blocks that see the target."""
        return blocks_of(self.decoder)

    def step_packed(self, target: Tensor, positions: Tensor, state: Seq2SeqState) -> tuple[Tensor, tuple[KVCache, ...]]:
        """Self-attention over each cache, the kept source where the block reads one, the feed-forward."""
        x, caches = target, []
        mask = state.source_mask if state.padded else None
        for number, (block, cache) in enumerate(zip(self.blocks(), state.caches, strict=True)):
            q, k, v = block.project(x, positions)
            first = cache.position
            cache = cache.append(k, v, None)
            keys, values = (stored.to(q.dtype) for stored in cache.read())
            x = block.attended(x, q, keys, values, visible=cache.visible_to(first, x.shape[1]))
            if state.sources:
                x = block.informed(x, positions, state.sources[number], mask)
            x = block.fed(x)
            caches.append(cache)
        return self.norm(x), tuple(caches)
