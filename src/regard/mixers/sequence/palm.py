"""Partial attention: every token attends to the source alone, through keys and values of a feed-forward of its own.

Paper: "Decoder-Only or Encoder-Decoder? Interpreting Language Model as a Regularized Encoder-Decoder", Fu et al., 2023,
https://arxiv.org/abs/2304.04052, the PALM section. A language model has one softmax over source and generated tokens,
so the source's share falls as tokens are generated; partial attention is a second softmax, over the source only, whose
share is 1 at every step.
Compared with christianThardy/Partial-Attention-Language-Model@208c1d39 (third party; the authors published no code),
`palm/model/attention.py`: with `activation="silu"`, `limit=100.0` and a rotary embedding it is that module.
Different from that code: it reads as many source tokens as the longest source of the batch has, so that shorter sources
let their own target leak in; here the mask is per row. The paper has a feed-forward of ReLU type and learned positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.contract import SequenceMixer, load_strictly
from regard.layers.projected_attention import AttentionCore, Keys, KeysValues, Queries, Values
from regard.metadata import Example, No, Paper, Traits
from regard.ops.heads import head_width, kv_head_count, merge_heads, repeat_heads, split_heads
from regard.ops.rotary import check_rotary, rotate
from regard.ops.softmax_attention import softmax_weights
from regard.ops.visibility import run_starts, visible_keys
from regard.registry import register

PALM_PAPER = Paper(
    title="Decoder-Only or Encoder-Decoder? Interpreting Language Model as a Regularized Encoder-Decoder",
    authors="Fu et al.",
    venue="arXiv",
    year=2023,
    url="https://arxiv.org/abs/2304.04052",
    code="christianThardy/Partial-Attention-Language-Model@208c1d39 (third party)",
    where="partial attention language model",
)
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.nn.functional.relu,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
}
_REFERENCE_NAMES = {
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "dense": "o_proj",
    "Fp_linear1": "source_fc1",
    "Fp_linear2": "source_fc2",
}
_NOT_CAUSAL = No("keys are the source's alone, which is known whole before the first token is generated")


@register(
    name="palm",
    system="palm",
    paper=PALM_PAPER,
    traits=Traits(
        causal=_NOT_CAUSAL,
        decodes=No("nothing is added while generating: keep what keys_values(source) gives and call attend"),
        step_exact=No("nothing is added while generating"),
        time="n^2",
        memory="n",
    ),
    example=Example(
        kwargs={"dim": 24, "num_heads": 6, "num_kv_heads": 3, "rope_base": 100.0}, batch=2, tokens=13, context=7
    ),
)
class PartialAttention(SequenceMixer):
    """Attention to the source through a residual feed-forward: PALM's second softmax.

    P_1 = f(W_1 h_s + b_1), P = P_1 + W_2 P_1 + b_2 for the source's states h_s (`context`, or `x` itself), and
    y_i = sum_j softmax_j(W_Q x_i . W_K P_j / sqrt(d)) W_V P_j over the real source tokens j.

    Args:
        dim: width of the model.
        num_heads: number of query heads; must divide `dim`.
        num_kv_heads: number of key/value heads; must divide `num_heads`; None = `num_heads`.
        causal: only False.
        activation: f: "relu", "silu" or "gelu".
        limit: clamp P to this absolute value, as the compared code does at 100; None = do not.
        qkv_bias: bias in the three input projections.
        out_bias: bias in the output projection.
        rope_base: base of the rotary embedding; positions of source and target each start at 0. None = no positions.
        attn_drop: probability of dropping a weight in training.

    Raises:
        ValueError: sizes that do not divide, an unknown activation, a limit that is not positive, or `causal=True`.

    Cost: 2 dim^2 MACs per source token more than cross-attention; 6 dim^2 + 2 dim parameters without other biases.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        num_kv_heads: int | None = None,
        causal: bool = False,
        activation: Literal["relu", "silu", "gelu"] = "relu",
        limit: float | None = None,
        qkv_bias: bool = False,
        out_bias: bool = True,
        rope_base: float | None = None,
        attn_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {activation!r}")
        if limit is not None and limit <= 0:
            raise ValueError(f"limit must be positive or None, got {limit}")
        self.head_dim = head_width(dim, num_heads)
        self.num_kv_heads = kv_head_count(num_heads, num_kv_heads)
        check_rotary(self.head_dim, rope_base)
        self.activation, self.limit, self.rope_base = activation, limit, rope_base
        kv_width = self.num_kv_heads * self.head_dim
        self.source_fc1 = nn.Linear(dim, dim)
        self.source_fc2 = nn.Linear(dim, dim)
        self.q_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.k_proj = nn.Linear(dim, kv_width, bias=qkv_bias)
        self.v_proj = nn.Linear(dim, kv_width, bias=qkv_bias)
        self.o_proj = nn.Linear(dim, dim, bias=out_bias)
        self.core = AttentionCore(of_source=True, dropout=attn_drop)

    def inert_parameters(self) -> set[str]:
        """Without rotary embedding a key bias adds the same number to all scores of a query."""
        return {"k_proj.bias"} if self.k_proj.bias is not None and self.rope_base is None else set()

    # -- in parts: what a network calls that keeps the source's keys and values

    def source_states(self, source: Float[Tensor, "batch keys dim"]) -> Float[Tensor, "batch keys dim"]:
        """P: the source's states through their feed-forward."""
        first = _ACTIVATIONS[self.activation](self.source_fc1(source))
        states = first + self.source_fc2(first)
        return states if self.limit is None else states.clamp(-self.limit, self.limit)

    def queries(self, x: Float[Tensor, "batch queries dim"], positions: Int[Tensor, "#batch queries"]) -> Queries:
        """Queries of all tokens; `positions` count only with a rotary embedding."""
        return self._turned(split_heads(self.q_proj(x), self.num_heads), positions)

    def keys_values(self, source: Float[Tensor, "batch keys dim"], positions: Int[Tensor, "#batch keys"]) -> KeysValues:
        """Keys and values of a source: computed once, whatever is generated."""
        states = self.source_states(source)
        keys = self._turned(split_heads(self.k_proj(states), self.num_kv_heads), positions)
        return keys, split_heads(self.v_proj(states), self.num_kv_heads)

    def attend(
        self,
        q: Queries,
        keys: Keys,
        values: Values,
        *,
        visible: Bool[Tensor, "#batch 1 #queries keys"] | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """What the queries find in the source, merged and projected.

        Args:
            q: from `queries`.
            keys: from `keys_values`.
            values: the same.
            visible: True = real source token, per row: not the batch's longest source for all.

        Raises:
            ValueError: keys of another number of rows: they belong to another source.
        """
        if keys.shape[0] != q.shape[0]:
            raise ValueError(
                f"the kept keys have {keys.shape[0]} rows and the queries have {q.shape[0]}: "
                "they belong to another source"
            )
        return self.o_proj(merge_heads(self.core(q, keys, values, visible=visible)))

    def _turned(self, heads: Tensor, positions: Tensor) -> Tensor:
        return heads if self.rope_base is None else rotate(heads, positions, base=self.rope_base)

    # -- the contract's hooks

    def _project(self, x: Tensor, context: Tensor | None, segments: Tensor | None) -> tuple[Queries, Keys, Values]:
        source = x if context is None else context
        rows = torch.arange(x.shape[1], device=x.device)[None]
        if segments is not None:
            rows = rows - run_starts(segments)
        columns = rows if context is None else torch.arange(source.shape[1], device=x.device)[None]
        return (self.queries(x, rows), *self.keys_values(source, columns))

    def mix(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """Weights times values, by the fused kernel."""
        q, k, v = self._project(x, context, segments)
        visible = visible_keys(q.shape[2], k.shape[2], causal=False, mask=mask, segments=segments, device=x.device)
        return self.core(q, k, v, visible=visible, bias=bias)

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Merge the heads and project."""
        return self.o_proj(merge_heads(mixed))

    def weights(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens keys"]:
        """The softmax weights themselves."""
        q, k, _ = self._project(x, context, segments)
        visible = visible_keys(q.shape[2], k.shape[2], causal=False, mask=mask, segments=segments, device=x.device)
        return softmax_weights(q, k, visible=visible, bias=bias)

    def values(self, x: Tensor, *, context: Tensor | None = None) -> Float[Tensor, "batch heads keys head_dim"]:
        """Projected values, repeated for the query heads that share them."""
        states = self.source_states(x if context is None else context)
        return repeat_heads(split_heads(self.v_proj(states), self.num_kv_heads), self.num_heads)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the layout of the compared code: `query`, `key`, `value`, `dense`, `Fp_linear1`, `Fp_linear2`.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, {own_name(name): tensor for name, tensor in state_dict.items()})

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """Queries and output, the feed-forward with keys and values, scores and weighted sum."""
        dim = options.dim
        kv_width = dim // options.num_heads * (options.num_kv_heads or options.num_heads)
        projections = 2 * tokens * dim**2 + 2 * keys * dim * (dim + kv_width)
        return batch * (projections + 2 * tokens * keys * dim)


def own_name(name: str) -> str:
    """`query.weight` as `q_proj.weight`; other names as they are."""
    layer, _, rest = name.partition(".")
    return f"{_REFERENCE_NAMES.get(layer, layer)}.{rest}"
