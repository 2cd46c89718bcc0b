"""Softmax attention: every token takes a weighted mean of the tokens it may see. The baseline of every race.

Paper: "Attention Is All You Need", Vaswani et al., NeurIPS 2017, https://arxiv.org/abs/1706.03762, equation 1 and
section 3.2.2; fewer key/value heads than query heads as in "GQA", Ainslie et al., EMNLP 2023,
https://arxiv.org/abs/2305.13245; rotary embedding as in RoFormer, https://arxiv.org/abs/2104.09864.
Compared with `torch.nn.functional.scaled_dot_product_attention` and `torch.nn.MultiheadAttention`.
Different from the paper: separate projections without bias by default, as language models have them today.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.contract import SequenceMixer
from regard.layers.kv_cache import KVCache, empty_cache
from regard.metadata import Example, Paper, Traits
from regard.ops.heads import head_width, kv_head_count, merge_heads, repeat_heads, split_heads
from regard.ops.rotary import check_rotary, rotate
from regard.ops.softmax_attention import softmax_attention, softmax_weights
from regard.ops.visibility import visible_keys
from regard.registry import register


@register(
    name="softmax",
    system="softmax",
    paper=Paper(
        title="Attention Is All You Need",
        authors="Vaswani et al.",
        venue="NeurIPS",
        year=2017,
        url="https://arxiv.org/abs/1706.03762",
        where="equation 1, section 3.2.2",
    ),
    traits=Traits(training_free=True, time="n^2", memory="n"),
    example=Example(kwargs={"dim": 24, "num_heads": 6, "num_kv_heads": 3}, batch=2, tokens=13, context=7),
)
class SoftmaxAttention(SequenceMixer):
    """Multi-head and grouped-query softmax attention.

    y_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j, over the keys j that query i may see.

    Args:
        dim: width of the model.
        num_heads: number of query heads; must divide `dim`.
        num_kv_heads: number of key/value heads; must divide `num_heads`; None = `num_heads`.
        causal: hide the future.
        qkv_bias: bias in the three input projections.
        rope_base: base of the rotary embedding; None = no positions.
        attn_drop: probability of dropping a weight in training.
        proj_drop: probability of dropping an output feature in training.

    Raises:
        ValueError: sizes that do not divide, or a rotary embedding with an odd head width.

    Cost: projections, and 2 * heads * queries * keys * head_dim MACs.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        num_kv_heads: int | None = None,
        causal: bool = False,
        qkv_bias: bool = False,
        rope_base: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.head_dim = head_width(dim, num_heads)
        self.num_kv_heads = kv_head_count(num_heads, num_kv_heads)
        check_rotary(self.head_dim, rope_base)
        self.rope_base = rope_base
        self.attn_drop = attn_drop
        self.q_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.k_proj = nn.Linear(dim, self.num_kv_heads * self.head_dim, bias=qkv_bias)
        self.v_proj = nn.Linear(dim, self.num_kv_heads * self.head_dim, bias=qkv_bias)
        self.o_proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def inert_parameters(self) -> set[str]:
        """Without rotary embedding a key bias adds the same number to all scores of a query."""
        return {"k_proj.bias"} if self.k_proj.bias is not None and self.rope_base is None else set()

    def _project(self, x: Tensor, source: Tensor, positions: Int[Tensor, "#batch tokens"] | None) -> tuple[Tensor, ...]:
        q = split_heads(self.q_proj(x), self.num_heads)
        k = split_heads(self.k_proj(source), self.num_kv_heads)
        v = split_heads(self.v_proj(source), self.num_kv_heads)
        if self.rope_base is None:
            return q, k, v
        rows = torch.arange(x.shape[1], device=x.device)[None] if positions is None else positions
        columns = rows if source is x else torch.arange(source.shape[1], device=x.device)[None]
        return rotate(q, rows, base=self.rope_base), rotate(k, columns, base=self.rope_base), v

    def _visible(
        self, x: Tensor, keys: int, mask: Tensor | None, segments: Tensor | None
    ) -> Bool[Tensor, "#batch 1 queries keys"] | None:
        # padding lies to the right of every real token, so causality already hides it
        mask = None if self.causal else mask
        return visible_keys(x.shape[1], keys, causal=self.causal, mask=mask, segments=segments, device=x.device)

    def mix(
        self,
        x: Float[Tensor, "batch tokens dim"],
        *,
        context: Float[Tensor, "batch keys dim"] | None,
        mask: Bool[Tensor, "batch keys"] | None,
        segments: Int[Tensor, "batch tokens"] | None,
        bias: Float[Tensor, "batch heads tokens keys"] | None,
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """Weights times values, by the fused kernel."""
        q, k, v = self._project(x, x if context is None else context, None)
        fused_causality = self.causal and segments is None and bias is None
        visible = None if fused_causality else self._visible(x, k.shape[2], mask, segments)
        dropout = self.attn_drop if self.training else 0.0
        return softmax_attention(q, k, v, causal=fused_causality, visible=visible, bias=bias, dropout=dropout)

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Merge the heads and project."""
        return self.proj_drop(self.o_proj(merge_heads(mixed)))

    def init_state(self, batch: int, *, max_len: int | None = None) -> KVCache:
        """An empty key-value cache; without `max_len` it grows by doubling."""
        width = self.head_dim
        like = self.k_proj.weight
        return empty_cache(
            batch, num_kv_heads=self.num_kv_heads, head_dim=width, value_dim=width, max_len=max_len, like=like
        )

    def mix_step(self, x: Tensor, state: KVCache, *, mask: Tensor | None) -> tuple[Tensor, KVCache]:
        """New tokens against everything in the cache."""
        tokens = x.shape[1]
        positions = state.position[:, None] + torch.arange(tokens, device=x.device)
        q, k, v = self._project(x, x, positions)
        from_empty = state.filled == 0
        after = state.append(k, v, mask)
        if from_empty:
            return softmax_attention(q, k, v, causal=True), after
        keys, values = (stored.to(q.dtype) for stored in after.read())
        return softmax_attention(q, keys, values, visible=after.visible_to(state.position, tokens)), after

    def weights(
        self,
        x: Tensor,
        *,
        context: Tensor | None,
        mask: Tensor | None,
        segments: Tensor | None,
        bias: Tensor | None,
    ) -> Float[Tensor, "batch heads tokens keys"]:
        """The softmax weights themselves."""
        q, k, _ = self._project(x, x if context is None else context, None)
        return softmax_weights(q, k, visible=self._visible(x, k.shape[2], mask, segments), bias=bias)

    def values(self, x: Tensor, *, context: Tensor | None = None) -> Float[Tensor, "batch heads keys head_dim"]:
        """Projected values, repeated for the query heads that share them."""
        source = x if context is None else context
        return repeat_heads(split_heads(self.v_proj(source), self.num_kv_heads), self.num_heads)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """Four projections, scores and weighted sum; causality halves nothing (the full square is counted)."""
        head_dim = options.dim // options.num_heads
        kv_width = head_dim * (options.num_kv_heads or options.num_heads)
        projections = 2 * tokens * options.dim**2 + 2 * keys * options.dim * kv_width
        return batch * (projections + 2 * tokens * keys * options.dim)
