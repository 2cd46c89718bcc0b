"""Landmark attention: a token at the end of every block gates attention to the block's other tokens.

Paper: "Landmark Attention: Random-Access Infinite Context Length for Transformers", Mohtashami and Jaggi, NeurIPS 2023,
https://arxiv.org/abs/2305.16300, section 3.1. Softmax is taken within groups: the ordinary tokens of every earlier
block are one group each; the landmarks of earlier blocks and the tokens of the query's own block are another. A token
of an earlier block weighs its share of the block times the share of the block's landmark.
Compared with epfml/landmark-attention@d963e504, `lm_benchmark/models/landmark.py` (`landmark_grouped_softmax`).

With the score s_j, the weight of token j in block b is exp(s_j - L_b) exp(s_b) / Z, where L_b is the logarithm of the
sum of exp over the block and s_b the landmark's score. That is one ordinary softmax, with the bias s_b - L_b on the
keys of earlier blocks. It has no limit on the number of groups, and nothing is scattered where blocks are equally long.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import dropout, pad

from regard.ops.heads import repeat_heads
from regard.ops.landmark_sections import (
    Sections,
    check_block_size,
    is_landmark,
    sections_of_layout,
    sections_of_places,
)
from regard.ops.precision import compute_dtype, without_autocast
from regard.ops.softmax_attention import see_something
from regard.ops.visibility import visible_keys

ROWS = 128
"""Queries whose scores are in memory at once, about."""

Scores = Float[Tensor, "batch heads queries keys"]


# --------------------------------------------------------------------------------------------------- reference


def grouped_softmax_reference(
    scores: Scores, landmarks: Bool[Tensor, "batch keys"], visible: Bool[Tensor, "#batch 1 queries keys"]
) -> Scores:
    """The weights as the paper defines them, group by group.

    Args:
        scores: of every query and key.
        landmarks: which keys are landmarks.
        visible: which keys a query may see.
    """
    sections = sections_of_layout(landmarks, visible)
    marks = landmarks[:, None, None] & visible & ~sections.own
    last = sections.last
    gates = _softmax_within(scores, sections.own | (marks & (sections.number[:, None, None] < last)))
    weights = torch.where(sections.own, gates, 0)
    for block in range(int(sections.number.max()) + 1):
        of_block = sections.number[:, None, None] == block
        gate = torch.where(of_block & landmarks[:, None, None], gates, 0).sum(dim=-1, keepdim=True)
        weights = weights + gate * _softmax_within(scores, of_block & sections.earlier)
    return weights


def _softmax_within(scores: Scores, group: Bool[Tensor, "#batch 1 queries keys"]) -> Scores:
    return torch.where(group, scores.masked_fill(~see_something(group), -torch.inf).softmax(dim=-1), 0)


# --------------------------------------------------------------------------------------------------- one softmax


def landmark_bias(scores: Scores, sections: Sections, *, block_size: int) -> Scores:
    """What makes one softmax of `scores` the grouped one, for blocks of equal length that begin with the first key."""
    span = block_size + 1
    whole = scores.shape[-1] // span
    blocks = scores[..., : whole * span].unflatten(-1, (whole, span))
    shift = blocks[..., -1] - blocks[..., :-1].logsumexp(dim=-1)
    shift = pad(shift[..., None].expand(*shift.shape, span).flatten(-2), (0, scores.shape[-1] - whole * span))
    return torch.where(sections.earlier, shift, 0).masked_fill(~(sections.earlier | sections.own), -torch.inf)


def grouped_logits(scores: Scores, *, past: int, block_size: int) -> Scores:
    """`scores` plus `landmark_bias`, for queries in a row; without gradients in the memory of `scores`.

    Args:
        scores: of queries that stand at the places `past` and following, and the keys up to the last of them.
        past: a multiple of a block with its landmark.
        block_size: ordinary tokens in a block.
    """
    blocks = scores[..., :past].unflatten(-1, (past // (block_size + 1), block_size + 1))
    shift = (blocks[..., -1] - blocks[..., :-1].logsumexp(dim=-1))[..., None]
    own = scores[..., past:]
    rows = torch.arange(scores.shape[-2], device=scores.device)[None]
    bias = landmark_bias(own, sections_of_places(rows, own.shape[-1], block_size=block_size), block_size=block_size)
    if not torch.is_grad_enabled():
        blocks += shift
        blocks[..., -1] = -torch.inf
        own += bias
        return scores
    hidden = is_landmark(torch.arange(block_size + 1, device=scores.device), block_size)
    return torch.cat(((blocks + shift).masked_fill(hidden, -torch.inf).flatten(-2), own + bias), dim=-1)


def landmark_bias_of_layout(scores: Scores, landmarks: Bool[Tensor, "batch keys"], sections: Sections) -> Scores:
    """The same for landmarks anywhere: sums over a block are scattered."""
    groups = sections.number[:, None, None].expand(scores.shape)
    members = scores.masked_fill(~sections.earlier, -torch.inf)
    peak = torch.full_like(scores, -torch.inf).scatter_reduce(-1, groups, members, "amax").detach()
    peak = torch.where(peak.isfinite(), peak, 0)
    sums = torch.zeros_like(scores).scatter_add(-1, groups, (members - peak.gather(-1, groups)).exp())
    logs = torch.where(sums > 0, sums, 1).log() + peak
    marks = torch.zeros_like(scores).scatter_add(-1, groups, torch.where(landmarks[:, None, None], scores, 0))
    shift = (marks - logs).gather(-1, groups)
    return torch.where(sections.earlier, shift, 0).masked_fill(~(sections.earlier | sections.own), -torch.inf)


def grouped_softmax(
    scores: Scores, landmarks: Bool[Tensor, "batch keys"], visible: Bool[Tensor, "#batch 1 queries keys"]
) -> Scores:
    """The weights as one softmax; equals `grouped_softmax_reference`. A row that sees nothing is 0."""
    return _weights_of_layout(scores, landmarks, visible, gate_dropout=0.0)


def _weights_of_layout(scores: Scores, landmarks: Tensor, visible: Tensor, *, gate_dropout: float) -> Scores:
    sections = sections_of_layout(landmarks, visible)
    logits = scores + landmark_bias_of_layout(scores, landmarks, sections)
    seen = sections.own | sections.earlier
    weights = torch.where(seen, logits.masked_fill(~seen.any(dim=-1, keepdim=True), 0).softmax(dim=-1), 0)
    return _drop_gates(weights, sections, gate_dropout)


def _drop_gates(weights: Scores, sections: Sections, probability: float) -> Scores:
    """Drop whole earlier blocks; the query's own block is kept, and what is left is scaled up."""
    if probability == 0:
        return weights
    kept = dropout(torch.ones_like(weights), probability)
    kept = kept.gather(-1, sections.number[:, None, None].expand(weights.shape))
    return torch.where(sections.earlier, weights * kept, weights)


# --------------------------------------------------------------------------------------------------- attention


@without_autocast
def landmark_weights(
    q: Float[Tensor, "batch heads tokens head_dim"],
    k: Float[Tensor, "batch kv_heads tokens head_dim"],
    *,
    block_size: int,
    bias: Float[Tensor, "#batch heads tokens tokens"] | None = None,
) -> Float[Tensor, "batch heads tokens tokens"]:
    """The whole map of `landmark_attention`; landmarks weigh 0."""
    scores = _scores(q, repeat_heads(k, q.shape[1]), bias)
    return grouped_logits(scores, past=0, block_size=block_size).softmax(dim=-1)


@without_autocast
def landmark_attention(
    q: Float[Tensor, "batch heads tokens head_dim"],
    k: Float[Tensor, "batch kv_heads tokens head_dim"],
    v: Float[Tensor, "batch kv_heads tokens value_dim"],
    *,
    block_size: int,
    bias: Float[Tensor, "#batch heads tokens tokens"] | None = None,
    attn_dropout: float = 0.0,
    gate_dropout: float = 0.0,
) -> Float[Tensor, "batch heads tokens value_dim"]:
    """Causal attention to the own block and, through landmarks, to all earlier ones.

    Args:
        q: queries.
        k: keys; their heads may be fewer than the queries' (grouped-query attention).
        v: values; those of landmarks are never read.
        block_size: ordinary tokens between two landmarks: a landmark stands at every place p with
            p mod (block_size + 1) = block_size.
        bias: added to the scores.
        attn_dropout: probability of dropping a weight.
        gate_dropout: probability of dropping an earlier block.

    Raises:
        ValueError: blocks without ordinary tokens.
    """
    check_block_size(block_size)
    keys, values = (repeat_heads(x, q.shape[1]).to(compute_dtype(q)) for x in (k, v))
    parts = []
    for start, stop in _slices(q.shape[2], block_size):
        part = None if bias is None else bias[:, :, start:stop, :stop]
        scores = _scores(q[:, :, start:stop], keys[:, :, :stop], part)
        weights = grouped_logits(scores, past=start, block_size=block_size).softmax(dim=-1)
        if gate_dropout:
            rows = torch.arange(start, stop, device=q.device)[None]
            weights = _drop_gates(weights, sections_of_places(rows, stop, block_size=block_size), gate_dropout)
        parts.append(dropout(weights, attn_dropout) @ values[:, :, :stop])
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)).to(q.dtype)


@without_autocast
def landmark_attention_of_layout(
    q: Float[Tensor, "batch heads tokens head_dim"],
    k: Float[Tensor, "batch kv_heads tokens head_dim"],
    v: Float[Tensor, "batch kv_heads tokens value_dim"],
    *,
    landmarks: Bool[Tensor, "batch tokens"],
    segments: Int[Tensor, "batch tokens"] | None = None,
    bias: Float[Tensor, "#batch heads tokens tokens"] | None = None,
    attn_dropout: float = 0.0,
    gate_dropout: float = 0.0,
) -> Float[Tensor, "batch heads tokens value_dim"]:
    """The same with landmarks anywhere, and for packed sequences; slower, and quadratic in memory.

    Args:
        q: queries.
        k: keys.
        v: values.
        landmarks: where they stand; each needs an ordinary token between it and the one before.
        segments: packed sequences, runs of equal numbers that do not see each other.
        bias: added to the scores.
        attn_dropout: probability of dropping a weight.
        gate_dropout: probability of dropping an earlier block.
    """
    weights = landmark_weights_of_layout(
        q, k, landmarks=landmarks, segments=segments, bias=bias, gate_dropout=gate_dropout
    )
    return (dropout(weights, attn_dropout) @ repeat_heads(v, q.shape[1]).to(weights.dtype)).to(q.dtype)


@without_autocast
def landmark_weights_of_layout(
    q: Float[Tensor, "batch heads tokens head_dim"],
    k: Float[Tensor, "batch kv_heads tokens head_dim"],
    *,
    landmarks: Bool[Tensor, "batch tokens"],
    segments: Int[Tensor, "batch tokens"] | None = None,
    bias: Float[Tensor, "#batch heads tokens tokens"] | None = None,
    gate_dropout: float = 0.0,
) -> Float[Tensor, "batch heads tokens tokens"]:
    """The whole map of `landmark_attention_of_layout`; arguments as there."""
    tokens = q.shape[2]
    visible = visible_keys(tokens, tokens, causal=True, segments=segments, device=q.device)
    assert visible is not None
    scores = _scores(q, repeat_heads(k, q.shape[1]), bias)
    return _weights_of_layout(scores, landmarks, visible, gate_dropout=gate_dropout)


def landmark_attention_macs(*, tokens: int, block_size: int, head_dim: int, value_dim: int) -> int:
    """Contraction MACs of `landmark_attention` for one head: a slice of queries and all keys up to its end."""
    return sum((stop - start) * stop * (head_dim + value_dim) for start, stop in _slices(tokens, block_size))


def _slices(tokens: int, block_size: int) -> Iterator[tuple[int, int]]:
    span = block_size + 1
    rows = max(1, ROWS // span) * span
    for start in range(0, tokens, rows):
        yield start, min(start + rows, tokens)


def _scores(q: Tensor, k: Tensor, bias: Tensor | None) -> Scores:
    dtype = compute_dtype(q)
    scores = (q.to(dtype) * q.shape[-1] ** -0.5) @ k.to(dtype).mT
    return scores if bias is None else scores + bias.to(dtype)
