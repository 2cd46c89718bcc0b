"""Softmax attention of few queries that also hands out its weights, by groups of query heads that share their keys.

Eviction and selection ask how much weight a key got. The query heads of a group are rows of one product, so that
shared keys are read once and never repeated; keys of a narrower type are widened block by block.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regard.ops.precision import compute_dtype, without_autocast
from regard.ops.softmax_attention import see_something, softmax_attention

WIDENED_KEYS = 2048
"""Keys or values that are widened at once: more do not stay in a CPU's cache."""

Queries = Float[Tensor, "batch heads queries head_dim"]
Keys = Float[Tensor, "batch kv_heads keys head_dim"]
Values = Float[Tensor, "batch kv_heads keys value_dim"]
Visible = Bool[Tensor, "#batch #kv_heads #queries keys"]
Weights = Float[Tensor, "batch kv_heads shared queries keys"]


@without_autocast
def group_weights(q: Queries, k: Keys, *, visible: Visible | None = None) -> Weights:
    """softmax(q k^T / sqrt(d)) over the visible keys, for all query heads of each key head.

    Args:
        q: queries.
        k: keys; their heads may be fewer than the queries'.
        visible: which key each query may see; a row that sees nothing is 0.
    """
    rows = _fold(q, k.shape[1]).to(compute_dtype(q)) * q.shape[-1] ** -0.5
    scores = _times_keys(rows, k).unflatten(2, (-1, q.shape[2]))
    if visible is None:
        return scores.softmax(dim=-1)
    weights = scores.masked_fill(~see_something(visible)[:, :, None], -torch.inf).softmax(dim=-1)
    return torch.where(visible[:, :, None], weights, 0)


@without_autocast
def weigh_values(weights: Weights, v: Values) -> Float[Tensor, "batch heads queries value_dim"]:
    """What the weights of all query heads find, in the type of the weights."""
    shared, queries = weights.shape[2:4]
    mixed = _times_values(weights.flatten(2, 3), v)
    return mixed.unflatten(2, (shared, queries)).flatten(1, 2)


def grouped_attention(
    q: Queries, k: Keys, v: Values, *, visible: Visible | None = None
) -> Float[Tensor, "batch heads queries value_dim"]:
    """`softmax_attention` without repeating the shared keys, for few queries; their weights stay inside the kernel.

    Args:
        q: queries.
        k: keys; their heads may be fewer than the queries'.
        v: values.
        visible: which key each query may see; the result is undefined, but finite, in rows that see nothing.
    """
    shared, queries = q.shape[1] // k.shape[1], q.shape[2]
    if visible is not None and queries > 1 and shared > 1:
        visible = visible.repeat(1, 1, shared, 1) if visible.shape[2] > 1 else visible
    mixed = softmax_attention(_fold(q, k.shape[1]), k, v, visible=visible)
    return mixed.unflatten(2, (shared, queries)).flatten(1, 2)


def _fold(q: Tensor, kv_heads: int) -> Float[Tensor, "batch kv_heads rows head_dim"]:
    return q.unflatten(1, (kv_heads, -1)).flatten(2, 3)


def _times_keys(rows: Tensor, k: Tensor) -> Float[Tensor, "batch kv_heads rows keys"]:
    if k.dtype == rows.dtype or k.device.type != "cpu":
        return rows @ k.to(rows.dtype).transpose(2, 3)
    parts = [rows @ part.to(rows.dtype).transpose(2, 3) for part in k.split(WIDENED_KEYS, dim=2)]
    return torch.cat(parts, dim=-1)


def _times_values(rows: Tensor, v: Tensor) -> Float[Tensor, "batch kv_heads rows value_dim"]:
    if v.dtype == rows.dtype or v.device.type != "cpu":
        return rows @ v.to(rows.dtype)
    parts = zip(rows.split(WIDENED_KEYS, dim=3), v.split(WIDENED_KEYS, dim=2), strict=True)
    return torch.stack([weights @ values.to(weights.dtype) for weights, values in parts]).sum(dim=0)
