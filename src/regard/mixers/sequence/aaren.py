"""Aaren: softmax attention of one learned query over every prefix, trained in parallel and decoded as an RNN.

Paper: "Attention as an RNN", Feng, Tung, Hajimirsadeghi, Bengio and Ahmed, 2024, https://arxiv.org/abs/2405.13956,
section 3 (attention as a recurrence, the parallel prefix scan, the Aaren module).
The authors published no code. Compared with `torch.nn.MultiheadAttention` of the query token over every prefix.
Different from the paper: the parallel form is a block scan with O(N) work in place of the Hillis-Steele scan with
O(N log N); and since the query does not depend on the input, keys are never projected: W_k is folded into the query,
which gives the same scores and gradients from `num_heads` numbers per token instead of `dim` (not where a projection
was replaced, or has hooks: then it is called).
Not stated in the paper: how the query token begins; here it is drawn from N(0, 1), the rest as in
`torch.nn.MultiheadAttention`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from regard.contract import SequenceMixer, load_strictly
from regard.layers.derived import DerivedTensors
from regard.layers.prefix_state import PrefixState, empty_prefix_state
from regard.metadata import Example, No, Paper, Traits
from regard.ops.fixed_query import fold_query, fold_query_macs, project_wide
from regard.ops.heads import head_width, merge_heads, split_heads
from regard.ops.precision import compute_dtype
from regard.ops.prefix_softmax import prefix_softmax, prefix_softmax_macs, prefix_softmax_weights
from regard.registry import register


@register(
    name="aaren",
    system="aaren",
    paper=Paper(
        title="Attention as an RNN",
        authors="Feng et al.",
        venue="arXiv",
        year=2024,
        url="https://arxiv.org/abs/2405.13956",
        where="section 3",
    ),
    traits=Traits(
        bidirectional=No("the query does not depend on the token: without causality every token's output is the same"),
        cross=No("the query does not depend on x: over a context every token's output is the same"),
        bias=No("one score per key serves all queries: scores that differ between queries cannot be scanned"),
        time="n",
        memory="n",
    ),
    example=Example(kwargs={"dim": 21, "num_heads": 3}, batch=2, tokens=13),
)
class AarenAttention(SequenceMixer):
    """Attention of a learned query token over every prefix: constant memory and time per token when decoding.

    o_i = sum_{j <= i} softmax_{j <= i}(s_j) v_j with s_j = (W_q q + b_q) . (W_k x_j + b_k) / sqrt(d), v_j = W_v x_j +
    b_v, in every head; y_i = W_o o_i + b_o. The query q is `query`.

    Args:
        dim: width of the model.
        num_heads: number of heads; must divide `dim`.
        causal: True; there is no other form.
        qkv_bias: bias in the three input projections.
        proj_drop: probability of dropping an output feature in training.

    Raises:
        ValueError: sizes that do not divide, or `causal=False`.

    Cost: two projections, and dim * (num_heads + block) MACs per token.
    """

    def __init__(
        self, dim: int, *, num_heads: int = 8, causal: bool = True, qkv_bias: bool = True, proj_drop: float = 0.0
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.head_dim = head_width(dim, num_heads)
        self.query = nn.Parameter(torch.empty(dim))
        self.q_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.k_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.v_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.o_proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self._derived = DerivedTensors()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The query from N(0, 1); the projections as in `torch.nn.MultiheadAttention`."""
        nn.init.normal_(self.query)
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            # there the three are one matrix (3 dim, dim), whose uniform Xavier bound is this
            bound = (6 / (4 * self.dim)) ** 0.5
            nn.init.uniform_(projection.weight, -bound, bound)
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)

    def inert_parameters(self) -> set[str]:
        """A key bias adds the same number to all scores of a head."""
        return set() if self.k_proj.bias is None else {"k_proj.bias"}

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load `query` and the state of a `torch.nn.MultiheadAttention` under `attn.`.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor has the wrong shape.
        """
        # the reference itself, so that errors speak of its names and shapes
        theirs = nn.Module()
        theirs.query = nn.Parameter(torch.empty_like(self.query))
        theirs.attn = attention = nn.MultiheadAttention(self.dim, self.num_heads).to(self.query)
        if self.q_proj.bias is None:
            attention.register_parameter("in_proj_bias", None)
        load_strictly(theirs, state_dict)
        ours = {"query": theirs.query, **{f"o_proj.{name}": x for name, x in attention.out_proj.named_parameters()}}
        for kind in ("weight", "bias"):
            packed = getattr(attention, f"in_proj_{kind}")
            if packed is not None:
                ours |= {f"{name}_proj.{kind}": part for name, part in zip("qkv", packed.chunk(3), strict=True)}
        load_strictly(self, ours)

    def _fold(self) -> tuple[Tensor, Tensor | None]:
        q, k = self.q_proj, self.k_proj
        return fold_query(self.query, q.weight, q.bias, k.weight, k.bias, num_heads=self.num_heads)

    def _folds(self) -> bool:
        """Whether the projections are what they were built as: adapters, hooks and other layers must be called."""
        projections = (self.q_proj, self.k_proj, self.v_proj, self.o_proj)
        return all(type(p) is nn.Linear and not p._forward_hooks and not p._forward_pre_hooks for p in projections)

    def _scores(self, x: Tensor) -> Float[Tensor, "batch heads tokens"]:
        if self._folds():
            return project_wide(x, *self._fold()).transpose(1, 2)
        q, k = self.q_proj(self.query[None, None]), split_heads(self.k_proj(x), self.num_heads)
        dtype = compute_dtype(k)
        return (split_heads(q, self.num_heads).to(dtype) * k.to(dtype)).sum(dim=-1) * self.head_dim**-0.5

    def mix(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """The block scan; padding is in the future, so a mask changes nothing."""
        return prefix_softmax(self._scores(x), self.values(x), segments=segments)

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Merge the heads and project."""
        return self.proj_drop(self.o_proj(merge_heads(mixed)))

    def init_state(self, batch: int, *, max_len: int | None = None) -> PrefixState:
        """A state of constant size; `max_len` changes nothing."""
        self._derived.forget()
        return empty_prefix_state(batch, num_heads=self.num_heads, value_dim=self.head_dim, like=self.query)

    def mix_step(self, x: Tensor, state: PrefixState, *, mask: Tensor | None) -> tuple[Tensor, PrefixState]:
        """New tokens after those of the state."""
        if x.shape[1] > 1 or not self._folds():
            return state.extend(self._scores(x), self.values(x), mask)
        weight, bias, *_ = self._derived.get(self, self._decoding_weights)
        joined = project_wide(x, weight, bias)
        value, score = joined.view(x.shape[0], self.num_heads, -1).split_with_sizes((self.head_dim, 1), dim=-1)
        mixed, after = state.advance(score, value, mask)
        return mixed.to(x.dtype).unsqueeze(2), after

    def step(self, x: Tensor, state: PrefixState, *, mask: Tensor | None = None) -> tuple[Tensor, PrefixState]:
        """As in the base class; a single token in inference takes the shortest way, which calls no sub-module.

        There the way through modules, contexts and hooks would cost more than all of the mathematics, and half of
        the mathematics is that of the query, which is the same for every token.
        """
        fits = isinstance(state, PrefixState) and x.shape == (state.peak.shape[0], 1, self.dim)
        if not fits or mask is not None or self.training or torch.is_grad_enabled():
            return super().step(x, state, mask=mask)
        # the general way keeps them where it may
        kept = None if torch.compiler.is_compiling() else self._derived.kept(self)
        if kept is None or x.dtype != self.query.dtype or torch.is_autocast_enabled(x.device.type):
            return super().step(x, state, mask=mask)
        weight, bias, o_weight, o_bias = kept
        narrow = x.dtype != weight.dtype
        joined = linear(x.to(weight.dtype) if narrow else x, weight, bias)
        value, score = joined.view(x.shape[0], self.num_heads, -1).split_with_sizes((self.head_dim, 1), dim=-1)
        mixed, after = state.advance(score, value, None)
        return linear((mixed.to(x.dtype) if narrow else mixed).view(x.shape), o_weight, o_bias), after

    def _decoding_weights(self) -> tuple[Tensor, ...]:
        return *self._decoding_projection(), self.o_proj.weight, self.o_proj.bias

    def _decoding_projection(self) -> tuple[Tensor, Tensor]:
        """One projection of a token to all that a step needs: in every head its value and its score."""
        folded, constant = self._fold()
        value = self.v_proj.weight.to(folded.dtype).view(self.num_heads, self.head_dim, self.dim)
        weight = torch.cat((value, folded[:, None]), dim=1)
        if constant is None:
            bias = weight.new_zeros(weight.shape[:2])
        else:
            of_value = self.v_proj.bias.to(folded.dtype).view(self.num_heads, self.head_dim)
            bias = torch.cat((of_value, constant[:, None]), dim=1)
        return weight.flatten(0, 1), bias.flatten()

    def weights(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens keys"]:
        """Row i is the softmax of all scores up to i."""
        return prefix_softmax_weights(self._scores(x), segments=segments)

    def values(self, x: Tensor, *, context: Tensor | None = None) -> Float[Tensor, "batch heads keys head_dim"]:
        """Projected values."""
        return split_heads(self.v_proj(x), self.num_heads)

    def train(self, mode: bool = True) -> AarenAttention:
        """As in `torch.nn.Module`; what was computed from the parameters is forgotten."""
        self._derived.forget()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._derived.forget()
        return super()._apply(fn, recurse)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """Two projections, the scores, the query's own products once, and the scan."""
        dim, heads = options.dim, options.num_heads
        scan = prefix_softmax_macs(tokens, value_dim=dim // heads)
        return fold_query_macs(dim) + batch * (tokens * (2 * dim**2 + dim * heads) + heads * scan)
