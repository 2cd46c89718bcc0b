"""Online spherical k-means: assigning tokens to centroids, moving the centroids after them, and the commitment loss.

Paper: "Efficient Content-Based Sparse Attention with Routing Transformers", Roy et al., TACL 2021,
https://arxiv.org/abs/2003.05997, section 4.1: mu <- lambda mu + (1 - lambda) / 2 (sum of its queries + of its keys).
Compared with lucidrains/routing-transformer@3f6c461a, `routing_transformer.py:Kmeans` (`directions`), and read beside
google-research/google-research@0c1bbe5f, `routing_transformer/utils.py:online_kmeans` (`smoothed_means`).
Different from the paper's formula: sums that are not divided by anything would grow with the number of tokens, so the
authors' code keeps moving averages of counts and of sums, and divides; so does `smoothed_means`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from regard.ops.kmeans_routing import similarities
from regard.ops.precision import without_autocast

Items = Float[Tensor, "batch heads tokens head_dim"]
Means = Float[Tensor, "heads clusters head_dim"]
Counts = Float[Tensor, "heads clusters"]
Mask = Bool[Tensor, "batch tokens"]

SMOOTHING = 1e-5


def assign(items: Items, means: Means) -> Int[Tensor, "batch heads tokens"]:
    """The centroid with the largest product, for every token."""
    return similarities(items, means).argmax(dim=2)


@torch.no_grad()
@without_autocast
def cluster_sums(items: Items, means: Means, mask: Mask | None = None) -> tuple[Counts, Means]:
    """Number and sum of the real tokens of the whole batch that are nearest to each centroid."""
    heads, clusters, width = means.shape
    rows = assign(items, means) + clusters * torch.arange(heads, device=items.device)[:, None]
    real = items.new_ones(rows.shape) if mask is None else mask[:, None].expand(rows.shape).to(items.dtype)
    counts = items.new_zeros(heads * clusters).index_add(0, rows.flatten(), real.flatten())
    sums = items.new_zeros(heads * clusters, width).index_add(
        0, rows.flatten(), (items * real[..., None]).reshape(-1, width)
    )
    return counts.view(heads, clusters), sums.view(heads, clusters, width)


def directions(means: Means, counts: Counts, sums: Means) -> Means:
    """The direction of every cluster's tokens; a cluster without any keeps its centroid."""
    return torch.where(counts[..., None] > 0, normalize(sums, dim=-1), means.to(sums.dtype))


def smoothed_means(counts: Counts, sums: Means) -> Means:
    """Averages of sums over averages of counts, which are kept away from 0 without changing their total."""
    total = counts.sum(dim=-1, keepdim=True)
    smoothed = (counts + SMOOTHING) / (total + counts.shape[-1] * SMOOTHING) * total
    return sums / smoothed[..., None]


@torch.no_grad()
def kmeans(items: Items, num_clusters: int, *, iterations: int, mask: Mask | None = None) -> Means:
    """Spherical k-means from random real tokens of the batch, the same ones for all heads.

    Args:
        items: on the sphere.
        num_clusters: number of centroids.
        iterations: rounds of assigning and moving.
        mask: True = real token.

    Raises:
        ValueError: no real token.
    """
    flat = items.transpose(0, 1).flatten(1, 2)
    real = torch.arange(flat.shape[1], device=items.device) if mask is None else mask.flatten().nonzero()[:, 0]
    if len(real) == 0:
        raise ValueError("k-means needs at least 1 real token, got 0")
    if len(real) >= num_clusters:
        picked = real[torch.randperm(len(real), device=items.device)[:num_clusters]]
    else:
        picked = real[torch.randint(len(real), (num_clusters,), device=items.device)]
    means = flat[:, picked]
    for _ in range(iterations):
        means = directions(means, *cluster_sums(items, means, mask))
    return means


@without_autocast
def commitment_loss(items: Items, means: Means, mask: Mask | None = None) -> Float[Tensor, ""]:
    """The mean squared distance of an element from its token's nearest centroid; no gradient reaches the centroids."""
    means = means.detach().to(items.dtype)
    nearest = assign(items, means)
    own = means[torch.arange(means.shape[0], device=items.device)[:, None], nearest]
    errors = (items - own).square().mean(dim=-1)
    if mask is None:
        return errors.mean()
    real = mask[:, None].expand(errors.shape)
    return torch.where(real, errors, 0).sum() / real.sum().clamp(min=1)
