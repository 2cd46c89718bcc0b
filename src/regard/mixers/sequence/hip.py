"""HiP attention: for each block of queries, a search through a tree over the past finds the few keys to attend to.

Paper: "HiP Attention: Sparse Sub-Quadratic Attention with Hierarchical Attention Pruning", Lee et al., 2024,
https://arxiv.org/abs/2406.09827, section 3 and algorithm 1 (ICLR 2025 as "A Training-Free Sub-quadratic Cost
Transformer Model Serving Framework with Hierarchically Pruned Attention").
Compared with DeepAuto-AI/hip-attention@fea42c77, `src/hip_attn/v1_1/attention2_draft.py` (its plain search). Sizes are
those of that version's serving code.
Different from the code: a search that serves several tokens looks that far into the window, so that no key is left
out between the two; a key that is chosen and also in the window or a sink counts once; where all keys fit in the
budget and the window, full attention runs; grouped rotary rescaling, sifters and min-max groups are not offered.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.contract import SequenceMixer
from regard.layers.hip_state import HiPState, empty_hip_state
from regard.layers.wide_precision import wide_linear
from regard.metadata import Example, No, Paper, Traits
from regard.ops.heads import head_width, kv_head_count, merge_heads, repeat_heads, split_heads
from regard.ops.hip import HiPSizes, hip_attention, hip_macs, hip_visible
from regard.ops.hip_search import Sample
from regard.ops.rotary import check_rotary, rotate
from regard.ops.softmax_attention import softmax_weights
from regard.registry import register


@register(
    name="hip",
    system="hip",
    paper=Paper(
        title="HiP Attention: Sparse Sub-Quadratic Attention with Hierarchical Attention Pruning",
        authors="Lee et al.",
        venue="arXiv",
        year=2024,
        url="https://arxiv.org/abs/2406.09827",
        code="DeepAuto-AI/hip-attention@fea42c77",
        where="section 3, algorithm 1",
    ),
    traits=Traits(
        bidirectional=No("the search is defined over a query's past alone"),
        cross=No("the search runs over the past, and a context has no order relative to x"),
        segments=No("a block of queries shares one choice of keys, whatever sequence they belong to"),
        bias=No("keys are chosen by their raw products with queries, to which no bias is added"),
        step_exact=No("a block of queries shares one choice; a single new token has its own, kept for some tokens"),
        causality="values",
        training_free=True,
        time="n log n",
        memory="n",
    ),
    example=Example(
        kwargs={
            "dim": 36,
            "num_heads": 6,
            "num_kv_heads": 3,
            "mask_k": 6,
            "block_q": 4,
            "block_k": 2,
            "window": 5,
            "sinks": 1,
            "refresh": 3,
            "rope_base": 100.0,
        },
        batch=2,
        tokens=29,
    ),
)
class HiPAttention(SequenceMixer):
    """Causal softmax attention to searched keys, a window and sinks.

    For each block of `block_q` queries, ranges of the past are halved and scored by the blocks of `block_k` keys that
    stand for them until `mask_k` keys are left; y_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j over these, the last
    `window` keys and the first `sinks`.

    Args:
        dim: width of the model.
        num_heads: number of query heads; must divide `dim`.
        num_kv_heads: number of key/value heads; must divide `num_heads`; None = `num_heads`.
        causal: hide the future; there is no other form.
        mask_k: keys to choose for each block of queries; a multiple of `block_k`.
        block_q: queries in a block.
        block_k: keys in a block.
        window: latest keys that are always seen, the query's own the last.
        sinks: first keys that are always seen.
        refresh: tokens between searches while decoding one by one; the window shows the tokens between.
        sample: which block stands for a range: "first" (the compared code) or "center" (later versions).
        qkv_bias: bias in the three input projections.
        rope_base: base of the rotary embedding; None = no positions.

    Raises:
        ValueError: sizes that do not fit, or `causal=False`.

    Cost: n / block_q searches of mask_k / block_k * log2(n / mask_k) scored blocks, and attention of every query to
    mask_k + window + block_q + sinks keys.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        num_kv_heads: int | None = None,
        causal: bool = True,
        mask_k: int = 512,
        block_q: int = 64,
        block_k: int = 2,
        window: int = 256,
        sinks: int = 16,
        refresh: int = 8,
        sample: Sample = "first",
        qkv_bias: bool = False,
        rope_base: float | None = None,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.head_dim = head_width(dim, num_heads)
        self.num_kv_heads = kv_head_count(num_heads, num_kv_heads)
        check_rotary(self.head_dim, rope_base)
        self.sizes = HiPSizes(
            mask_k=mask_k, block_q=block_q, block_k=block_k, window=window, sinks=sinks, sample=sample
        )
        self.sizes.for_single_queries(refresh)
        self.refresh, self.rope_base = refresh, rope_base
        kv_width = self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.k_proj = nn.Linear(dim, kv_width, bias=qkv_bias)
        self.v_proj = nn.Linear(dim, kv_width, bias=qkv_bias)
        self.o_proj = nn.Linear(dim, dim)

    def inert_parameters(self) -> set[str]:
        """Without rotary embedding a key bias adds the same number to all scores of a query."""
        return {"k_proj.bias"} if self.k_proj.bias is not None and self.rope_base is None else set()

    def _project(
        self, x: Tensor, positions: Int[Tensor, "#batch tokens"] | None = None
    ) -> tuple[
        Float[Tensor, "batch heads tokens head_dim"],
        Float[Tensor, "batch kv_heads tokens head_dim"],
        Float[Tensor, "batch kv_heads tokens head_dim"],
    ]:
        # rounded to bfloat16, close scores would choose other keys
        q = split_heads(wide_linear(x, self.q_proj), self.num_heads)
        k = split_heads(wide_linear(x, self.k_proj), self.num_kv_heads)
        v = split_heads(self.v_proj(x), self.num_kv_heads)
        if self.rope_base is None:
            return q, k, v
        places = torch.arange(x.shape[1], device=x.device)[None] if positions is None else positions
        return rotate(q, places, base=self.rope_base), rotate(k, places, base=self.rope_base), v

    def mix(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """Search, gather, attend."""
        lengths = None if mask is None else mask.sum(dim=1)
        return hip_attention(*self._project(x), self.sizes, lengths=lengths).to(x.dtype)

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Merge the heads and project."""
        return self.o_proj(merge_heads(mixed))

    def init_state(self, batch: int, *, max_len: int | None = None) -> HiPState:
        """An empty key-value cache, and no search yet; without `max_len` the cache grows by doubling."""
        return empty_hip_state(
            batch,
            self.sizes,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            max_len=max_len,
            like=self.k_proj.weight,
        )

    def mix_step(self, x: Tensor, state: HiPState, *, mask: Tensor | None) -> tuple[Tensor, HiPState]:
        """Several new tokens as blocks of queries; a single one by itself, with a search every `refresh` tokens."""
        tokens = x.shape[1]
        q, k, v = self._project(x, state.position[:, None] + torch.arange(tokens, device=x.device))
        mixed, after = state.advance(q, k, v, self.sizes, refresh=self.refresh, mask=mask)
        return mixed.to(x.dtype), after

    def weights(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens keys"]:
        """The softmax weights, 0 where a key is not seen."""
        q, k, _ = self._project(x)
        visible = hip_visible(q, k, self.sizes, lengths=None if mask is None else mask.sum(dim=1))
        return softmax_weights(q, k, visible=visible).to(x.dtype)

    def values(self, x: Tensor, *, context: Tensor | None = None) -> Float[Tensor, "batch heads keys head_dim"]:
        """Projected values, repeated for the query heads that share them."""
        return repeat_heads(split_heads(self.v_proj(x), self.num_kv_heads), self.num_heads)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """Four projections, the search and the attention, keys that a mask hides included."""
        head_dim = options.dim // options.num_heads
        kv_width = head_dim * (options.num_kv_heads or options.num_heads)
        sizes = HiPSizes(
            mask_k=options.mask_k,
            block_q=options.block_q,
            block_k=options.block_k,
            window=options.window,
            sinks=options.sinks,
            sample=options.sample,
        )
        operator = hip_macs(sizes, tokens=tokens, head_dim=head_dim, value_dim=head_dim)
        return batch * (2 * tokens * options.dim * (options.dim + kv_width) + options.num_heads * operator)
