"""SEA's attention from given queries, keys and values: estimate, choose keys, attend to them, mix with an average.

Paper: "SEA: Sparse Linear Attention with Estimated Attention Mask", Lee et al., ICLR 2024,
https://arxiv.org/abs/2310.01777, section 3. Compared with gmlwns2000/sea-attention@5609413b
`src/models/perlin_attention/attention.py:PerlinAttention` (with `benchmarking = False`), whose state it loads.
Different from the code, beside the estimate: jitter while training moves a key for all queries alike, not for each
query anew, and is cut to the visible keys; with `as_compared=False` the mean over queries is that of real ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.contract import load_strictly
from regard.layers.attention_estimator import (
    AttentionEstimator,
    Estimate,
    EstimatorSizes,
    Heads,
    KeyHeads,
    Mask,
    estimator_macs,
    only_real,
    widened_heads,
)
from regard.layers.perlin_names import reference_name, without_effect
from regard.layers.wide_precision import wide_linear
from regard.ops.column_choice import Choice, Lengths, resize_to_keys
from regard.ops.distillation import output_transfer_loss
from regard.ops.estimated_attention import (
    chunk_spans,
    gathered_attention,
    gathered_macs,
    kept_attention_reference,
    kept_attention_weights,
    kept_keys,
)
from regard.ops.heads import repeat_heads
from regard.ops.score_transfer import probability_error, score_divergence

DIVERGENCE_WEIGHT = 0.1
"""Of the KL divergences in the distillation loss."""
JITTER_SIZE = 0.75
"""Largest movement of a key's position, in keys."""


class EstimatedAttention(nn.Module):
    """Attention to the keys that an estimate of the attention keeps.

    The columns of the estimate with the largest softmax are chosen, and with P = softmax(q k^T) over their keys

        out_i = sigmoid(g1_i) sigmoid(g0_i) sum_j P_ij v_j + (1 - sigmoid(g1_i)) average_i,    (g0, g1) = W_g e,

    where the average is that of all values so far (causal), or of all values, weighed by the mean estimate of their
    column. Causal queries come divided by sqrt(d); without causality scores are divided here.

    Args:
        sizes: what it is made of.

    Raises:
        ValueError: sizes that do not fit.
    """

    def __init__(self, sizes: EstimatorSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.estimate = AttentionEstimator(sizes)
        self.gates = nn.Linear(2 * sizes.head_dim, 2)

    @property
    def choice(self) -> Choice:
        """The budget of columns."""
        return self.sizes.choice

    def keep_per_query(self, keys: int) -> None:
        """Keep another number of keys per query from now on: the estimate serves any number.

        Raises:
            ValueError: fewer than 1.
        """
        self.sizes = self.estimate.sizes = replace(self.sizes, keys_per_query=keys)

    @property
    def scale(self) -> float:
        """Factor of q k^T."""
        return 1.0 if self.sizes.causal else self.sizes.head_dim**-0.5

    def inert_parameters(self) -> set[str]:
        """Choosing keys has no gradient: a causal decoder gets none at all, another one only through the average.

        There, the last convolution's bias raises all scores of a row alike.
        """
        if not self.sizes.causal:
            return {"estimate.decoder.last_conv.bias"}
        return {f"estimate.decoder.{name}" for name, _ in self.estimate.decoder.named_parameters()}

    def forward(self, q: Heads, k: KeyHeads, v: KeyHeads, *, mask: Mask | None = None) -> Heads:
        """Attention of every token, in at least float32.

        Args:
            q: queries; divided by sqrt(d) with causality, and not without it.
            k: keys; their heads may be fewer than the queries'.
            v: values.
            mask: True on the prefix of each row that is real.

        Raises:
            ValueError: more tokens than positions, with causality.
        """
        return self._mix(q, k, v, self.estimate(q, k, v, mask=mask), mask)

    def attend_step(
        self,
        q: Heads,
        k: KeyHeads,
        v: KeyHeads,
        estimate: Estimate,
        *,
        first: Int[Tensor, " batch"],
        shortest: int,
        longest: int,
        value_sum: Heads,
    ) -> Heads:
        """Attention of new tokens to all tokens, without padding among the new ones' visible keys.

        Args:
            q: the new tokens' queries.
            k: keys of all tokens, from the first on; there may be room behind them.
            v: values of all tokens.
            estimate: the new tokens'.
            first: position of the first new token, in each row.
            shortest: the first new token sees at least so many keys.
            longest: the last new token sees at most so many keys.
            value_sum: running sums of the values up to each new token.
        """
        lengths = first[:, None] + torch.arange(1, q.shape[2] + 1, device=q.device)
        spans = chunk_spans(q.shape[2], shortest, longest, causal=True)
        context = gathered_attention(
            q, k, v, estimate.probabilities, lengths, self.choice, scale=self.scale, spans=spans
        )
        return self._gate(context, value_sum / lengths[:, None, :, None], estimate.encoded)

    def weights(
        self, q: Heads, k: KeyHeads, v: KeyHeads, *, mask: Mask | None = None
    ) -> Float[Tensor, "batch heads queries keys"]:
        """The map whose product with the values is `forward`: that of the kept keys and that of the average."""
        estimate = self.estimate(q, k, v, mask=mask)
        tokens = q.shape[2]
        kept = self.keep(estimate, mask=mask)
        weights = kept_attention_weights(q, k, kept, scale=self.scale)
        lengths = self._lengths(tokens, mask, q.device)
        if self.sizes.causal:
            seen = torch.arange(tokens, device=q.device) < lengths[..., None]
            average = (seen / lengths[..., None]).to(weights.dtype)[:, None]
        else:
            average = self._column_average(estimate, lengths, mask)
        first, second = self.gates_of(estimate.encoded)
        return second * first * weights + (1 - second) * average

    def keep(self, estimate: Estimate, *, mask: Mask | None = None) -> Bool[Tensor, "batch heads queries keys"]:
        """The map of kept keys.

        Args:
            estimate: of all tokens.
            mask: True on the prefix of each row that is real.
        """
        tokens, device = estimate.encoded.shape[2], estimate.encoded.device
        lengths = self._lengths(tokens, mask, device)
        return kept_keys(estimate.probabilities, lengths, tokens, self.choice, real=self._real(mask))

    def estimated_map(
        self, estimate: Estimate, *, mask: Mask | None = None
    ) -> Float[Tensor, "batch heads queries keys"]:
        """The whole map that was estimated: every key has the estimate of its column; rows need not sum to 1.

        Args:
            estimate: of all tokens.
            mask: True on the prefix of each row that is real.
        """
        tokens, device = estimate.encoded.shape[2], estimate.encoded.device
        return resize_to_keys(estimate.scores.softmax(dim=-1), self._lengths(tokens, mask, device), tokens, fill=0.0)

    def lesson(
        self,
        q: Heads,
        k: KeyHeads,
        v: KeyHeads,
        teacher_scores: Float[Tensor, "batch heads queries keys"],
        teacher_context: Heads,
        *,
        mask: Mask | None = None,
    ) -> tuple[Heads, Float[Tensor, ""]]:
        """`forward`, and how far estimate, scores and output are from a teacher's: quadratic in the number of tokens.

        For the estimate, resized to all keys, and for the scores q k^T: 0.1 KL + mean squared error of the softmax
        against the teacher's; for the output: the mean squared error.

        Args:
            q: the student's queries, as for `forward`.
            k: the student's keys.
            v: the student's values.
            teacher_scores: the teacher's, as they enter its softmax.
            teacher_context: the teacher's outputs, head by head.
            mask: True on the prefix of each row that is real.

        Raises:
            ValueError: shapes that do not fit, or more tokens than positions.
        """
        estimate = self.estimate(q, k, v, mask=mask)
        tokens = q.shape[2]
        lengths = self._lengths(tokens, mask, q.device)
        visible = (torch.arange(tokens, device=q.device) < lengths[..., None])[:, None]
        resized = resize_to_keys(estimate.scores, lengths, tokens, fill=0.0, jitter=self._draw_jitter(tokens, q.device))
        wide_q, wide_k, _ = widened_heads(q, k, v)
        scores = torch.einsum("bhid,bhjd->bhij", wide_q * self.scale, wide_k)
        rows = None if self.sizes.as_compared else mask
        mixed = self._mix(q, k, v, estimate, mask)
        loss = output_transfer_loss(only_real(teacher_context, rows), only_real(mixed, rows))
        for found in (resized, scores):
            divergence = score_divergence(
                teacher_scores, found, visible=visible, rows=mask, over_heads=self.sizes.causal
            )
            loss = loss + DIVERGENCE_WEIGHT * divergence
            loss = loss + probability_error(teacher_scores, found, visible=visible, rows=rows)
        return mixed, loss

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the layout of the compared code's `PerlinAttention`; its modules without effect are passed over.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor has the wrong shape.
        """
        renamed = {}
        for name, tensor in state_dict.items():
            if without_effect(name, causal=self.sizes.causal):
                continue
            ours = reference_name(name)
            if ours == "estimate.positions":
                tensor = tensor.flatten(0, 2)
            elif ours.endswith("_conv.weight") and self.sizes.causal:
                # the code's kernels hold later rows too, which are always masked
                tensor = tensor[:, :, : (tensor.shape[2] + 1) // 2]
            renamed[ours] = tensor
        load_strictly(self, renamed)

    # -- inside

    def gates_of(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """The factor of the kept keys' weights, and the share of what they give against the average."""
        gates = wide_linear(encoded, self.gates).sigmoid()
        return gates[..., :1], gates[..., 1:]

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, estimate: Estimate, mask: Tensor | None) -> Tensor:
        tokens = q.shape[2]
        lengths = self._lengths(tokens, mask, q.device)
        jitter = self._draw_jitter(tokens, q.device)
        if self.sizes.gathers(tokens):
            context = gathered_attention(
                q,
                k,
                v,
                estimate.probabilities,
                lengths,
                self.choice,
                scale=self.scale,
                spans=_spans_of(tokens, causal=self.sizes.causal, masked=mask is not None),
                real=self._real(mask),
                jitter=jitter,
            )
        else:
            kept = kept_keys(estimate.probabilities, lengths, tokens, self.choice, real=self._real(mask), jitter=jitter)
            context = kept_attention_reference(q, k, v, kept, scale=self.scale)
        values = repeat_heads(v, q.shape[1]).to(context.dtype)
        if self.sizes.causal:
            average = values.cumsum(dim=2) / lengths[:, None, :, None]
        else:
            average = self._column_average(estimate, lengths, mask) @ values
        return self._gate(context, average, estimate.encoded)

    def _gate(self, context: Tensor, average: Tensor, encoded: Tensor) -> Tensor:
        first, second = self.gates_of(encoded)
        return second * first * context + (1 - second) * average

    def _column_average(self, estimate: Estimate, lengths: Tensor, mask: Tensor | None) -> Tensor:
        """The weights of the average without causality: one row for all queries."""
        total = estimate.probabilities.sum(dim=2, keepdim=True)
        if mask is None or self.sizes.as_compared:
            mean = total / estimate.probabilities.shape[2]
        else:
            mean = total / mask.sum(dim=1).clamp(min=1)[:, None, None, None]
        return resize_to_keys(mean, lengths[:, :1], estimate.encoded.shape[2], fill=0.0)

    def _lengths(self, tokens: int, mask: Tensor | None, device: torch.device) -> Lengths:
        """How many keys each query sees."""
        if self.sizes.causal:
            return torch.arange(1, tokens + 1, device=device)[None]
        if mask is None:
            return torch.full((1, tokens), tokens, device=device)
        return mask.sum(dim=1)[:, None].expand(-1, tokens)

    def _real(self, mask: Tensor | None) -> Tensor | None:
        return None if self.sizes.causal else mask

    def _draw_jitter(self, keys: int, device: torch.device) -> Tensor | None:
        if not (self.training and self.sizes.causal and self.sizes.jitter > 0):
            return None
        moved = JITTER_SIZE * (2 * torch.rand(keys, device=device) - 1)
        return torch.where(torch.rand((), device=device) < self.sizes.jitter, moved, 0)


def estimated_attention_macs(sizes: EstimatorSizes, tokens: int, *, masked: bool = False) -> int:
    """Contraction MACs of an eager forward of `EstimatedAttention` for one row of the batch.

    Args:
        sizes: what it is made of.
        tokens: number of tokens.
        masked: whether a mask is given.
    """
    heads, width = sizes.num_heads, sizes.head_dim
    average = 0 if sizes.causal else heads * tokens * width
    if sizes.gathers(tokens):
        spans = _spans_of(tokens, causal=sizes.causal, masked=masked)
        attention = gathered_macs(sizes.choice, spans, queries=tokens, head_dim=width, value_dim=width)
    else:
        attention = 2 * heads * tokens**2 * width
    return estimator_macs(sizes, tokens) + heads * tokens * 4 * width + average + attention


def _spans_of(tokens: int, *, causal: bool, masked: bool) -> tuple[tuple[int, int], ...]:
    shortest = 1 if causal or masked else tokens
    return chunk_spans(tokens, shortest, tokens, causal=causal)
