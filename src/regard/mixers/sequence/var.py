"""VAR: causal attention in which text takes attention from the sinks among an image's tokens for its other tokens.

Paper: "See What You Are Told: Visual Attention Sink in Large Multimodal Models", Kang et al., ICLR 2025,
https://arxiv.org/abs/2503.03321 (Visual Attention Redistribution).
Compared with seilk/VisAttnSink@98e62d6c, `src/logic/logic.py:DimProspector, HeadFork, VARProcessor`.
Different from the code: see `regard.ops.visual_sinks`; sinks are sought in the mixer's input, so that a norm before the
mixer must be one without a weight to give the residual stream's; no attention matrix is written except for text after
the image. As in the code, a token that is decoded by itself is never a sink.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.contract import SequenceMixer
from regard.layers.var_state import VARState, empty_var_state
from regard.metadata import Example, No, Paper, Traits
from regard.ops.heads import head_width, kv_head_count, merge_heads, repeat_heads, split_heads
from regard.ops.redistributed_attention import First, redistributed_attention, redistributed_macs
from regard.ops.rotary import check_rotary, rotate
from regard.ops.softmax_attention import softmax_weights
from regard.ops.visibility import visible_keys
from regard.ops.visual_sinks import (
    SinkRule,
    after_image,
    check_sink_dims,
    check_tau,
    redistribute,
    sink_tokens,
    tau_for_width,
)
from regard.registry import register

Heads = Float[Tensor, "batch heads tokens head_dim"]
KeyHeads = Float[Tensor, "batch kv_heads tokens head_dim"]


@register(
    name="var",
    system="var",
    paper=Paper(
        title="See What You Are Told: Visual Attention Sink in Large Multimodal Models",
        authors="Kang et al.",
        venue="ICLR",
        year=2025,
        url="https://arxiv.org/abs/2503.03321",
        code="seilk/VisAttnSink@98e62d6c",
        where="Visual Attention Redistribution",
    ),
    traits=Traits(
        bidirectional=No("attention is redistributed in the text after an image, which needs an order"),
        cross=No("an image's tokens stand among the text's, and a context has no order relative to x"),
        segments=No("one span says where the image stands, and packed sequences have images in different places"),
        step_exact=No("a token that is decoded by itself is never a sink, in a prompt it may be one"),
        training_free=True,
        time="n^2",
        memory="n",
    ),
    example=Example(
        kwargs={
            "dim": 36,
            "num_heads": 6,
            "num_kv_heads": 3,
            "image_span": (2, 9),
            "sink_dims": (3, 17),
            "tau": 1.5,
            "rho": 0.4,
            "summ": 0.3,
            "rope_base": 100.0,
        },
        batch=2,
        tokens=19,
    ),
)
class VARAttention(SequenceMixer):
    """Softmax attention that redistributes what sinks are given, in image-centric heads of the text after an image.

    y_i = sum_j a'_ij v_j with a = softmax(q k^T / sqrt(d)). Where V = sum_{j in I} a_ij >= summ, and sinks in the image
    I have at most rho of V: a'_ij = p a_ij for the sinks j in S, in the image and in the text, and for the image's
    other tokens a'_ij = a_ij (1 + (1 - p) sum_S a_i / sum_{I without S} a_i); else a' = a. Sinks are tokens whose
    input, RMS-normalised, exceeds tau in a sink dimension.

    Args:
        dim: width of the model.
        num_heads: number of query heads; must divide `dim`.
        num_kv_heads: number of key/value heads; must divide `num_heads`; None = `num_heads`.
        causal: hide the future; there is no other form.
        image_span: position of the first image token and their number; None = no image, plain causal attention.
        sink_dims: D_sink, for which see `regard.ops.visual_sinks.detect_sink_dims`; needed with an image.
        tau: sinks exceed it; None = 20, and less below width 4,096 (`tau_for_width`).
        p: what sinks keep of their attention.
        rho: the largest share of a head's visual attention that sinks may have.
        summ: the least attention that a head must give to the image.
        active: redistribute; otherwise plain causal attention, as in a model's first two layers and its last.
        qkv_bias: bias in the three input projections.
        rope_base: base of the rotary embedding; None = no positions.

    Raises:
        ValueError: sizes that do not divide, a span that is empty or begins before 0, sink dimensions that `dim` does
            not have or that are missing, a `tau` that cannot be exceeded, or p, rho or summ outside [0, 1].

    Cost: causal softmax attention; for each of the text's queries and each head 6 MACs per key more.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        num_kv_heads: int | None = None,
        causal: bool = True,
        image_span: tuple[int, int] | None = None,
        sink_dims: Sequence[int] = (),
        tau: float | None = None,
        p: float = 0.6,
        rho: float = 0.5,
        summ: float = 0.2,
        active: bool = True,
        qkv_bias: bool = False,
        rope_base: float | None = None,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.head_dim = head_width(dim, num_heads)
        self.num_kv_heads = kv_head_count(num_heads, num_kv_heads)
        check_rotary(self.head_dim, rope_base)
        self.rope_base = rope_base
        self.rule = SinkRule(p=p, rho=rho, summ=summ)
        self.tau = tau_for_width(dim) if tau is None else tau
        check_tau(self.tau, dim)
        self.sink_dims = tuple(sink_dims)
        if image_span is not None:
            _check_span(image_span)
        if image_span is not None or self.sink_dims:
            check_sink_dims(self.sink_dims, dim)
        self.image_span, self.active = image_span, active
        kv_width = self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.k_proj = nn.Linear(dim, kv_width, bias=qkv_bias)
        self.v_proj = nn.Linear(dim, kv_width, bias=qkv_bias)
        self.o_proj = nn.Linear(dim, dim)

    def inert_parameters(self) -> set[str]:
        """Without rotary embedding a key bias adds the same number to all scores of a query."""
        return {"k_proj.bias"} if self.k_proj.bias is not None and self.rope_base is None else set()

    def find_sinks(self, x: Float[Tensor, "batch tokens dim"]) -> Bool[Tensor, "batch tokens"]:
        """Which tokens of a prompt are sinks, anywhere; none without an image or when not active."""
        if not self._redistributes:
            return torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        return sink_tokens(x, self.sink_dims, tau=self.tau)

    def image_tokens(self, x: Float[Tensor, "batch tokens dim"], *, keys: int) -> Bool[Tensor, "batch keys"]:
        """Which of the first `keys` positions hold image tokens; none without an image or when not active."""
        begin, end = (0, 0) if self.image_span is None else (self.image_span[0], self._image_end)
        places = torch.arange(keys, device=x.device)
        inside = (places >= begin) & (places < end) if self._redistributes else places < 0
        return inside.expand(x.shape[0], -1)

    @property
    def _redistributes(self) -> bool:
        return self.active and self.image_span is not None

    @property
    def _image_end(self) -> int:
        return 0 if self.image_span is None else sum(self.image_span)

    def _project(
        self, x: Tensor, positions: Int[Tensor, "#batch tokens"] | None = None
    ) -> tuple[Heads, KeyHeads, KeyHeads]:
        q = split_heads(self.q_proj(x), self.num_heads)
        k = split_heads(self.k_proj(x), self.num_kv_heads)
        v = split_heads(self.v_proj(x), self.num_kv_heads)
        if self.rope_base is None:
            return q, k, v
        places = torch.arange(x.shape[1], device=x.device)[None] if positions is None else positions
        return rotate(q, places, base=self.rope_base), rotate(k, places, base=self.rope_base), v

    def _text_start(self, first: First, queries: int) -> int:
        if not self._redistributes:
            return queries
        # rows of different lengths: any query may be text
        return min(max(self._image_end - first, 0), queries) if isinstance(first, int) else 0

    def _attend(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, *, first: First, bias: Tensor | None = None
    ) -> Heads:
        image = self.image_tokens(x, keys=sinks.shape[1])
        start = self._text_start(first, q.shape[2])
        return redistributed_attention(
            q, k, v, self.rule, image=image, sinks=sinks, first=first, bias=bias, text_start=start
        )

    def mix(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Heads:
        """The fused kernel up to the image's end, changed weights after it."""
        # padding lies to the right of every real token, so causality already hides it
        return self._attend(x, *self._project(x), self.find_sinks(x), first=0, bias=bias)

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Merge the heads and project."""
        return self.o_proj(merge_heads(mixed))

    def init_state(self, batch: int, *, max_len: int | None = None) -> VARState:
        """An empty key-value cache without sinks; without `max_len` it grows by doubling."""
        like = self.k_proj.weight
        return empty_var_state(
            batch, num_kv_heads=self.num_kv_heads, head_dim=self.head_dim, max_len=max_len, like=like
        )

    def _new_sinks(self, x: Tensor, state: VARState, mask: Tensor | None) -> Bool[Tensor, "batch tokens"] | None:
        """Sinks among new tokens: none where a row gets one token alone, after the image."""
        tokens = x.shape[1]
        past_image = not state.cache.ragged and state.cache.filled >= self._image_end
        if not self._redistributes or (tokens == 1 and mask is None and past_image):
            return None
        found = self.find_sinks(x)
        in_image = state.position[:, None] + torch.arange(tokens, device=x.device) < self._image_end
        if mask is not None:
            return found & (in_image | (mask.sum(dim=1, keepdim=True) > 1))
        return found if tokens > 1 else found & in_image

    def mix_step(self, x: Tensor, state: VARState, *, mask: Tensor | None) -> tuple[Heads, VARState]:
        """New tokens against everything in the cache, with the sinks found in the prompt."""
        tokens = x.shape[1]
        q, k, v = self._project(x, state.position[:, None] + torch.arange(tokens, device=x.device))
        after = state.append(k, v, self._new_sinks(x, state, mask), mask)
        if state.cache.filled == 0:
            return self._attend(x, q, k, v, after.sinks[:, :tokens], first=0), after
        keys, values = (stored.to(q.dtype) for stored in after.cache.read())
        first = state.position if after.cache.ragged else after.cache.filled - tokens
        return self._attend(x, q, keys, values, after.read_sinks(), first=first), after

    def weights(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens keys"]:
        """The softmax weights after redistribution."""
        tokens = x.shape[1]
        q, k, _ = self._project(x)
        visible = visible_keys(tokens, tokens, causal=True, device=x.device)
        weights = softmax_weights(q, k, visible=visible, bias=bias)
        image = self.image_tokens(x, keys=tokens)
        rows = after_image(image, queries=tokens)
        return redistribute(weights, image, self.find_sinks(x), self.rule, rows=rows).attention

    def values(self, x: Tensor, *, context: Tensor | None = None) -> Float[Tensor, "batch heads keys head_dim"]:
        """Projected values, repeated for the query heads that share them."""
        return repeat_heads(split_heads(self.v_proj(x), self.num_kv_heads), self.num_heads)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """Four projections, and attention with three sums and three factors per row after the image."""
        head_dim = options.dim // options.num_heads
        kv_width = head_dim * (options.num_kv_heads or options.num_heads)
        end = sum(options.image_span) if options.active and options.image_span is not None else tokens
        attention = redistributed_macs(
            queries=tokens,
            text_start=min(end, tokens),
            heads=options.num_heads,
            head_dim=head_dim,
            value_dim=head_dim,
        )
        return batch * (2 * tokens * options.dim * (options.dim + kv_width) + attention)


def _check_span(span: tuple[int, int]) -> None:
    begin, length = span
    if begin < 0 or length < 1:
        raise ValueError(f"image_span must begin at 0 or later and hold at least 1 token, got {begin} and {length}")
