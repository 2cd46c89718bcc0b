"""H2O: while decoding, the latest keys stay in the cache, and those that have received the most attention.

Paper: "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models", Zhang et al.,
NeurIPS 2023, https://arxiv.org/abs/2306.14048, section 4 and algorithm 1. Compared with an independent evaluation of
the definition, not with the authors' code: half of the `cache_size` keys are the latest, the others those with the
highest sum of softmax weights over all queries that saw them and all query heads that share them; positions stay as
they were.
Different from the paper: each key/value head chooses by itself, and a prompt is attended to in full before anything
goes. With `refresh_stride` ("++", a baseline of Recycled Attention, https://arxiv.org/abs/2411.05787) all keys stay in
memory, every S-th token after a prompt attends to them all, and those that stay are chosen from all of them again.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.contract import SequenceMixer
from regard.layers.h2o_plus_state import H2OPlusState, empty_h2o_plus_state
from regard.layers.h2o_state import H2OState, empty_h2o_state
from regard.metadata import Example, No, Paper, Traits
from regard.ops.heads import head_width, kv_head_count, merge_heads, repeat_heads, split_heads
from regard.ops.rotary import check_rotary, rotate
from regard.ops.softmax_attention import softmax_attention, softmax_weights
from regard.ops.visibility import visible_keys
from regard.registry import register


@register(
    name="h2o",
    system="recycled",
    paper=Paper(
        title="H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
        authors="Zhang et al.",
        venue="NeurIPS",
        year=2023,
        url="https://arxiv.org/abs/2306.14048",
        where="section 4, algorithm 1",
    ),
    traits=Traits(
        bidirectional=No("it is the cache of decoding that keys leave"),
        cross=No("it is the cache of decoding that keys leave, and a context has no order relative to x"),
        segments=No("scores are summed over a row's queries, whatever sequence they belong to"),
        bias=No("keys that have stayed are stored without their positions, which a bias would need"),
        step_exact=No("forward shows every key; in step all but some keys go after every call"),
        training_free=True,
        time="n^2",
        memory="n",
    ),
    example=Example(
        kwargs={"dim": 36, "num_heads": 6, "num_kv_heads": 3, "cache_size": 7, "rope_base": 100.0},
        batch=2,
        tokens=29,
    ),
)
class H2OAttention(SequenceMixer):
    """Causal softmax attention whose cache keeps the latest keys and the heavy hitters.

    `forward` is full attention. After each `step`, of several tokens or one, a key head keeps the last K // 2 keys and,
    of the others still there, the K - K // 2 with the highest s_j = sum_i sum_h a_hij, over all queries i that saw j
    and the query heads h that share it; a key that has gone never returns.

    Args:
        dim: width of the model.
        num_heads: number of query heads; must divide `dim`.
        num_kv_heads: number of key/value heads, each with its choice; must divide `num_heads`; None = `num_heads`.
        causal: hide the future; there is no other form.
        cache_size: K, keys that stay; a single token also sees its own.
        refresh_stride: S, tokens from one full step to the next, after which keys are chosen from all; None = never.
        qkv_bias: bias in the three input projections.
        rope_base: base of the rotary embedding; None = no positions.

    Raises:
        ValueError: sizes that do not fit, or `causal=False`.

    Cost: that of softmax attention for `forward` and for a prompt; K + 1 keys per token and constant memory after it,
    with `refresh_stride` T / S + K keys per token and all T keys in memory.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        num_kv_heads: int | None = None,
        causal: bool = True,
        cache_size: int = 512,
        refresh_stride: int | None = None,
        qkv_bias: bool = False,
        rope_base: float | None = None,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.head_dim = head_width(dim, num_heads)
        self.num_kv_heads = kv_head_count(num_heads, num_kv_heads)
        check_rotary(self.head_dim, rope_base)
        if cache_size < 1:
            raise ValueError(f"cache_size must be at least 1, got {cache_size}")
        if refresh_stride is not None and refresh_stride < 1:
            raise ValueError(f"refresh_stride must be at least 1, or None for never, got {refresh_stride}")
        self.cache_size, self.refresh_stride, self.rope_base = cache_size, refresh_stride, rope_base
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
        """Full causal attention."""
        # padding lies to the right of every real token, so causality already hides it
        return softmax_attention(*self._project(x), causal=True)

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Merge the heads and project."""
        return self.o_proj(merge_heads(mixed))

    def init_state(self, batch: int, *, max_len: int | None = None) -> H2OState | H2OPlusState:
        """An empty cache of constant size; `max_len` only counts where `refresh_stride` keeps all keys."""
        sizes = {"num_kv_heads": self.num_kv_heads, "head_dim": self.head_dim, "value_dim": self.head_dim}
        like = self.k_proj.weight
        if self.refresh_stride is None:
            return empty_h2o_state(batch, cache_size=self.cache_size, **sizes, like=like)
        return empty_h2o_plus_state(batch, cache_size=self.cache_size, **sizes, max_len=max_len, like=like)

    def mix_step(
        self, x: Tensor, state: H2OState | H2OPlusState, *, mask: Tensor | None
    ) -> tuple[Tensor, H2OState | H2OPlusState]:
        """New tokens against what has stayed, and each other; then what is too much goes."""
        q, k, v = self._project(x, state.position[:, None] + torch.arange(x.shape[1], device=x.device))
        if isinstance(state, H2OState):
            return state.advance(q, k, v, mask=mask)
        assert self.refresh_stride is not None
        return state.advance(q, k, v, stride=self.refresh_stride, mask=mask)

    def weights(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens keys"]:
        """The weights of full causal attention."""
        q, k, _ = self._project(x)
        return softmax_weights(q, k, visible=visible_keys(x.shape[1], x.shape[1], causal=True, device=x.device))

    def values(self, x: Tensor, *, context: Tensor | None = None) -> Float[Tensor, "batch heads keys head_dim"]:
        """Projected values, repeated for the query heads that share them."""
        return repeat_heads(split_heads(self.v_proj(x), self.num_kv_heads), self.num_heads)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """Four projections, scores and weighted sum of the full square."""
        kv_width = options.dim // options.num_heads * (options.num_kv_heads or options.num_heads)
        return batch * (2 * tokens * options.dim * (options.dim + kv_width) + 2 * tokens * tokens * options.dim)
