"""URPE attention: softmax weights times learned factors of the relative position, which makes attention universal.

Paper: "Your Transformer May Not be as Powerful as You Expect", Luo et al., NeurIPS 2022,
https://arxiv.org/abs/2205.13401, URPE-based attention: (softmax(Q K^T / sqrt(d) + B) * C) V, with Toeplitz B and C.
Compared with lsj2408/URPE@47b711f8, `fairseq/modules/multihead_attention.py:MultiheadAttention`, whose tables are made
by `fairseq/modules/transformer_sentence_encoder.py:TransformerSentenceEncoder`.
Different from the code: the attention owns its tables (`share_positions` gives layers the same ones, as there); the map
is the one with C, where the code returns the softmax without it; causal and grouped-query forms, Transformer-XL's and
ALiBi's biases, which the paper has in its experiments or leaves open, are options.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.contract import SequenceMixer
from regard.layers.kv_cache import KVCache, empty_cache
from regard.layers.urpe_positions import Biases, Factors, URPEPositions
from regard.metadata import Example, No, Paper, Traits
from regard.ops.heads import head_width, kv_head_count, merge_heads, repeat_heads, split_heads
from regard.ops.toeplitz import toeplitz
from regard.ops.urpe import urpe_attention, urpe_attention_reference, urpe_macs, urpe_weights
from regard.ops.visibility import visible_keys
from regard.registry import register

URPE_PAPER = Paper(
    title="Your Transformer May Not be as Powerful as You Expect",
    authors="Luo et al.",
    venue="NeurIPS",
    year=2022,
    url="https://arxiv.org/abs/2205.13401",
    code="lsj2408/URPE@47b711f85be5de010deeafa9d8788d399912c3a2",
    where="universal RPE-based attention",
)


@register(
    name="urpe",
    system="urpe",
    paper=URPE_PAPER,
    traits=Traits(
        cross=No("factors belong to distances, and a context has no order relative to x"),
        row_stochastic=No("factors multiply the weights after the softmax: they are signed, and no sum is kept"),
        time="n^2",
        memory="n",
    ),
    example=Example(
        kwargs={"dim": 36, "num_heads": 6, "num_kv_heads": 3, "max_positions": 311}, batch=2, tokens=13, context=7
    ),
)
class URPEAttention(SequenceMixer):
    """Universal relative positional encoding: what softmax attention weighs is multiplied by C.

    y_i = sum_j C_{j-i} softmax_j(q_i . k_j / sqrt(d) + B_{j-i}) v_j, over the keys j that query i may see.

    Args:
        dim: width of the model.
        num_heads: number of query heads; must divide `dim`.
        num_kv_heads: number of key/value heads; must divide `num_heads`; None = `num_heads`.
        causal: hide the future.
        biases: B: "unique" (a number per distance), "log" (shared by similar distances, as in T5), "transformer_xl"
            (of the query and of sinusoids), "alibi" (falling with the distance) or "none".
        factors: C: "unique", "log" or "none" (1 everywhere: attention that is not universal).
        max_positions: most tokens.
        num_buckets: buckets of a "log" table, those of both directions.
        max_distance: distance from which on all share the last bucket of a "log" table.
        qkv_bias: bias in the three input projections.
        attn_drop: probability of dropping a weight in training, after C.
        proj_drop: probability of dropping an output feature in training.

    Raises:
        ValueError: sizes that do not divide, or an unknown option.

    Cost: projections, and 2 * heads * queries * keys * head_dim MACs, about half of that where causal; a "unique" table
    has (2 max_positions - 1) * heads numbers, max_positions * heads where causal. Transformer-XL's biases are the only
    ones that exist as a map of queries * keys numbers per head.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        num_kv_heads: int | None = None,
        causal: bool = False,
        biases: Biases = "unique",
        factors: Factors = "unique",
        max_positions: int = 2048,
        num_buckets: int = 64,
        max_distance: int = 128,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.head_dim = head_width(dim, num_heads)
        self.num_kv_heads = kv_head_count(num_heads, num_kv_heads)
        self.attn_drop = attn_drop
        kv_width = self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.k_proj = nn.Linear(dim, kv_width, bias=qkv_bias)
        self.v_proj = nn.Linear(dim, kv_width, bias=qkv_bias)
        self.o_proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.own_positions: URPEPositions | None = URPEPositions(
            dim,
            num_heads,
            biases=biases,
            factors=factors,
            max_positions=max_positions,
            num_buckets=num_buckets,
            max_distance=max_distance,
            causal=causal,
        )
        # in a tuple, a module is no part of this one: what is shared is stored once, by its owner
        self._owner: tuple[URPEAttention, ...] = ()

    @property
    def positions(self) -> URPEPositions:
        """B and C: this mixer's own, or another's."""
        found = self._owner[0].positions if self._owner else self.own_positions
        assert found is not None
        return found

    def share_positions(self, owner: URPEAttention) -> None:
        """Use another mixer's B and C from now on; its parameters stay the other's alone.

        Raises:
            ValueError: another number of heads or width, another form, or a mixer that uses this one's.
        """
        ours, theirs = ((each.dim, each.num_heads, each.causal, each.positions.max_positions) for each in (self, owner))
        if ours != theirs:
            raise ValueError(f"(dim, num_heads, causal, max_positions) is {ours}, the owner's is {theirs}: no sharing")
        other: URPEAttention | None = owner
        while other is not None:
            if other is self:
                raise ValueError("a mixer cannot share what it owns with itself")
            other = other._owner[0] if other._owner else None
        self._owner, self.own_positions = (owner,), None

    def inert_parameters(self) -> set[str]:
        """A key bias adds the same number to all scores of a query."""
        return {"k_proj.bias"} if self.k_proj.bias is not None else set()

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = split_heads(self.q_proj(x), self.num_heads)
        return q, split_heads(self.k_proj(x), self.num_kv_heads), split_heads(self.v_proj(x), self.num_kv_heads)

    def _visible(
        self, x: Tensor, mask: Tensor | None, segments: Tensor | None
    ) -> Bool[Tensor, "#batch 1 queries keys"] | None:
        # padding lies to the right of every real token, so causality already hides it
        mask = None if self.causal else mask
        tokens = x.shape[1]
        return visible_keys(tokens, tokens, causal=self.causal, mask=mask, segments=segments, device=x.device)

    def mix(
        self,
        x: Float[Tensor, "batch tokens dim"],
        *,
        context: Float[Tensor, "batch keys dim"] | None,
        mask: Bool[Tensor, "batch keys"] | None,
        segments: Int[Tensor, "batch tokens"] | None,
        bias: Float[Tensor, "batch heads tokens keys"] | None,
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """Signed weights times values, in blocks of queries."""
        self.positions.check_length(x.shape[1])
        by_blocks = self.causal and segments is None
        visible = None if by_blocks else self._visible(x, mask, segments)
        return self._attend(*self._project(x), causal=by_blocks, visible=visible, bias=bias)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, visible: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Where the last query stands at the last key."""
        terms = self.positions.terms(q, k.shape[2])
        return urpe_attention(
            self.positions.content(q),
            k,
            v,
            factors=terms.factors,
            biases=terms.biases,
            bias=_sum(terms.bias, bias),
            causal=causal,
            visible=visible,
            dropout=self.attn_drop if self.training else 0.0,
        )

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Merge the heads and project."""
        return self.proj_drop(self.o_proj(merge_heads(mixed)))

    def init_state(self, batch: int, *, max_len: int | None = None) -> KVCache:
        """An empty key-value cache; without `max_len` it grows by doubling.

        Raises:
            ValueError: `max_len` exceeds `max_positions`.
        """
        if max_len is not None:
            self.positions.check_length(max_len)
        width, like = self.head_dim, self.k_proj.weight
        return empty_cache(
            batch, num_kv_heads=self.num_kv_heads, head_dim=width, value_dim=width, max_len=max_len, like=like
        )

    def mix_step(self, x: Tensor, state: KVCache, *, mask: Tensor | None) -> tuple[Tensor, KVCache]:
        """New tokens against everything in the cache; where rows differ in length, each at its own positions."""
        tokens = x.shape[1]
        q, k, v = self._project(x)
        from_empty = state.filled == 0
        after = state.append(k, v, mask)
        self._check_positions(after)
        if from_empty:
            return self._attend(q, k, v, causal=True, visible=None, bias=None), after
        keys, values = (stored.to(q.dtype) for stored in after.read())
        if not after.ragged:
            return self._attend(q, keys, values, causal=True, visible=None, bias=None), after
        positions = state.position[:, None] + torch.arange(tokens, device=x.device)
        factors, bias = self.positions.maps(q, positions, keys.shape[2])
        visible = after.visible_to(state.position, tokens)
        q = self.positions.content(q)
        return urpe_attention_reference(q, keys, values, factors=factors, bias=bias, visible=visible), after

    def _check_positions(self, cache: KVCache) -> None:
        # `filled` counts padding too; only where it is too large is looking at the device worth its cost
        limit = self.positions.max_positions
        if cache.filled > limit and not (cache.ragged and torch.compiler.is_compiling()):
            self.positions.check_length(int(cache.position.max()) if cache.ragged else cache.filled)

    def weights(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens keys"]:
        """The signed map, C included."""
        self.positions.check_length(x.shape[1])
        q, k, _ = self._project(x)
        tokens = x.shape[1]
        terms = self.positions.terms(q, tokens)
        factors, biases = (None if each is None else toeplitz(each, tokens)[None] for each in terms[:2])
        added = _sum(_sum(biases, terms.bias), bias)
        visible = self._visible(x, mask, segments)
        return urpe_weights(self.positions.content(q), k, factors=factors, bias=added, visible=visible)

    def values(self, x: Tensor, *, context: Tensor | None = None) -> Float[Tensor, "batch heads keys head_dim"]:
        """Projected values, repeated for the query heads that share them."""
        return repeat_heads(split_heads(self.v_proj(x), self.num_kv_heads), self.num_heads)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """Four projections and the blocks of attention; Transformer-XL's biases project and meet every distance."""
        dim, head_dim = options.dim, options.dim // options.num_heads
        kv_width = head_dim * (options.num_kv_heads or options.num_heads)
        operator = urpe_macs(tokens, tokens, head_dim=head_dim, value_dim=head_dim, past_only=options.causal)
        macs = batch * (2 * tokens * dim * (dim + kv_width) + options.num_heads * operator)
        if options.biases == "transformer_xl":
            listed = min(tokens + 1, 2 * tokens - 1) if options.causal else 2 * tokens - 1
            macs += listed * dim**2 + batch * tokens * listed * dim
        return macs


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second
