"""Bi-level routing: regions choose regions, then every position attends to all positions of the chosen ones.

Queries, keys and values are given region by region, `(batch, regions, positions, width)`; keys and values are joined
on the last axis, so that what is chosen is moved once.
Paper: "BiFormer: Vision Transformer with Bi-Level Routing Attention", Zhu et al., CVPR 2023,
https://arxiv.org/abs/2303.08810, section 3.2.
Compared with rayleizhu/BiFormer@1697bbbe, `ops/bra_legacy.py:TopkRouting` and `KVGather`. Of equal affinities the
region that comes first is chosen, whatever the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from regard.ops.precision import compute_dtype, without_autocast

Queries = Float[Tensor, "batch regions queries width"]
KeysValues = Float[Tensor, "batch regions keys both"]
Descriptors = Float[Tensor, "batch regions width"]
Index = Int[Tensor, "batch regions topk"]
Weights = Float[Tensor, "batch regions topk"]

SLICE_BYTES = 1 << 22
"""Chosen keys and values that are in memory at once on a CPU, about. Smaller slices were measured to be slower, a
single one to be hardly faster: 5 % at 112 x 112 positions and k = 4."""
DENSE_PRODUCTS = 1 << 20
"""Pairs of a query and a key up to which a mask over all of them is worth its memory."""


@dataclass(frozen=True)
class Routing:
    """Which regions a region attends to, best first, and the softmax of their affinities."""

    weights: Weights
    index: Index


@without_autocast
def route(q: Descriptors, k: Descriptors, *, topk: int, scale: float) -> Routing:
    """The `topk` regions of the largest affinity scale * q_r k_r^T for every region, in at least float32."""
    dtype = compute_dtype(q)
    affinity = (q.to(dtype) * scale) @ k.to(dtype).transpose(1, 2)
    # a stable sort, for topk leaves the order of equal numbers open
    kept, index = affinity.sort(dim=-1, descending=True, stable=True)
    return Routing(kept[..., :topk].softmax(dim=-1), index[..., :topk])


def gather_regions(
    kv: KeysValues, index: Index, weights: Weights | None = None
) -> Float[Tensor, "batch regions chosen both"]:
    """The chosen regions of every region, one after the other, times their weights."""
    batch = torch.arange(len(kv), device=kv.device)[:, None, None]
    chosen = kv[batch, index]
    if weights is not None:
        chosen = chosen * weights[..., None, None].to(chosen.dtype)
    return chosen.flatten(2, 3)


@without_autocast
def routed_weights(
    q: Queries, kv: KeysValues, index: Index, *, num_heads: int, scale: float, weights: Weights | None = None
) -> Float[Tensor, "batch regions heads queries chosen"]:
    """softmax(scale * q k_g^T) per head, over the keys of the chosen regions, in at least float32."""
    dtype = compute_dtype(q)
    k = gather_regions(kv, index, weights)[..., : q.shape[-1]]
    by_head = (x.to(dtype).unflatten(-1, (num_heads, -1)) for x in (q, k))
    return (torch.einsum("brihd,brjhd->brhij", *by_head) * scale).softmax(dim=-1)


def routed_attention_reference(
    q: Queries, kv: KeysValues, index: Index, *, num_heads: int, scale: float, weights: Weights | None = None
) -> Float[Tensor, "batch regions queries value_width"]:
    """The equation as written: gather, weigh, sum.

    Args:
        q: queries.
        kv: keys, as wide as the queries, and values.
        index: the chosen regions.
        num_heads: number of heads; divides the widths of keys and of values.
        scale: factor on the scores.
        weights: factors on the keys and values of each chosen region; None = 1.
    """
    shares = routed_weights(q, kv, index, num_heads=num_heads, scale=scale, weights=weights)
    v = gather_regions(kv, index, weights)[..., q.shape[-1] :].unflatten(-1, (num_heads, -1))
    return torch.einsum("brhij,brjhe->brihe", shares, v.to(shares.dtype)).flatten(-2).to(q.dtype)


@without_autocast
def routed_attention(
    q: Queries,
    kv: KeysValues,
    index: Index | None,
    *,
    num_heads: int,
    scale: float,
    weights: Weights | None = None,
) -> Float[Tensor, "batch regions queries value_width"]:
    """`routed_attention_reference` without its copies; an `index` of None stands for all regions.

    Regions are moved as whole blocks of memory and only a slice of them at a time, heads are strides, and scores are
    never written. Where `is_dense`, nothing is moved: a mask hides what is not chosen.
    """
    if index is None:
        return _attend(q.flatten(1, 2), kv.flatten(1, 2), num_heads, scale).unflatten(1, q.shape[1:3])
    batch, regions, topk = index.shape
    if weights is None and is_dense(regions, topk, queries=q.shape[2], keys=kv.shape[2]):
        mask = _mask_of(index, q, kv)
        return _attend(q.flatten(1, 2), kv.flatten(1, 2), num_heads, scale, mask).unflatten(1, q.shape[1:3])
    first = regions * torch.arange(batch, device=index.device)
    rows = (index + first[:, None, None]).flatten()
    queries, blocks = q.flatten(0, 1), kv.flatten(0, 1)
    at_once = _regions_at_once(kv, topk)
    parts = []
    for start in range(0, batch * regions, at_once):
        own = queries[start : start + at_once]
        chosen = blocks.index_select(0, rows[start * topk : (start + at_once) * topk])
        if weights is not None:
            factors = weights.flatten()[start * topk : (start + at_once) * topk]
            chosen = chosen * factors[:, None, None].to(chosen.dtype)
        parts.append(_attend(own, chosen.view(len(own), -1, chosen.shape[-1]), num_heads, scale))
    mixed = parts[0] if len(parts) == 1 else torch.cat(parts)
    return mixed.unflatten(0, (batch, regions))


def is_dense(regions: int, topk: int, *, queries: int, keys: int) -> bool:
    """Whether full attention under a mask is the faster form: at least half of the regions chosen, of a small map.

    Args:
        regions: number of regions.
        topk: how many of them are chosen.
        queries: number of queries in a region.
        keys: number of keys in a region.
    """
    return 2 * topk >= regions and regions * queries * regions * keys <= DENSE_PRODUCTS


def _mask_of(index: Tensor, q: Tensor, kv: Tensor) -> Tensor:
    """What is added to the scores of all pairs: 0 for keys of chosen regions, else minus infinity."""
    batch, regions, _ = index.shape
    by_region = q.new_full((batch, regions, regions), -torch.inf).scatter(2, index, 0.0)
    pairs = by_region[:, None, :, None, :, None].expand(-1, 1, -1, q.shape[2], -1, kv.shape[2])
    return pairs.flatten(4, 5).flatten(2, 3)


def _regions_at_once(kv: Tensor, topk: int) -> int:
    batch, regions, keys, both = kv.shape
    if kv.device.type != "cpu":
        return batch * regions
    return max(1, SLICE_BYTES // (topk * keys * both * kv.element_size()))


def _attend(q: Tensor, kv: Tensor, num_heads: int, scale: float, mask: Tensor | None = None) -> Tensor:
    """Fused attention of `(batch, queries, width)` to `(batch, keys, both)`; heads are never copied out."""
    k, v = kv.split((q.shape[-1], kv.shape[-1] - q.shape[-1]), dim=-1)
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2).flatten(2)
