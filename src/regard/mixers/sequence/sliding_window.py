"""Sliding-window attention: softmax attention to the nearest tokens alone. The local baseline of every race.

Paper: "Longformer: The Long-Document Transformer", Beltagy, Peters and Cohan, 2020, https://arxiv.org/abs/2004.05150,
section 3.1, "Sliding Window". It defines the symmetric window without further patterns, and later papers name their
local baseline after it; "Generating Long Sequences with Sparse Transformers", Child et al., 2019,
https://arxiv.org/abs/1904.10509, had local windows before, but only in union with strided or fixed columns.
Not compared with the authors' CUDA code; the formula is restated in the tests.
Different from the paper: neither dilation nor global tokens (its other two patterns); the causal form, which the paper
uses for language models without writing it down, sees `window_size` keys, the query's own among them; fewer
key/value heads than query heads and rotary embedding are options, as in the softmax baseline.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.contract import SequenceMixer
from regard.layers.window_cache import WindowCache, empty_window_cache
from regard.metadata import Example, No, Paper, Traits
from regard.ops.heads import head_width, kv_head_count, merge_heads, repeat_heads, split_heads
from regard.ops.rotary import check_rotary, rotate
from regard.ops.softmax_attention import softmax_attention, softmax_weights
from regard.ops.window_attention import window_attention, window_attention_macs, window_reach, window_visible
from regard.registry import register


@register(
    name="sliding_window",
    system="sliding_window",
    paper=Paper(
        title="Longformer: The Long-Document Transformer",
        authors="Beltagy et al.",
        venue="arXiv",
        year=2020,
        url="https://arxiv.org/abs/2004.05150",
        where="section 3.1",
    ),
    traits=Traits(
        cross=No("a window is a distance between positions, and a context has no order relative to x"),
        time="n",
        memory="n",
    ),
    example=Example(
        kwargs={"dim": 36, "num_heads": 6, "num_kv_heads": 3, "window_size": 5, "rope_base": 100.0},
        batch=2,
        tokens=13,
        context=7,
    ),
)
class SlidingWindowAttention(SequenceMixer):
    """Softmax attention in a window around each token.

    y_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j, over i - w < j <= i if causal, else over `|i - j| <= w // 2`.

    Args:
        dim: width of the model.
        num_heads: number of query heads; must divide `dim`.
        num_kv_heads: number of key/value heads; must divide `num_heads`; None = `num_heads`.
        causal: hide the future.
        window_size: w, in tokens; the bidirectional form sees w // 2 of them on each side, beside the token's own.
        qkv_bias: bias in the three input projections.
        rope_base: base of the rotary embedding; None = no positions.

    Raises:
        ValueError: sizes that do not divide, a window that is not positive, or a rotary embedding with an odd head
            width.

    Cost: projections, and 2 * heads * head_dim * (block + reach) MACs per token, where `reach` counts the keys beside
    the token's own, and `block` is about the window, at least 64.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        num_kv_heads: int | None = None,
        causal: bool = False,
        window_size: int = 64,
        qkv_bias: bool = False,
        rope_base: float | None = None,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.head_dim = head_width(dim, num_heads)
        self.num_kv_heads = kv_head_count(num_heads, num_kv_heads)
        window_reach(window_size, causal=causal)
        check_rotary(self.head_dim, rope_base)
        self.window_size, self.rope_base = window_size, rope_base
        kv_width = self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.k_proj = nn.Linear(dim, kv_width, bias=qkv_bias)
        self.v_proj = nn.Linear(dim, kv_width, bias=qkv_bias)
        self.o_proj = nn.Linear(dim, dim)

    def inert_parameters(self) -> set[str]:
        """What adds the same number to all scores of a query, and scores where a query sees its own key alone."""
        if sum(window_reach(self.window_size, causal=self.causal)) == 0:
            named = {"q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias"}
            return named & {name for name, _ in self.named_parameters()}
        return {"k_proj.bias"} if self.k_proj.bias is not None and self.rope_base is None else set()

    def _project(
        self, x: Tensor, positions: Int[Tensor, "#batch tokens"] | None = None
    ) -> tuple[
        Float[Tensor, "batch heads tokens head_dim"],
        Float[Tensor, "batch kv_heads tokens head_dim"],
        Float[Tensor, "batch kv_heads tokens head_dim"],
    ]:
        q = split_heads(self.q_proj(x), self.num_heads)
        k = split_heads(self.k_proj(x), self.num_kv_heads)
        v = split_heads(self.v_proj(x), self.num_kv_heads)
        if self.rope_base is None:
            return q, k, v
        places = torch.arange(x.shape[1], device=x.device)[None] if positions is None else positions
        return rotate(q, places, base=self.rope_base), rotate(k, places, base=self.rope_base), v

    def mix(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """Attention in windows, in blocks."""
        return window_attention(
            *self._project(x),
            window_size=self.window_size,
            causal=self.causal,
            mask=self._mask_of_keys(mask),
            segments=segments,
            bias=bias,
        )

    def _mask_of_keys(self, mask: Tensor | None) -> Tensor | None:
        # padding lies to the right of every real token, so causality already hides it
        return None if self.causal else mask

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Merge the heads and project."""
        return self.o_proj(merge_heads(mixed))

    def init_state(self, batch: int, *, max_len: int | None = None) -> WindowCache:
        """An empty cache of constant size; `max_len` changes nothing."""
        return empty_window_cache(
            batch,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            value_dim=self.head_dim,
            window_size=self.window_size,
            like=self.k_proj.weight,
        )

    def mix_step(self, x: Tensor, state: WindowCache, *, mask: Tensor | None) -> tuple[Tensor, WindowCache]:
        """One new token against the cache; several against the cache and each other, in blocks."""
        tokens = x.shape[1]
        q, k, v = self._project(x, state.position[:, None] + torch.arange(tokens, device=x.device))
        if tokens == 1:
            after = state.append(k, v, mask)
            keys, values = (stored.to(q.dtype) for stored in (after.keys, after.values))
            return softmax_attention(q, keys, values, visible=after.visible()), after
        old_keys, old_values, real = state.in_order()
        mixed = window_attention(
            q,
            torch.cat((old_keys.to(q.dtype), k), dim=2),
            torch.cat((old_values.to(q.dtype), v), dim=2),
            window_size=self.window_size,
            causal=True,
            mask=torch.nn.functional.pad(real, (0, tokens), value=True),
        )
        return mixed, state.append(k, v, mask)

    def weights(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens keys"]:
        """The softmax weights, 0 outside the windows."""
        q, k, _ = self._project(x)
        visible = window_visible(
            x.shape[1],
            x.shape[1],
            window_size=self.window_size,
            causal=self.causal,
            mask=self._mask_of_keys(mask),
            segments=segments,
            device=x.device,
        )
        return softmax_weights(q, k, visible=visible, bias=bias)

    def values(self, x: Tensor, *, context: Tensor | None = None) -> Float[Tensor, "batch heads keys head_dim"]:
        """Projected values, repeated for the query heads that share them."""
        return repeat_heads(split_heads(self.v_proj(x), self.num_kv_heads), self.num_heads)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """Four projections, scores and weighted sums of whole blocks, hidden keys included."""
        head_dim = options.dim // options.num_heads
        kv_width = head_dim * (options.num_kv_heads or options.num_heads)
        operator = window_attention_macs(
            queries=tokens,
            head_dim=head_dim,
            value_dim=head_dim,
            window_size=options.window_size,
            causal=options.causal,
        )
        return batch * (2 * tokens * options.dim * (options.dim + kv_width) + options.num_heads * operator)
