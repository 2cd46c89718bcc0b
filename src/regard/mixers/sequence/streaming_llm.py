"""StreamingLLM: every token attends to the first tokens and the latest ones, in memory of constant size.

Paper: "Efficient Streaming Language Models with Attention Sinks", Xiao et al., ICLR 2024,
https://arxiv.org/abs/2309.17453, section 3.2. Compared with an independent evaluation of the definition, not with the
authors' code: `cache_size` keys are carried from step to step and stored before rotation; at every step they stand at
the positions 0, 1, ... of their order, the query at the last.
Different from the paper: a prompt is treated as its tokens would be one by one. With `refresh_stride` ("++", a baseline
of Recycled Attention, https://arxiv.org/abs/2411.05787) all keys stay in memory, and the tokens whose position is a
multiple of it attend to them all, at their own positions.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import SequenceMixer
from regard.layers.streaming_state import (
    StreamingPlusState,
    StreamingState,
    empty_streaming_plus_state,
    empty_streaming_state,
    full_rows,
)
from regard.metadata import Example, No, Paper, Traits
from regard.ops.heads import head_width, kv_head_count, merge_heads, repeat_heads, split_heads
from regard.ops.rotary import check_rotary, rotate
from regard.ops.softmax_attention import softmax_weights
from regard.ops.streaming import Streaming, streaming_attention, streaming_macs, streaming_weights
from regard.ops.visibility import visible_keys
from regard.registry import register


@register(
    name="streaming_llm",
    system="recycled",
    paper=Paper(
        title="Efficient Streaming Language Models with Attention Sinks",
        authors="Xiao et al.",
        venue="ICLR",
        year=2024,
        url="https://arxiv.org/abs/2309.17453",
        where="section 3.2",
    ),
    traits=Traits(
        bidirectional=No("the latest tokens are those before the query"),
        cross=No("positions are ranks among the tokens before the query, and a context has no order relative to x"),
        segments=No("the sinks are the first tokens of a row, whatever sequence they belong to"),
        bias=No("keys are told by their rank, not by the position that a bias speaks of"),
        training_free=True,
        time="n",
        memory="n",
    ),
    example=Example(
        kwargs={"dim": 36, "num_heads": 6, "num_kv_heads": 3, "cache_size": 7, "num_sinks": 2, "rope_base": 100.0},
        batch=2,
        tokens=29,
    ),
)
class StreamingLLMAttention(SequenceMixer):
    """Causal softmax attention to the first `num_sinks` and the latest keys, with positions by rank.

    y_i = sum_j softmax_j(R(n - 1) q_i . R(r_j) k_j / sqrt(d)) v_j over j < s or i - (K - s) <= j <= i, where R turns by
    a position, r_j is j's rank among these n <= K + 1 keys, and i has the last one.

    Args:
        dim: width of the model.
        num_heads: number of query heads; must divide `dim`.
        num_kv_heads: number of key/value heads; must divide `num_heads`; None = `num_heads`.
        causal: hide the future; there is no other form.
        cache_size: K, keys that are carried from a token to the next; a token also sees its own.
        num_sinks: s, how many of them are the first of the sequence.
        refresh_stride: tokens at its multiples attend to all keys before them, which then stay in memory; None = never.
        qkv_bias: bias in the three input projections.
        rope_base: base of the rotary embedding; None = no positions.

    Raises:
        ValueError: sizes that do not fit, or `causal=False`.

    Cost: n (K + block + s) keys twice as wide, in blocks of queries about as long as the window, at least 64; with
    `refresh_stride` n / stride full rows beside.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        num_kv_heads: int | None = None,
        causal: bool = True,
        cache_size: int = 512,
        num_sinks: int = 4,
        refresh_stride: int | None = None,
        qkv_bias: bool = False,
        rope_base: float | None = None,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.head_dim = head_width(dim, num_heads)
        self.num_kv_heads = kv_head_count(num_heads, num_kv_heads)
        check_rotary(self.head_dim, rope_base)
        if refresh_stride is not None and refresh_stride < 1:
            raise ValueError(f"refresh_stride must be at least 1, or None for never, got {refresh_stride}")
        self.streaming = Streaming(cache_size=cache_size, sinks=num_sinks, rope_base=rope_base)
        self.rope_base, self.refresh_stride = rope_base, refresh_stride
        kv_width = self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.k_proj = nn.Linear(dim, kv_width, bias=qkv_bias)
        self.v_proj = nn.Linear(dim, kv_width, bias=qkv_bias)
        self.o_proj = nn.Linear(dim, dim)

    def inert_parameters(self) -> set[str]:
        """Without rotary embedding a key bias adds the same number to all scores of a query."""
        return {"k_proj.bias"} if self.k_proj.bias is not None and self.rope_base is None else set()

    def _project(
        self, x: Tensor
    ) -> tuple[
        Float[Tensor, "batch heads tokens head_dim"],
        Float[Tensor, "batch kv_heads tokens head_dim"],
        Float[Tensor, "batch kv_heads tokens head_dim"],
    ]:
        q = split_heads(self.q_proj(x), self.num_heads)
        k = split_heads(self.k_proj(x), self.num_kv_heads)
        return q, k, split_heads(self.v_proj(x), self.num_kv_heads)

    def _by_place(self, *heads: Tensor) -> tuple[Tensor, ...]:
        if self.rope_base is None:
            return heads
        places = torch.arange(heads[0].shape[2], device=heads[0].device)[None]
        return tuple(rotate(x, places, base=self.rope_base) for x in heads)

    def mix(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """Sinks and windows, in blocks."""
        # padding lies to the right of every real token, so causality already hides it
        q, k, v = self._project(x)
        mixed = streaming_attention(q, k, v, self.streaming)
        if self.refresh_stride is None:
            return mixed
        start = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        q, k = self._by_place(q, k)
        return full_rows(mixed, q, k, v, first=start, stride=self.refresh_stride)

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Merge the heads and project."""
        return self.o_proj(merge_heads(mixed))

    def init_state(self, batch: int, *, max_len: int | None = None) -> StreamingState | StreamingPlusState:
        """An empty cache of constant size; `max_len` only counts where `refresh_stride` keeps all keys."""
        sizes = {"num_kv_heads": self.num_kv_heads, "head_dim": self.head_dim, "value_dim": self.head_dim}
        like = self.k_proj.weight
        if self.refresh_stride is None:
            return empty_streaming_state(batch, self.streaming, **sizes, like=like)
        return empty_streaming_plus_state(batch, self.streaming, **sizes, max_len=max_len, like=like)

    def mix_step(
        self, x: Tensor, state: StreamingState | StreamingPlusState, *, mask: Tensor | None
    ) -> tuple[Tensor, StreamingState | StreamingPlusState]:
        """New tokens against what is carried, and each other."""
        q, k, v = self._project(x)
        if isinstance(state, StreamingState):
            return state.advance(q, k, v, self.streaming, mask=mask)
        assert self.refresh_stride is not None
        return state.advance(q, k, v, self.streaming, stride=self.refresh_stride, mask=mask)

    def weights(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens keys"]:
        """The softmax weights, 0 where a key is not carried."""
        q, k, _ = self._project(x)
        weights, tokens = streaming_weights(q, k, self.streaming), x.shape[1]
        if self.refresh_stride is None:
            return weights
        whole = visible_keys(tokens, tokens, causal=True, device=x.device)
        full = torch.arange(tokens, device=x.device)[:, None] % self.refresh_stride == 0
        return torch.where(full, softmax_weights(*self._by_place(q, k), visible=whole), weights)

    def values(self, x: Tensor, *, context: Tensor | None = None) -> Float[Tensor, "batch heads keys head_dim"]:
        """Projected values, repeated for the query heads that share them."""
        return repeat_heads(split_heads(self.v_proj(x), self.num_kv_heads), self.num_heads)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """Four projections, sinks and windows in whole blocks, and full rows."""
        head_dim = options.dim // options.num_heads
        kv_width = head_dim * (options.num_kv_heads or options.num_heads)
        streaming = Streaming(cache_size=options.cache_size, sinks=options.num_sinks, rope_base=options.rope_base)
        operator = streaming_macs(streaming, tokens=tokens, head_dim=head_dim, value_dim=head_dim)
        if options.refresh_stride is not None:
            operator += -(-tokens // options.refresh_stride) * tokens * 2 * head_dim
        return batch * (2 * tokens * options.dim * (options.dim + kv_width) + options.num_heads * operator)
