"""Causal softmax attention in a sliding window, beside which every query sees some keys that stand before all others.

Paper: "Titans: Learning to Memorize at Test Time", Behrouz, Zhong and Mirrokni, 2025, https://arxiv.org/abs/2501.00663,
section 4.2 and figure 3b: the window slides, and the persistent tokens before the sequence are always visible.

Queries are cut into blocks, which become rows of one batch; each sees its own keys, those that the window reaches
before it, and the prefix. The prefix has a query of its own, so that rotary positions may leave it out.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from regard.ops.precision import compute_dtype, without_autocast
from regard.ops.window_attention import window_visible

BLOCK = 64
"""Smallest block of queries, unless there are fewer."""


@without_autocast
def prefix_window_attention(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch heads keys head_dim"],
    v: Float[Tensor, "batch heads keys value_dim"],
    prefix_q: Float[Tensor, "batch heads queries head_dim"],
    prefix_k: Float[Tensor, "#batch heads prefix head_dim"],
    prefix_v: Float[Tensor, "#batch heads prefix value_dim"],
    *,
    window_size: int,
    mask: Bool[Tensor, "batch keys"] | None = None,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """One softmax over the prefix and the window; the last query sees the last key.

    Args:
        q: queries of the window.
        k: keys, at least as many as queries.
        v: values.
        prefix_q: queries of the prefix.
        prefix_k: keys that every query sees.
        prefix_v: their values.
        window_size: keys that a query sees, its own among them.
        mask: True = key that may be seen.

    Raises:
        ValueError: a window that is not positive, or fewer keys than queries.
    """
    if window_size < 1:
        raise ValueError(f"window_size must be positive, got {window_size}")
    queries, keys = q.shape[2], k.shape[2]
    if keys < queries:
        raise ValueError(f"there must be at least as many keys as queries, got {keys} keys and {queries} queries")
    dtype, size = compute_dtype(q), min(queries, max(BLOCK, window_size))
    number, reach = -(-queries // size), window_size - 1
    scale = q.shape[3] ** -0.5

    def windows(x: Tensor) -> Tensor:
        """Axis 2 (keys), filled to `reach` before the first query and whole blocks after it, as one part per block."""
        past = keys - queries
        x = x[:, :, max(0, past - reach) :]
        filled = pad(x, (0, 0, max(0, reach - past), number * size - queries))
        return filled.unfold(2, size + reach, size)

    blocks = pad(q.to(dtype), (0, 0, 0, number * size - queries)).unflatten(2, (number, size))
    scores = (blocks @ windows(k.to(dtype))) * scale
    real = torch.ones(1, keys, dtype=torch.bool, device=q.device) if mask is None else mask
    seen = windows(real[:, None, :, None].to(dtype)) > 0
    place = torch.arange(size + reach, device=q.device) - torch.arange(size, device=q.device)[:, None]
    near = (place >= 0) & (place <= reach)
    # what no query of the sequence sees are the places after its end, whose rows are cut off
    scores = scores.masked_fill(~(seen & near), torch.finfo(dtype).min)
    before = (prefix_q.to(dtype) @ prefix_k.to(dtype).mT) * scale
    before = pad(before, (0, 0, 0, number * size - queries)).unflatten(2, (number, size))
    weights = torch.cat((before, scores), dim=-1).softmax(dim=-1)
    of_prefix, of_window = weights.split((prefix_k.shape[2], size + reach), dim=-1)
    mixed = of_window @ windows(v.to(dtype)).mT + of_prefix @ prefix_v.to(dtype)[:, :, None]
    return mixed.flatten(2, 3)[:, :, :queries].to(q.dtype)


def prefix_window_attention_reference(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch heads keys head_dim"],
    v: Float[Tensor, "batch heads keys value_dim"],
    prefix_q: Float[Tensor, "batch heads queries head_dim"],
    prefix_k: Float[Tensor, "#batch heads prefix head_dim"],
    prefix_v: Float[Tensor, "#batch heads prefix value_dim"],
    *,
    window_size: int,
    mask: Bool[Tensor, "batch keys"] | None = None,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """The whole map of scores. Quadratic; arguments as above."""
    visible = window_visible(q.shape[2], k.shape[2], window_size=window_size, causal=True, mask=mask, device=q.device)
    scores = (q @ k.mT).masked_fill(~visible, -torch.inf)
    weights = (torch.cat((prefix_q @ prefix_k.mT, scores), dim=-1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    prefix = prefix_k.shape[2]
    return weights[..., :prefix] @ prefix_v + weights[..., prefix:] @ v


def prefix_window_attention_macs(*, queries: int, head_dim: int, window_size: int, prefix: int) -> int:
    """Contraction MACs of `prefix_window_attention` for one row and one head, with as many keys as queries."""
    size = min(queries, max(BLOCK, window_size))
    places = -(-queries // size) * size
    return head_dim * (2 * places * (size + window_size - 1) + (queries + places) * prefix)
