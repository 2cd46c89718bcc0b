"""Recycled attention: most tokens attend to the keys that an earlier token's full attention found important.

Paper: "Recycled Attention: Efficient inference for long-context language models", Xu, Goyal and Choi, 2024,
https://arxiv.org/abs/2411.05787 (ACL 2025 as "RefreshKV"). Here are the parts of a decoding step, which
`regard.layers.recycled_state` puts together, and the one-pass simulation in which a model is trained: in each group of
S tokens the first attends in full, the others to its K best keys and to what followed it in the group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity, pad, scaled_dot_product_attention

from regard.ops.grouped_attention import Keys, Queries, Values, Weights, group_weights, grouped_attention
from regard.ops.precision import compute_dtype, product_dtype, without_autocast
from regard.ops.softmax_attention import softmax_attention, softmax_attention_reference

Reduction = Literal["max", "mean"]
COLUMNS_AT_ONCE = 1 << 13
"""Gathered keys of a key head that are in memory at once, about."""


@dataclass(frozen=True, kw_only=True)
class Recycling:
    """How many keys are recycled, and when they are chosen anew.

    Args:
        top_k: keys that a choice keeps, K.
        stride: tokens from one full step to the next, S; None = never. Also the size of the groups of the simulation.
        reduce: how the weights of the query heads that share a key become one score.
        threshold: a step is full where its queries are less alike to the last full step's than this (cosine, mean of
            all heads), in place of every S-th; None = every S-th.
        check_stride: with `threshold`, tokens from one look at the queries to the next.
        fixed_size: drop the chosen key with the lowest score for every token that follows a full step.

    Raises:
        ValueError: a number out of its range.
    """

    top_k: int = 512
    stride: int | None = 16
    reduce: Reduction = "max"
    threshold: float | None = None
    check_stride: int = 1
    fixed_size: bool = False

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if self.stride is not None and self.stride < 1:
            raise ValueError(f"stride must be at least 1, or None for never, got {self.stride}")
        if self.reduce not in get_args(Reduction):
            raise ValueError(f"reduce must be one of {', '.join(get_args(Reduction))}, got {self.reduce!r}")
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise ValueError(f"threshold is a cosine, between -1 and 1, got {self.threshold}")
        if self.check_stride < 1:
            raise ValueError(f"check_stride must be at least 1, got {self.check_stride}")
        if self.check_stride > 1 and self.threshold is None:
            raise ValueError(f"check_stride={self.check_stride} has no effect without a threshold")

    def sees_all(self, tokens: int) -> bool:
        """Whether the simulation of so many tokens is full causal attention."""
        if tokens <= self.top_k or self.stride == 1:
            return True
        group = self.stride or tokens
        return not self.fixed_size and (tokens - 1) // group * group < self.top_k


# --------------------------------------------------------------------------------------------------- one choice


def group_scores(weights: Weights, reduce: Reduction) -> Float[Tensor, "batch kv_heads queries keys"]:
    """One score per key: the largest, or the mean, of the weights that the query heads of a group give it."""
    return weights.amax(dim=2) if reduce == "max" else weights.mean(dim=2)


def choose_keys(
    scores: Float[Tensor, "*heads keys"],
    top_k: int,
    *,
    allowed: Bool[Tensor, "*#heads keys"] | None = None,
    always: Int[Tensor, "*#heads"] | None = None,
) -> Int[Tensor, "*heads top_k"]:
    """The keys with the highest scores, the best one last; -1 at the front where there are fewer than `top_k`.

    Args:
        scores: a score for every key.
        top_k: how many to choose.
        allowed: which keys may be chosen.
        always: a key that is chosen whatever its score, and counts as the best.
    """
    keys = scores.shape[-1]
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    if always is not None:
        own = torch.arange(keys, device=scores.device) == always[..., None]
        scores = scores.masked_fill(own, torch.inf)
    best, places = scores.topk(min(top_k, keys), dim=-1)
    chosen = torch.where(best == -torch.inf, -1, places).flip(-1)
    return pad(chosen, (top_k - chosen.shape[-1], 0), value=-1)


def in_order(chosen: Int[Tensor, "*heads top_k"]) -> Int[Tensor, "*heads top_k"]:
    """A choice by position, with its -1 at the end."""
    last = torch.iinfo(chosen.dtype).max
    ordered = chosen.masked_fill(chosen < 0, last).sort(dim=-1).values
    return ordered.masked_fill(ordered == last, -1)


def take_keys(
    stored: Float[Tensor, "batch kv_heads keys width"], chosen: Int[Tensor, "batch kv_heads *choices"]
) -> Float[Tensor, "batch kv_heads *choices width"]:
    """The chosen keys, or their values, in one gather; anything where the choice is -1."""
    batch, heads, keys, width = stored.shape
    first = (torch.arange(batch * heads, device=stored.device) * keys).view(batch, heads, *[1] * (chosen.ndim - 2))
    rows = (chosen.clamp(min=0) + first).flatten()
    return stored.reshape(-1, width).index_select(0, rows).view(*chosen.shape, width)


@without_autocast
def query_similarity(
    q: Float[Tensor, "batch heads head_dim"], other: Float[Tensor, "batch heads head_dim"]
) -> Float[Tensor, " batch"]:
    """The cosine between two tokens' queries, mean of all heads."""
    dtype = compute_dtype(q)
    return cosine_similarity(q.to(dtype), other.to(dtype), dim=-1).mean(dim=-1)


# --------------------------------------------------------------------------------------------------- one pass


@torch.no_grad()
def simulated_choice(q: Queries, k: Keys, recycling: Recycling) -> Int[Tensor, "batch kv_heads groups top_k"]:
    """What the first token of each group chooses: itself, and the best of the keys before it."""
    pieces = [_choice(q, k, recycling, piece) for piece in _pieces(q.shape[2], recycling)]
    return torch.cat(pieces, dim=2)


def recycled_visible(q: Queries, k: Keys, recycling: Recycling) -> Bool[Tensor, "batch heads tokens tokens"]:
    """The whole map of keys that the simulation shows. Quadratic."""
    tokens, group = q.shape[2], recycling.stride or q.shape[2]
    chosen = simulated_choice(q, k, recycling)
    ranks = torch.arange(chosen.shape[-1], device=q.device).expand_as(chosen)
    # what was not chosen is written to a column of its own
    by_group = torch.full((*chosen.shape[:3], tokens + 1), -1, device=q.device)
    by_group = by_group.scatter(-1, torch.where(chosen < 0, tokens, chosen), ranks)[..., :-1]
    rows = torch.arange(tokens, device=q.device)[:, None]
    columns, since = rows.T, rows % group
    recycled = by_group.repeat_interleave(group, dim=2)[:, :, :tokens] >= (since if recycling.fixed_size else 0)
    seen = (recycled | (columns > rows - since) | (since == 0)) & (columns <= rows)
    return seen.repeat_interleave(q.shape[1] // k.shape[1], dim=1)


def recycled_attention_reference(
    q: Queries, k: Keys, v: Values, recycling: Recycling
) -> Float[Tensor, "batch heads tokens value_dim"]:
    """Full attention under the whole map. Arguments as for `recycled_attention`."""
    return softmax_attention_reference(q, k, v, visible=recycled_visible(q, k, recycling))


@without_autocast
def recycled_attention(
    q: Queries, k: Keys, v: Values, recycling: Recycling
) -> Float[Tensor, "batch heads tokens value_dim"]:
    """The simulation in one pass; equals `recycled_attention_reference`.

    Gradients flow through the attention alone, none through the choice.

    Args:
        q: queries.
        k: keys, as many as queries; their heads may be fewer (grouped-query attention).
        v: values.
        recycling: how many keys are recycled, in groups of which size. There is no dynamic schedule here.
    """
    tokens = q.shape[2]
    if recycling.sees_all(tokens):
        return softmax_attention(q, k, v, causal=True)
    group, parts = recycling.stride or tokens, []
    for piece in _pieces(tokens, recycling):
        leaders, chosen = q[:, :, piece][:, :, ::group], _choice(q, k, recycling, piece)
        last = piece.start + (leaders.shape[2] - 1) * group + 1
        full = grouped_attention(leaders, k[:, :, :last], v[:, :, :last], visible=_before_leaders(piece, group, q))
        others = _followers(q, k, v, chosen, piece, recycling)
        both = torch.cat((full[:, :, :, None], others), dim=3).flatten(2, 3)
        parts.append(both[:, :, : piece.stop - piece.start])
    return torch.cat(parts, dim=2)


def recycled_attention_macs(recycling: Recycling, *, tokens: int, shared: int, head_dim: int, value_dim: int) -> int:
    """Contraction MACs of `recycled_attention` for one row and one key head that `shared` query heads share."""
    if recycling.sees_all(tokens):
        return shared * tokens * tokens * (head_dim + value_dim)
    group, total = recycling.stride or tokens, 0
    columns = min(recycling.top_k, tokens) + group - 1
    for piece in _pieces(tokens, recycling):
        leaders = -(-(piece.stop - piece.start) // group)
        last = piece.start + (leaders - 1) * group + 1
        total += leaders * last * (2 * head_dim + value_dim)
        total += leaders * (group - 1) * columns * (head_dim + value_dim)
    return shared * total


def _pieces(tokens: int, recycling: Recycling) -> Iterator[slice]:
    """Some groups at a time, the last of which may be shorter."""
    group = recycling.stride or tokens
    step = group * max(1, COLUMNS_AT_ONCE // (min(recycling.top_k, tokens) + group))
    for start in range(0, tokens, step):
        yield slice(start, min(start + step, tokens))


def _before_leaders(piece: slice, group: int, q: Tensor) -> Bool[Tensor, "1 1 leaders keys"]:
    leaders = torch.arange(piece.start, piece.stop, group, device=q.device)
    count = (piece.stop - piece.start - 1) // group * group + piece.start + 1
    return (torch.arange(count, device=q.device) <= leaders[:, None])[None, None]


@torch.no_grad()
def _choice(q: Tensor, k: Tensor, recycling: Recycling, piece: slice) -> Int[Tensor, "batch kv_heads leaders top_k"]:
    tokens, group = q.shape[2], recycling.stride or q.shape[2]
    visible = _before_leaders(piece, group, q)
    leaders = q[:, :, piece][:, :, ::group]
    scores = group_scores(group_weights(leaders, k[:, :, : visible.shape[-1]], visible=visible), recycling.reduce)
    own = torch.arange(piece.start, piece.stop, group, device=q.device)
    return choose_keys(scores, min(recycling.top_k, tokens), allowed=visible, always=own[None, None])


def _followers(
    q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, piece: slice, recycling: Recycling
) -> Float[Tensor, "batch heads groups followers value_dim"]:
    """All tokens of the groups but their first: a group's queries are rows of one small attention."""
    tokens, group = q.shape[2], recycling.stride or q.shape[2]
    kv_heads, groups, top_k = chosen.shape[1:]
    dtype, device = product_dtype(q), q.device
    after = torch.arange(1, group, device=device)
    leaders = torch.arange(piece.start, piece.stop, group, device=device)
    recent = (leaders[:, None] + after).clamp(max=tokens - 1).expand(*chosen.shape[:3], -1)
    places = torch.cat((chosen, recent), dim=-1)
    keys, values = (take_keys(x.to(dtype), places).flatten(0, 2)[:, None] for x in (k, v))
    own = pad(q[:, :, piece], (0, 0, 0, groups * group - (piece.stop - piece.start))).to(dtype)
    own = own.unflatten(2, (groups, group))[:, :, :, 1:].unflatten(1, (kv_heads, -1))
    rows = own.movedim(3, 2).flatten(3, 4).flatten(0, 2)[:, None]
    ranks = torch.arange(top_k, device=device)
    kept = (chosen >= 0)[..., None, :] & (ranks >= (after[:, None] if recycling.fixed_size else 0))
    kept = kept.expand(-1, -1, -1, group - 1, -1)
    near = (after <= after[:, None]).expand(*chosen.shape[:3], -1, -1)
    visible = torch.cat((kept, near), dim=-1).repeat(1, 1, 1, own.shape[2], 1).flatten(0, 2)[:, None]
    mixed = scaled_dot_product_attention(rows, keys, values, attn_mask=visible).to(q.dtype)
    mixed = mixed.view(q.shape[0], kv_heads, groups, own.shape[2], group - 1, v.shape[-1])
    return mixed.movedim(2, 3).flatten(1, 2)
