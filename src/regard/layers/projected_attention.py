"""Softmax attention in parts: queries of one stream, keys and values of any other, computed once and kept.

For networks that read more than one stream, or a stream that does not change while they generate: an encoder's last
layer, or the source of a sequence-to-sequence model. `AttentionCore` is where queries meet keys; hooks on it see both.
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.ops.heads import head_width, kv_head_count, merge_heads, split_heads
from regard.ops.rotary import check_rotary, rotate
from regard.ops.softmax_attention import softmax_attention

Queries = Float[Tensor, "batch heads queries head_dim"]
Keys = Float[Tensor, "batch kv_heads keys head_dim"]
Values = Float[Tensor, "batch kv_heads keys value_dim"]
KeysValues = tuple[Keys, Values]


class AttentionCore(nn.Module):
    """Softmax attention as a module without parameters: a place for hooks.

    Args:
        of_source: whether all keys are a source's; else they are a target's, perhaps with the source's before them.
        dropout: probability of dropping a weight in training.
    """

    def __init__(self, *, of_source: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.of_source, self.dropout = of_source, dropout

    def forward(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        *,
        causal: bool = False,
        visible: Bool[Tensor, "#batch #heads #queries keys"] | None = None,
        bias: Float[Tensor, "#batch heads queries keys"] | None = None,
    ) -> Float[Tensor, "batch heads queries value_dim"]:
        """`softmax_attention` with the module's dropout, in training only."""
        dropout = self.dropout if self.training else 0.0
        return softmax_attention(q, k, v, causal=causal, visible=visible, bias=bias, dropout=dropout)


class ProjectedAttention(nn.Module):
    """The projections of softmax attention, and their meeting.

    Args:
        dim: width of the model.
        num_heads: number of query heads; must divide `dim`.
        num_kv_heads: number of key/value heads; must divide `num_heads`; None = `num_heads`.
        bias: bias in all four projections.
        rope_base: base of the rotary embedding; None = no positions.
        attn_drop: probability of dropping a weight in training.
        of_source: as for `AttentionCore`.

    Raises:
        ValueError: sizes that do not divide, or a rotary embedding with an odd head width.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        num_kv_heads: int | None = None,
        bias: bool = True,
        rope_base: float | None = None,
        attn_drop: float = 0.0,
        of_source: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_width(dim, num_heads)
        self.num_kv_heads = kv_head_count(num_heads, num_kv_heads)
        check_rotary(self.head_dim, rope_base)
        self.rope_base = rope_base
        kv_width = self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(dim, dim, bias=bias)
        self.k_proj = nn.Linear(dim, kv_width, bias=bias)
        self.v_proj = nn.Linear(dim, kv_width, bias=bias)
        self.o_proj = nn.Linear(dim, dim, bias=bias)
        self.core = AttentionCore(of_source=of_source, dropout=attn_drop)

    def queries(self, x: Float[Tensor, "batch queries dim"], positions: Int[Tensor, "#batch queries"]) -> Queries:
        """Queries of `x`; `positions` count only with a rotary embedding."""
        return self._turned(split_heads(self.q_proj(x), self.num_heads), positions)

    def keys_values(self, x: Float[Tensor, "batch keys dim"], positions: Int[Tensor, "#batch keys"]) -> KeysValues:
        """Keys and values of `x`."""
        keys = self._turned(split_heads(self.k_proj(x), self.num_kv_heads), positions)
        return keys, split_heads(self.v_proj(x), self.num_kv_heads)

    def attend(
        self,
        q: Queries,
        keys: Keys,
        values: Values,
        *,
        causal: bool = False,
        visible: Bool[Tensor, "#batch 1 #queries keys"] | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """What the queries find, merged and projected."""
        return self.o_proj(merge_heads(self.core(q, keys, values, causal=causal, visible=visible)))

    def _turned(self, heads: Tensor, positions: Tensor) -> Tensor:
        return heads if self.rope_base is None else rotate(heads, positions, base=self.rope_base)
