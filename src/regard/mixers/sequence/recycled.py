"""Recycled attention: full attention at every S-th token, and for those between the keys that it found important.

Paper: "Recycled Attention: Efficient inference for long-context language models", Xu, Goyal and Choi, 2024,
https://arxiv.org/abs/2411.05787 (ACL 2025 as "RefreshKV"): full and recycled steps, the schedule by query similarity,
and continued pre-training. The authors published no code; compared with an independent evaluation of the definitions.
What the paper leaves open: the scores of a key are the softmax weights that the query heads of a group give it, reduced
by max; a full step always keeps its own key, a prompt's last token does not; the schedule by similarity is decided for
each layer and each row of a batch.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.contract import SequenceMixer
from regard.layers.recycled_state import RecycledState, empty_recycled_state
from regard.layers.wide_precision import wide_linear
from regard.metadata import Example, No, Paper, Traits
from regard.ops.heads import head_width, kv_head_count, merge_heads, repeat_heads, split_heads
from regard.ops.recycled import Recycling, Reduction, recycled_attention, recycled_attention_macs, recycled_visible
from regard.ops.rotary import check_rotary, rotate
from regard.ops.softmax_attention import softmax_weights
from regard.registry import register


@register(
    name="recycled",
    system="recycled",
    paper=Paper(
        title="Recycled Attention: Efficient inference for long-context language models",
        authors="Xu et al.",
        venue="arXiv",
        year=2024,
        url="https://arxiv.org/abs/2411.05787",
        where="full and recycled steps, dynamic schedule, continued pre-training",
    ),
    traits=Traits(
        bidirectional=No("a token recycles what an earlier one chose from its past"),
        cross=No("a token recycles what an earlier one chose from its past, and a context has no order relative to x"),
        segments=No("a group of tokens shares one choice of keys, whatever sequence they belong to"),
        bias=No("recycled keys are stored without their positions, which a bias would need"),
        step_exact=No("several tokens in a step are a prompt, which attends in full; forward simulates single tokens"),
        training_free=True,
        time="n^2",
        memory="n",
    ),
    example=Example(
        kwargs={"dim": 36, "num_heads": 6, "num_kv_heads": 3, "top_k": 7, "stride": 3, "rope_base": 100.0},
        batch=2,
        tokens=29,
    ),
)
class RecycledAttention(SequenceMixer):
    """Causal softmax attention that is full for every S-th token and recycles its K best keys for the others.

    y_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j: over all j <= i if i is a multiple of S, else over l = i - i mod S,
    the K - 1 keys before it that q_l weighs most, and l < j <= i. `forward` shows this to all tokens at once, as
    continued pre-training does. In `step` several tokens are a prompt: they attend in full, the last one chooses K
    keys, and from there the single tokens are counted; from an empty state on they give what `forward` gives.

    Args:
        dim: width of the model.
        num_heads: number of query heads; must divide `dim`.
        num_kv_heads: number of key/value heads, each with its choice; must divide `num_heads`; None = `num_heads`.
        causal: hide the future; there is no other form.
        top_k: K, in keys.
        stride: S, in tokens; None = no full step after the prompt.
        reduce: how the weights that the query heads of a group give a key become one score, "max" or "mean".
        threshold: in `step`, a token attends in full where the cosine of its queries to the last full ones, mean of
            all heads, is below this, in place of every S-th; None = every S-th.
        check_stride: with `threshold`, tokens from one look at the queries to the next.
        fixed_size: drop the recycled key with the lowest weight for every token that follows.
        qkv_bias: bias in the three input projections.
        rope_base: base of the rotary embedding; None = no positions.

    Raises:
        ValueError: sizes that do not fit, or `causal=False`.

    Cost: n / S full rows and their choice, and attention of all other tokens to K + S keys. Decoding: T / S + K keys
    per token on average, after T tokens, all of which stay in memory.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        num_kv_heads: int | None = None,
        causal: bool = True,
        top_k: int = 512,
        stride: int | None = 16,
        reduce: Reduction = "max",
        threshold: float | None = None,
        check_stride: int = 1,
        fixed_size: bool = False,
        qkv_bias: bool = False,
        rope_base: float | None = None,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.head_dim = head_width(dim, num_heads)
        self.num_kv_heads = kv_head_count(num_heads, num_kv_heads)
        check_rotary(self.head_dim, rope_base)
        self.recycling = Recycling(
            top_k=top_k,
            stride=stride,
            reduce=reduce,
            threshold=threshold,
            check_stride=check_stride,
            fixed_size=fixed_size,
        )
        self.rope_base = rope_base
        kv_width = self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.k_proj = nn.Linear(dim, kv_width, bias=qkv_bias)
        self.v_proj = nn.Linear(dim, kv_width, bias=qkv_bias)
        self.o_proj = nn.Linear(dim, dim)

    def inert_parameters(self) -> set[str]:
        """Without rotary embedding a key bias adds the same number to all scores of a query."""
        return {"k_proj.bias"} if self.k_proj.bias is not None and self.rope_base is None else set()

    def project(
        self, x: Float[Tensor, "batch tokens dim"], *, positions: Int[Tensor, "#batch tokens"] | None = None
    ) -> tuple[
        Float[Tensor, "batch heads tokens head_dim"],
        Float[Tensor, "batch kv_heads tokens head_dim"],
        Float[Tensor, "batch kv_heads tokens head_dim"],
    ]:
        """Queries, keys and values, rotated, in at least float32: rounding would choose other keys.

        Args:
            x: the layer's input.
            positions: of the tokens; None = from 0 on.
        """
        q = split_heads(wide_linear(x, self.q_proj), self.num_heads)
        k = split_heads(wide_linear(x, self.k_proj), self.num_kv_heads)
        v = split_heads(wide_linear(x, self.v_proj), self.num_kv_heads)
        if self.rope_base is None:
            return q, k, v
        places = torch.arange(x.shape[1], device=x.device)[None] if positions is None else positions
        return rotate(q, places, base=self.rope_base), rotate(k, places, base=self.rope_base), v

    def mix(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """The simulation in one pass."""
        # padding lies to the right of every real token, so causality already hides it
        return recycled_attention(*self.project(x), self.recycling).to(x.dtype)

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Merge the heads and project."""
        return self.o_proj(merge_heads(mixed))

    def init_state(self, batch: int, *, max_len: int | None = None) -> RecycledState:
        """An empty key-value cache, and nothing to recycle; without `max_len` the cache grows by doubling."""
        return empty_recycled_state(
            batch,
            self.recycling,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            value_dim=self.head_dim,
            max_len=max_len,
            like=self.k_proj.weight,
        )

    def mix_step(self, x: Tensor, state: RecycledState, *, mask: Tensor | None) -> tuple[Tensor, RecycledState]:
        """A prompt in full; a single token in full or from the recycled keys, as the schedule says."""
        q, k, v = self.project(x, positions=state.position[:, None] + torch.arange(x.shape[1], device=x.device))
        mixed, after = state.advance(q, k, v, self.recycling, mask=mask)
        return mixed.to(x.dtype), after

    def weights(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens keys"]:
        """The softmax weights, 0 where a key is not seen."""
        q, k, _ = self.project(x)
        return softmax_weights(q, k, visible=recycled_visible(q, k, self.recycling))

    def values(self, x: Tensor, *, context: Tensor | None = None) -> Float[Tensor, "batch heads keys head_dim"]:
        """Projected values, repeated for the query heads that share them."""
        return repeat_heads(self.project(x)[2], self.num_heads).to(x.dtype)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """Four projections, full rows, their choice, and the attention of all other tokens."""
        head_dim = options.dim // options.num_heads
        kv_heads = options.num_kv_heads or options.num_heads
        recycling = Recycling(top_k=options.top_k, stride=options.stride, fixed_size=options.fixed_size)
        operator = recycled_attention_macs(
            recycling,
            tokens=tokens,
            shared=options.num_heads // kv_heads,
            head_dim=head_dim,
            value_dim=head_dim,
        )
        return batch * (2 * tokens * options.dim * (options.dim + kv_heads * head_dim) + kv_heads * operator)
