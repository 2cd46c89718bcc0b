"""What RCMHA and the attentions that it is compared with share: convolved projections, relative scores, memory.

Paper: "RCMHA: Relative Convolutional Multi-Head Attention for Natural Language Modelling", Sugiharto et al., 2023,
https://arxiv.org/abs/2308.03429. With both parts it is RCMHA, with relative scores alone RMHA (Transformer-XL), with
convolutions alone MDHA (Primer). Compared with hermansh-id/rcmha@87df49bf,
`rcmha/attention.py:RelativeMultiHeadAttention`, and with labml_nn's `transformers/xl` and `transformers/primer_ez`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.contract import SequenceMixer
from regard.layers.head_convolution import WIDTH, HeadConvolution
from regard.layers.xl_state import Projected, XLState, empty_xl_state
from regard.ops.heads import head_width, merge_heads, split_heads
from regard.ops.relative_attention import relative_attention, relative_macs, relative_products, relative_weights
from regard.ops.softmax_attention import softmax_attention, softmax_attention_reference, softmax_weights
from regard.ops.visibility import visible_keys

Convolution = Literal["none", "shared", "per_head"]


class XLAttention(SequenceMixer):
    """Softmax attention over a memory and the tokens themselves; a subclass is final and says with which parts.

    Args:
        dim: width of the model.
        num_heads: number of heads; must divide `dim`.
        causal: hide the future.
        relative: scores know the distance.
        convolution: behind the three projections: "none", filters "shared" by the heads, or "per_head".
        max_positions: most tokens, memory included, where scores know the distance.
        conv_state: while decoding, the queries' convolution goes on where it was; else it begins anew at every call.
        qk_bias: bias in the projections of queries and keys.
        attn_drop: probability of dropping a weight in training.
        proj_drop: probability of dropping an output feature in training.

    Raises:
        ValueError: sizes that do not fit.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        causal: bool,
        relative: bool,
        convolution: Convolution,
        max_positions: int,
        conv_state: bool,
        qk_bias: bool,
        attn_drop: float,
        proj_drop: float,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.head_dim = head_width(dim, num_heads)
        if max_positions < 1:
            raise ValueError(f"max_positions must be positive, got {max_positions}")
        self.relative, self.max_positions = relative, max_positions
        self.conv_state, self.attn_drop = conv_state, attn_drop
        self.q_proj = nn.Linear(dim, dim, bias=qk_bias)
        self.k_proj = nn.Linear(dim, dim, bias=qk_bias)
        self.v_proj = nn.Linear(dim, dim)
        self.o_proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.q_conv, self.k_conv, self.v_conv = (
            None if convolution == "none" else HeadConvolution(num_heads, self.head_dim, shared=convolution == "shared")
            for _ in range(3)
        )
        if relative:
            # row max_positions + r belongs to the distance r, key minus query
            self.embeddings = nn.Parameter(torch.zeros(2 * max_positions, num_heads, self.head_dim))
            self.offset_bias = nn.Parameter(torch.zeros(2 * max_positions, num_heads))
            self.content_bias = nn.Parameter(torch.zeros(num_heads, self.head_dim))

    def inert_parameters(self) -> set[str]:
        """What adds the same vector to all keys adds the same number to all scores of a query."""
        if self.k_conv is not None:
            return {"k_conv.bias"}
        return {"k_proj.bias"} if self.k_proj.bias is not None else set()

    # -- with memory

    def with_memory(
        self, x: Float[Tensor, "batch tokens dim"], memory: Float[Tensor, "batch past dim"] | None
    ) -> Float[Tensor, "batch tokens dim"]:
        """The tokens of `x` attend to the memory, whole, and to themselves.

        Convolutions of keys and values run over both, that of queries over `x` alone.

        Args:
            x: the tokens.
            memory: what lies before them, earlier inputs of this mixer; None = nothing.

        Raises:
            ValueError: shapes that do not fit, or more tokens than `max_positions`.
        """
        q, k, v = self._convolved_with_memory(x, memory)
        return self.out(self._attend(q, k, v, causal=self.causal, visible=None, bias=None), x)

    def map_with_memory(
        self, x: Float[Tensor, "batch tokens dim"], memory: Float[Tensor, "batch past dim"] | None
    ) -> Float[Tensor, "batch heads tokens keys"]:
        """The weights of `with_memory`; the memory's keys come first.

        Raises:
            ValueError: as for `with_memory`.
        """
        q, k, _ = self._convolved_with_memory(x, memory)
        visible = visible_keys(q.shape[2], k.shape[2], causal=self.causal, device=x.device)
        return self._weigh(q, k, visible=visible, bias=None)

    def _convolved_with_memory(self, x: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        self._check_tokens(x, "x")
        if memory is not None and memory.shape[1] > 0:
            self._check_tokens(memory, "memory")
            if memory.shape[0] != x.shape[0]:
                raise ValueError(f"memory has {memory.shape[0]} rows and x has {x.shape[0]}: they must be equal")
        source = x if memory is None else torch.cat((memory, x), dim=1)
        self._check_length(source.shape[1])
        k, v = (self._heads(linear(source)) for linear in (self.k_proj, self.v_proj))
        return self._convolved(Projected(self._heads(self.q_proj(x)), k, v))

    # -- hooks

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim))

    def _project(self, x: Tensor) -> Projected:
        return Projected(*(self._heads(linear(x)) for linear in (self.q_proj, self.k_proj, self.v_proj)))

    def _convolved(self, given: Projected, before: Projected | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """`(batch, heads, tokens, head_dim)` each."""
        made = []
        pasts = (None, None, None) if before is None else before
        for x, past, convolution in zip(given, pasts, (self.q_conv, self.k_conv, self.v_conv), strict=True):
            if convolution is not None:
                # a past without tokens: queries begin anew
                x = convolution(x, before=past if past is not None and past.shape[1] > 0 else None)
            made.append(x.transpose(1, 2))
        return made[0], made[1], made[2]

    def _check_length(self, tokens: int) -> None:
        if self.relative and tokens > self.max_positions:
            raise ValueError(f"{tokens} tokens, memory included, are more than max_positions={self.max_positions}")

    def _rows(self, queries: int, keys: int) -> slice:
        """The table's rows of all distances, the last query at the last key."""
        return slice(self.max_positions - keys + 1, self.max_positions + queries)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, visible: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        dropout = self.attn_drop if self.training else 0.0
        if self.relative:
            rows = self._rows(q.shape[2], k.shape[2])
            return relative_attention(
                q,
                k,
                v,
                embeddings=self.embeddings[rows],
                offset_bias=self.offset_bias[rows],
                content_bias=self.content_bias,
                bias=bias,
                causal=causal,
                visible=visible,
                dropout=dropout,
            )
        if causal and (bias is not None or k.shape[2] != q.shape[2]):
            # fused causality knows neither a bias nor a memory
            causal, visible = False, visible_keys(q.shape[2], k.shape[2], causal=True, device=q.device)
        return softmax_attention(q, k, v, causal=causal, visible=visible, bias=bias, dropout=dropout)

    def _weigh(self, q: Tensor, k: Tensor, *, visible: Tensor | None, bias: Tensor | None) -> Tensor:
        if not self.relative:
            return softmax_weights(q, k, visible=visible, bias=bias)
        rows = self._rows(q.shape[2], k.shape[2])
        return relative_weights(
            q,
            k,
            embeddings=self.embeddings[rows],
            offset_bias=self.offset_bias[rows],
            content_bias=self.content_bias,
            bias=bias,
            visible=visible,
        )

    def _visible(
        self, x: Tensor, mask: Tensor | None, segments: Tensor | None
    ) -> Bool[Tensor, "#batch 1 queries keys"] | None:
        # padding lies to the right of every real token, so causality already hides it
        mask = None if self.causal else mask
        tokens = x.shape[1]
        return visible_keys(tokens, tokens, causal=self.causal, mask=mask, segments=segments, device=x.device)

    def mix(
        self,
        x: Float[Tensor, "batch tokens dim"],
        *,
        context: Float[Tensor, "batch keys dim"] | None,
        mask: Bool[Tensor, "batch keys"] | None,
        segments: Int[Tensor, "batch tokens"] | None,
        bias: Float[Tensor, "batch heads tokens keys"] | None,
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """Weights times values."""
        self._check_length(x.shape[1])
        alone = self.causal and segments is None
        visible = None if alone else self._visible(x, mask, segments)
        q, k, v = self._convolved(self._project(x))
        return self._attend(q, k, v, causal=alone, visible=visible, bias=bias)

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Merge the heads and project."""
        return self.proj_drop(self.o_proj(merge_heads(mixed)))

    def init_state(self, batch: int, *, max_len: int | None = None) -> XLState:
        """An empty cache, and zeros before the first token; without `max_len` the cache grows by doubling."""
        if max_len is not None:
            self._check_length(max_len)
        past = 0 if self.k_conv is None else WIDTH - 1
        return empty_xl_state(
            batch,
            num_heads=self.num_heads,
            head_dim=self.head_dim,
            past=past,
            past_of_queries=past if self.conv_state else 0,
            max_len=max_len,
            like=self.k_proj.weight,
        )

    def mix_step(self, x: Tensor, state: XLState, *, mask: Tensor | None) -> tuple[Tensor, XLState]:
        """New tokens against everything in the cache."""
        given = self._project(x)
        q, k, v = self._convolved(given, state.past)
        from_empty = state.cache.filled == 0
        after = state.appended(k, v, mask, given)
        self._check_positions(after)
        if from_empty:
            return self._attend(q, k, v, causal=True, visible=None, bias=None), after
        keys, values = (stored.to(q.dtype) for stored in after.cache.read())
        if not after.cache.ragged:
            return self._attend(q, keys, values, causal=True, visible=None, bias=None), after
        return self._attend_ragged(q, keys, values, state, after), after

    def _attend_ragged(self, q: Tensor, keys: Tensor, values: Tensor, state: XLState, after: XLState) -> Tensor:
        """Rows of different lengths: each query at a position of its own."""
        tokens, filled = q.shape[2], keys.shape[2]
        visible = after.cache.visible_to(state.position, tokens)
        if not self.relative:
            return softmax_attention(q, keys, values, visible=visible)
        positions = state.position[:, None] + torch.arange(tokens, device=q.device)
        place = torch.arange(filled, device=q.device) - positions[..., None]
        reach = min(filled, self.max_positions)
        rows = slice(self.max_positions - reach + 1, self.max_positions + 1)
        products = relative_products(q, self.embeddings[rows], self.offset_bias[rows])
        columns = (place.clamp(1 - reach, 0) + reach - 1)[:, None].expand(-1, self.num_heads, -1, -1)
        bias = products.gather(3, columns)
        contents = q + self.content_bias[:, None].to(q.dtype)
        return softmax_attention_reference(contents, keys, values, visible=visible, bias=bias)

    def _check_positions(self, state: XLState) -> None:
        # `filled` counts padding too; only where it is too large is looking at the device worth its cost
        cache = state.cache
        if self.relative and cache.filled > self.max_positions and not (cache.ragged and torch.compiler.is_compiling()):
            self._check_length(int(cache.position.max()) if cache.ragged else cache.filled)

    def weights(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens keys"]:
        """The softmax weights."""
        self._check_length(x.shape[1])
        q, k, _ = self._convolved(self._project(x))
        return self._weigh(q, k, visible=self._visible(x, mask, segments), bias=bias)

    def values(self, x: Tensor, *, context: Tensor | None = None) -> Float[Tensor, "batch heads keys head_dim"]:
        """Projected and convolved values of tokens that are one sequence."""
        if self.v_conv is None:
            return split_heads(self.v_proj(x), self.num_heads)
        return self.v_conv(self._heads(self.v_proj(x))).transpose(1, 2)

    @classmethod
    def macs_with(cls, options: SimpleNamespace, *, batch: int, tokens: int, relative: bool) -> int:
        """Four projections and attention; convolutions are sums of products, which count nothing."""
        head_dim = options.dim // options.num_heads
        attended = 2 * tokens * tokens * head_dim
        if relative:
            attended = relative_macs(tokens, tokens, head_dim=head_dim, value_dim=head_dim, past_only=options.causal)
        return batch * (4 * tokens * options.dim**2 + options.num_heads * attended)
