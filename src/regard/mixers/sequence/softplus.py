"""Softplus attention: normalised softplus scores that grow with the length (LSSA), and sharpened ones (LSSAR).

Paper: "Softplus Attention with Re-weighting Boosts Length Extrapolation in Large Language Models", Gao and Spratling,
ICML 2025, https://arxiv.org/abs/2501.13428. The authors' repository is not obtainable; compared with a third party's
On-Point-RND/transformer-architecture-generalization@6d3fc68c, `models/lssa.py` and `models/lssar.py`.
Different from the paper: it subtracts 1 in every row, which leaves the first one empty; as in the code, rows that see
at most three keys subtract 0 (`offset_free_rows`). Different from the code: the stable form of the re-weighting is the
only one here, since the code's epsilon lets rows of nearly uniform weights sum to less than 1 and its powers overflow;
its own form is `regard.ops.softplus_attention.softplus_weights(..., eps=1e-8)`, where the paper's ablations are too.
Added: forms that are not causal, in which a query sees N_i = all real keys; packed segments, in which N_i starts anew;
a bias, added to the scaled scores; fewer key/value heads than query heads.
"""

from __future__ import annotations

import warnings
from abc import ABC
from types import SimpleNamespace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.contract import SequenceMixer
from regard.layers.kv_cache import KVCache, empty_cache
from regard.metadata import Example, Paper, Traits
from regard.ops.heads import head_width, kv_head_count, merge_heads, repeat_heads, split_heads
from regard.ops.rotary import check_rotary, rotate
from regard.ops.softplus_attention import (
    OFFSET_FREE_ROWS,
    VisibleKeys,
    check_power,
    key_spans,
    softplus_attention,
    softplus_weights,
    unit_length,
)
from regard.ops.softplus_blocks import Spans, softplus_attention_macs
from regard.ops.visibility import visible_keys
from regard.registry import register

PAPER = Paper(
    title="Softplus Attention with Re-weighting Boosts Length Extrapolation in Large Language Models",
    authors="Gao and Spratling",
    venue="ICML",
    year=2025,
    url="https://arxiv.org/abs/2501.13428",
    code="On-Point-RND/transformer-architecture-generalization@6d3fc68c (a third party's)",
)
TRAITS = Traits(time="n^2", memory="n")
EXAMPLE = Example(kwargs={"dim": 36, "num_heads": 6, "num_kv_heads": 3}, batch=2, tokens=13, context=7)


class _SoftplusAttention(SequenceMixer, ABC):
    """What LSSA and LSSAR share: everything but the exponent, which is None in LSSA."""

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        num_kv_heads: int | None,
        causal: bool,
        power: int | None,
        offset_free_rows: int,
        qkv_bias: bool,
        rope_base: float | None,
        attn_drop: float,
        proj_drop: float,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.head_dim = head_width(dim, num_heads)
        self.num_kv_heads = kv_head_count(num_heads, num_kv_heads)
        check_rotary(self.head_dim, rope_base)
        check_power(power, offset_free_rows)
        if self.head_dim == 1:
            warnings.warn("head_dim=1: scores are scaled by ln 1 = 0, so all weights are equal", stacklevel=3)
        self.power, self.offset_free_rows = power, offset_free_rows
        self.rope_base, self.attn_drop = rope_base, attn_drop
        self.q_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.k_proj = nn.Linear(dim, self.num_kv_heads * self.head_dim, bias=qkv_bias)
        self.v_proj = nn.Linear(dim, self.num_kv_heads * self.head_dim, bias=qkv_bias)
        self.o_proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def inert_parameters(self) -> set[str]:
        """None, but for a head_dim of 1, whose weights are all equal."""
        if self.head_dim > 1:
            return set()
        return {name for name, _ in self.named_parameters() if name.startswith(("q_proj", "k_proj"))}

    def _project(
        self, x: Tensor, source: Tensor, positions: Int[Tensor, "#batch tokens"] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys of length 1, in at least float32, and values."""
        q = split_heads(self.q_proj(x), self.num_heads)
        k = split_heads(self.k_proj(source), self.num_kv_heads)
        v = split_heads(self.v_proj(source), self.num_kv_heads)
        # normalised first, which keeps the rotation in float32; a rotation keeps the length
        q, k = unit_length(q), unit_length(k)
        if self.rope_base is None:
            return q, k, v
        rows = torch.arange(x.shape[1], device=x.device)[None] if positions is None else positions
        columns = rows if source is x else torch.arange(source.shape[1], device=x.device)[None]
        return rotate(q, rows, base=self.rope_base), rotate(k, columns, base=self.rope_base), v

    def mix(
        self,
        x: Float[Tensor, "batch tokens dim"],
        *,
        context: Float[Tensor, "batch keys dim"] | None,
        mask: Bool[Tensor, "batch keys"] | None,
        segments: Int[Tensor, "batch tokens"] | None,
        bias: Float[Tensor, "batch heads tokens keys"] | None,
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """Weights times values, in blocks; a bias or dropout of the weights needs the whole map."""
        dropout = self.attn_drop if self.training else 0.0
        if bias is not None or dropout > 0:
            weights = self.weights(x, context=context, mask=mask, segments=segments, bias=bias)
            weights = torch.nn.functional.dropout(weights, dropout, self.training)
            v = self.values(x, context=context)
            return (weights @ v.to(weights.dtype)).to(v.dtype)
        q, k, v = self._project(x, x if context is None else context)
        visible = key_spans(q.shape[2], k.shape[2], causal=self.causal, mask=mask, segments=segments, device=x.device)
        return self._attend(q, k, v, visible)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, visible: VisibleKeys) -> Tensor:
        return softplus_attention(
            q, k, v, visible=visible, power=self.power, offset_free_rows=self.offset_free_rows, qk_norm=False
        )

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Merge the heads and project."""
        return self.proj_drop(self.o_proj(merge_heads(mixed)))

    def init_state(self, batch: int, *, max_len: int | None = None) -> KVCache:
        """An empty cache of normalised keys and of values; without `max_len` it grows by doubling."""
        width, like = self.head_dim, self.k_proj.weight
        return empty_cache(
            batch, num_kv_heads=self.num_kv_heads, head_dim=width, value_dim=width, max_len=max_len, like=like
        )

    def mix_step(self, x: Tensor, state: KVCache, *, mask: Tensor | None) -> tuple[Tensor, KVCache]:
        """New tokens against everything in the cache: N_i is a token's position + 1, so older rows never change."""
        positions = state.position[:, None] + torch.arange(x.shape[1], device=x.device)
        q, k, v = self._project(x, x, positions)
        from_empty = state.filled == 0
        after = state.append(k, v, mask)
        if from_empty:
            return self._attend(q, k, v, "past"), after
        keys, values = after.read()
        spans = Spans(first=torch.zeros_like(positions), stop=positions + 1)
        return self._attend(q, keys, values.to(v.dtype), spans), after

    def weights(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens keys"]:
        """The weights themselves."""
        q, k, _ = self._project(x, x if context is None else context)
        # padding lies to the right of every real token, so causality already hides it
        mask = None if self.causal else mask
        visible = visible_keys(
            q.shape[2], k.shape[2], causal=self.causal, mask=mask, segments=segments, device=x.device
        )
        return softplus_weights(
            q,
            k,
            visible=visible,
            power=self.power,
            offset_free_rows=self.offset_free_rows,
            bias=bias,
            qk_norm=False,
        )

    def values(self, x: Tensor, *, context: Tensor | None = None) -> Float[Tensor, "batch heads keys head_dim"]:
        """Projected values, repeated for the query heads that share them."""
        source = x if context is None else context
        return repeat_heads(split_heads(self.v_proj(source), self.num_kv_heads), self.num_heads)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """Four projections, and the blocks of scores and weighted sums, which leave out most of the future."""
        head_dim = options.dim // options.num_heads
        kv_width = head_dim * (options.num_kv_heads or options.num_heads)
        projections = 2 * tokens * options.dim**2 + 2 * keys * options.dim * kv_width
        operator = softplus_attention_macs(
            tokens, keys, head_dim=head_dim, value_dim=head_dim, past_only=options.causal
        )
        return batch * (projections + options.num_heads * operator)


@register(name="softplus", system="softplus", paper=PAPER, traits=TRAITS, example=EXAMPLE)
class LSSARAttention(_SoftplusAttention):
    """Softplus attention with re-weighting: only keys above a row's average keep their weight, strong ones most.

    With unit vectors q, k, and N_i the number of keys that token i may see: a_ij = softplus(ln d ln N_i q_i . k_j) over
    its row sum; w_ij = relu(N_i a_ij - O_i)^p over its row sum; y_i = sum_j w_ij v_j.

    Args:
        dim: width of the model.
        num_heads: number of query heads; must divide `dim`.
        num_kv_heads: number of key/value heads; must divide `num_heads`; None = `num_heads`.
        causal: hide the future.
        power: p, a whole number: 15 extrapolates furthest, where heads are wide (64 as in the paper; heads of 16 are
            not sharp enough: docs/LOG.md), 3 is best at the training length.
        offset_free_rows: tokens that see at most so many keys have the offset O_i = 0, all others 1.
        qkv_bias: bias in the three input projections.
        rope_base: base of the rotary embedding; None = no positions.
        attn_drop: probability of dropping a weight in training; it needs memory for the whole map.
        proj_drop: probability of dropping an output feature in training.

    Raises:
        ValueError: sizes that do not divide, a rotary embedding with an odd head width, or a power below 1.

    Cost: projections, and 2 * heads * queries * keys * head_dim MACs, half of that where causal.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        num_kv_heads: int | None = None,
        causal: bool = False,
        power: int = 15,
        offset_free_rows: int = OFFSET_FREE_ROWS,
        qkv_bias: bool = False,
        rope_base: float | None = 10000.0,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(
            dim,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            causal=causal,
            power=power,
            offset_free_rows=offset_free_rows,
            qkv_bias=qkv_bias,
            rope_base=rope_base,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
        )


@register(name="lssa", system="softplus", paper=PAPER, traits=TRAITS, example=EXAMPLE)
class LSSAAttention(_SoftplusAttention):
    """Softplus attention without re-weighting: softplus(ln d ln N_i q_i . k_j) over its row sum, for unit q and k.

    Args:
        dim: width of the model.
        num_heads: number of query heads; must divide `dim`.
        num_kv_heads: number of key/value heads; must divide `num_heads`; None = `num_heads`.
        causal: hide the future.
        qkv_bias: bias in the three input projections.
        rope_base: base of the rotary embedding; None = no positions.
        attn_drop: probability of dropping a weight in training; it needs memory for the whole map.
        proj_drop: probability of dropping an output feature in training.

    Raises:
        ValueError: sizes that do not divide, or a rotary embedding with an odd head width.

    Cost: projections, and 2 * heads * queries * keys * head_dim MACs, half of that where causal.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        num_kv_heads: int | None = None,
        causal: bool = False,
        qkv_bias: bool = False,
        rope_base: float | None = 10000.0,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(
            dim,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            causal=causal,
            power=None,
            offset_free_rows=OFFSET_FREE_ROWS,
            qkv_bias=qkv_bias,
            rope_base=rope_base,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
        )
