"""Routing attention: the tokens nearest to each centroid attend to each other, and a token averages over its clusters.

Every centroid takes its `window_size` most similar tokens (not every token its nearest centroid), so that all clusters
are of one size: a token may be in several, and one that is in none gets 0. The choice has no gradient.
Paper: "Efficient Content-Based Sparse Attention with Routing Transformers", Roy et al., TACL 2021,
https://arxiv.org/abs/2003.05997, section 4.1 and algorithm 1.
Compared with lucidrains/routing-transformer@3f6c461a, `routing_transformer.py:KmeansAttention` (`mode="compat"`), and
read beside google-research/google-research@0c1bbe5f, `routing_transformer/utils.py` (`mode="paper"`).
Different from both: padding takes no place in a cluster; members are in the order of time; where a causal query sees no
key of a cluster, that cluster does not count. Different from the authors' code: scores are divided by sqrt(d), and the
mean over clusters is exact (there, 0.01 is added to the number of clusters).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from regard.ops.heads import repeat_heads
from regard.ops.precision import compute_dtype, without_autocast
from regard.ops.routing_form import OWN_KEY, RoutingForm
from regard.ops.softmax_attention import softmax_attention, softmax_weights

TIE = 1e-13
"""Lead of a token before the next one: far below the rounding of similarities, it decides between equal ones."""

Queries = Float[Tensor, "batch heads queries head_dim"]
Keys = Float[Tensor, "batch kv_heads keys head_dim"]
Values = Float[Tensor, "batch kv_heads keys value_dim"]
Centroids = Float[Tensor, "heads clusters head_dim"]
Similarities = Float[Tensor, "batch heads clusters tokens"]
Chosen = Int[Tensor, "batch heads clusters members"]
Mask = Bool[Tensor, "batch tokens"]
KeyMask = Bool[Tensor, "batch keys"]
Memory = tuple[Float[Tensor, "heads clusters slots head_dim"], Float[Tensor, "heads clusters slots value_dim"]]


@dataclass(frozen=True)
class Members:
    """The tokens of every cluster, in the order of time.

    Args:
        queries: places of the queries.
        keys: places of the keys; those of the queries where they are routed together.
    """

    queries: Int[Tensor, "batch heads clusters queries"]
    keys: Int[Tensor, "batch heads clusters keys"]


# --------------------------------------------------------------------------------------------------- choosing


@torch.no_grad()
@without_autocast
def similarities(
    items: Float[Tensor, "batch heads tokens head_dim"], centroids: Centroids, mask: Mask | None = None
) -> Similarities:
    """The product of every centroid and every token, minus infinity at padding; without gradient."""
    products = torch.einsum("hcd,bhnd->bhcn", centroids.to(items.dtype), items)
    return products if mask is None else products.masked_fill(~mask[:, None, None], -torch.inf)


def nearest_tokens(similarity: Similarities, window_size: int) -> Chosen:
    """The `window_size` most similar tokens of every centroid, the most similar first; of equal ones the earlier."""
    places = torch.arange(similarity.shape[-1], device=similarity.device)
    ordered = similarity.double() - TIE * places
    return ordered.topk(min(window_size, similarity.shape[-1]), dim=-1).indices


def find_members(
    q_items: Float[Tensor, "batch heads queries head_dim"],
    k_items: Float[Tensor, "batch heads keys head_dim"],
    centroids: Centroids,
    form: RoutingForm,
    *,
    query_mask: Bool[Tensor, "batch queries"] | None = None,
    key_mask: KeyMask | None = None,
) -> Members:
    """Fill the clusters.

    Args:
        q_items: queries as `RoutingForm.items` makes them.
        k_items: keys, the same; not read where they are routed as the queries.
        centroids: of every head.
        form: how.
        query_mask: True = real query.
        key_mask: True = real key.
    """
    chosen = nearest_tokens(similarities(q_items, centroids, query_mask), form.window_size)
    queries = chosen.sort(dim=-1).values
    if form.shared_qk:
        return Members(queries, queries)
    chosen = nearest_tokens(similarities(k_items, centroids, key_mask), form.window_size)
    return Members(queries, chosen.sort(dim=-1).values)


# --------------------------------------------------------------------------------------------------- attending


def _rows(chosen: Chosen, tokens: int) -> Int[Tensor, " rows"]:
    """Where the chosen tokens stand when those of all heads are below each other."""
    batch, heads = chosen.shape[:2]
    first = tokens * torch.arange(batch * heads, device=chosen.device)
    return (chosen + first.view(batch, heads, 1, 1)).flatten()


def gather_members(
    x: Float[Tensor, "batch heads tokens width"], chosen: Chosen
) -> Float[Tensor, "batch heads clusters members width"]:
    """The chosen tokens of every cluster."""
    flat = x.reshape(-1, x.shape[-1])
    return flat.index_select(0, _rows(chosen, x.shape[2])).view(*chosen.shape, x.shape[-1])


def scatter_mean(
    mixed: Float[Tensor, "batch heads clusters members width"],
    chosen: Chosen,
    tokens: int,
    *,
    epsilon: float,
    counted: Float[Tensor, "batch heads clusters members"] | None = None,
) -> Float[Tensor, "batch heads tokens width"]:
    """The mean of each token over its clusters; 0 for a token that is in none.

    Args:
        mixed: results inside the clusters.
        chosen: which tokens they belong to.
        tokens: number of tokens.
        epsilon: added to the number of clusters; 0 = an exact mean.
        counted: 1 where a result counts, 0 where not; None = all count.
    """
    batch, heads, width = *chosen.shape[:2], mixed.shape[-1]
    rows, dtype = _rows(chosen, tokens), compute_dtype(mixed)
    mixed = mixed.to(dtype)
    if counted is not None:
        mixed = mixed * counted[..., None]
    total = mixed.new_zeros(batch * heads * tokens, width).index_add(0, rows, mixed.reshape(-1, width))
    ones = mixed.new_ones(len(rows)) if counted is None else counted.flatten().to(dtype)
    count = ones.new_zeros(len(total)).index_add(0, rows, ones)
    share = count + epsilon if epsilon > 0 else count.clamp(min=1)
    return (total / share[:, None]).view(batch, heads, tokens, width)


def _inside(
    members: Members, form: RoutingForm, key_mask: KeyMask | None, slots: int, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """Which key each query sees, and what is added to its scores; memory slots first. Heads and clusters are one axis.

    Padding stands behind every real token, so that causality hides it.
    """
    wide, device = members.queries.shape[-1], members.queries.device
    visible: Tensor | None = None
    if form.causal and form.shared_qk:
        visible = torch.ones(wide, wide, dtype=torch.bool, device=device).tril()[None, None]
    elif form.causal:
        visible = (members.queries[..., :, None] >= members.keys[..., None, :]).flatten(1, 2)
    elif key_mask is not None:
        everywhere = key_mask[:, None, None].expand(*members.keys.shape[:3], -1)
        visible = everywhere.gather(-1, members.keys)[..., None, :].flatten(1, 2)
    bias = OWN_KEY * torch.eye(wide, dtype=dtype, device=device)[None, None] if form.avoids_own_key else None
    if slots:
        visible = None if visible is None else pad(visible, (slots, 0), value=True)
        bias = None if bias is None else pad(bias, (slots, 0))
    return visible, bias


def _counted(visible: Tensor | None, members: Members, form: RoutingForm, slots: int) -> Tensor | None:
    """1 where a query sees any key of its cluster; None where all do."""
    if visible is None or slots or (form.causal and form.shared_qk):
        return None
    rows = visible.any(dim=-1).unflatten(1, members.queries.shape[1:3])
    return rows.expand(members.queries.shape).to(torch.float32)


def _with_memory(x: Tensor, memory: Tensor | None) -> Tensor:
    """Keys or values of all clusters of all heads, learned slots in front of each cluster's own."""
    if memory is not None:
        slots = memory.to(x.dtype)[None].expand(x.shape[0], -1, -1, -1, -1)
        x = torch.cat((slots, x), dim=3)
    return x.flatten(1, 2)


@without_autocast
def attend_in_clusters(
    q: Queries,
    k: Keys,
    v: Values,
    members: Members,
    form: RoutingForm,
    *,
    key_mask: KeyMask | None = None,
    memory: Memory | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Softmax attention inside every cluster, and the mean over the clusters of a token.

    Args:
        q: queries.
        k: keys; their heads may be fewer than the queries' (grouped-query attention).
        v: values.
        members: the clusters' tokens.
        form: what is seen; as it was given to `find_members`.
        key_mask: True = real key; padding stands behind all real keys of its row.
        memory: keys and values that every query of a cluster sees.
        dropout: probability of dropping a weight.
    """
    k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    slots = 0 if memory is None else memory[0].shape[2]
    own = gather_members(q, members.queries).flatten(1, 2)
    keys = _with_memory(gather_members(k, members.keys), None if memory is None else memory[0])
    values = _with_memory(gather_members(v, members.keys), None if memory is None else memory[1])
    if form.causal and form.shared_qk and not form.avoids_own_key and not slots:
        # members are in the order of time, so that the kernel's own causality is that of the tokens
        mixed = softmax_attention(own, keys, values, causal=True, dropout=dropout)
        counted = None
    else:
        visible, bias = _inside(members, form, key_mask, slots, own.dtype)
        mixed = softmax_attention(own, keys, values, visible=visible, bias=bias, dropout=dropout)
        counted = _counted(visible, members, form, slots)
    mixed = mixed.unflatten(1, members.queries.shape[1:3])
    return scatter_mean(mixed, members.queries, q.shape[2], epsilon=form.epsilon, counted=counted).to(v.dtype)


@without_autocast
def routed_weights(
    q: Queries, k: Keys, members: Members, form: RoutingForm, *, key_mask: KeyMask | None = None
) -> Float[Tensor, "batch heads queries keys"]:
    """The whole map of weights, whose product with the values is `attend_in_clusters`; no memory slots. Quadratic.

    Arguments as there.
    """
    k = repeat_heads(k, q.shape[1])
    visible, bias = _inside(members, form, key_mask, 0, compute_dtype(q))
    own, keys = gather_members(q, members.queries), gather_members(k, members.keys)
    weights = softmax_weights(own.flatten(1, 2), keys.flatten(1, 2), visible=visible, bias=bias)
    weights = weights.unflatten(1, members.queries.shape[1:3])
    counted = _counted(visible, members, form, 0)
    if counted is not None:
        weights = weights * counted[..., None]
    rows = scatter_mean(
        _spread(weights, members.keys, k.shape[2]), members.queries, q.shape[2], epsilon=form.epsilon, counted=counted
    )
    return rows.to(weights.dtype)


def _spread(weights: Tensor, keys: Chosen, tokens: int) -> Float[Tensor, "batch heads clusters members tokens"]:
    """Weights over the keys of a cluster as weights over all keys."""
    index = keys[..., None, :].expand(weights.shape)
    return weights.new_zeros(*weights.shape[:-1], tokens).scatter(-1, index, weights)


def routing_attention(
    q: Queries,
    k: Keys,
    v: Values,
    centroids: Centroids,
    form: RoutingForm,
    *,
    query_mask: Bool[Tensor, "batch queries"] | None = None,
    key_mask: KeyMask | None = None,
    memory: Memory | None = None,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Normalise, fill the clusters, attend inside them, average.

    Args:
        q: queries; what is routed is what is given, rotated or not.
        k: keys; their heads may be fewer than the queries'.
        v: values.
        centroids: of every query head.
        form: how.
        query_mask: True = real query, at the front of its row.
        key_mask: the same of keys; in self-attention both masks are one.
        memory: learned keys and values of every cluster.
    """
    q_items, k_items = form.items(q), repeat_heads(form.items(k), q.shape[1])
    members = find_members(q_items, k_items, centroids, form, query_mask=query_mask, key_mask=key_mask)
    q, k = compared(q, k, q_items, k_items, form)
    return attend_in_clusters(q, k, v, members, form, key_mask=key_mask, memory=memory)


def compared(
    q: Queries, k: Keys, q_items: Tensor, k_items: Tensor, form: RoutingForm
) -> tuple[Float[Tensor, "batch heads queries head_dim"], Float[Tensor, "batch heads keys head_dim"]]:
    """The queries and keys whose product is the score, in the type of the former."""
    if form.mode == "paper":
        return q_items.to(q.dtype), k_items.to(k.dtype)
    return q, k_items.to(k.dtype) if form.shared_qk else k


def routing_macs(
    form: RoutingForm, *, clusters: int, tokens: int, keys: int, head_dim: int, value_dim: int, slots: int = 0
) -> int:
    """Contraction MACs of `routing_attention` for one row and one head.

    Args:
        form: how.
        clusters: C.
        tokens: number of queries.
        keys: number of keys.
        head_dim: width of queries and keys.
        value_dim: width of values.
        slots: memory slots in a cluster.
    """
    routed = tokens if form.shared_qk else tokens + keys
    wide, tall = min(form.window_size, keys) + slots, min(form.window_size, tokens)
    return routed * clusters * head_dim + clusters * tall * wide * (head_dim + value_dim)
