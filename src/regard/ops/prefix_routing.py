"""Routing attention whose clusters hold, for every query, the tokens that are nearest among those so far.

At token t a cluster holds the `window_size` most similar of the tokens 0..t; of equal ones the earlier stays. Token t
attends in the clusters that hold it, to what they hold at that time. So nothing depends on later tokens, unlike in
`regard.ops.kmeans_routing`, where all tokens of the sequence compete for a cluster; and tokens can be taken in chunks
of any size, each from the members that the one before has left.
The price is time: who holds a place changes from token to token, so each chunk of queries meets the members of every
cluster, C * (w + chunk) keys per token. Memory is linear. The paper (https://arxiv.org/abs/2003.05997) has no such
form; the authors' decoder also chooses among the tokens so far, and computes all of them anew for each token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from regard.ops.kmeans_routing import Memory, Queries
from regard.ops.precision import compute_dtype, without_autocast
from regard.ops.routing_form import OWN_KEY, RoutingForm
from regard.ops.softmax_attention import softmax_attention, softmax_weights

SMALLEST_CHUNK, LARGEST_CHUNK = 16, 128

NewSimilarities = Float[Tensor, "batch heads clusters queries"]


@dataclass(frozen=True)
class PrefixMembers:
    """What the clusters hold after some tokens, the most similar first; a free place has similarity minus infinity.

    Args:
        places: positions of the keys.
        keys: their similarities.
        queries: similarities of the queries that are held; those of the keys where both are routed together.
    """

    places: Int[Tensor, "batch heads clusters members"]
    keys: Float[Tensor, "batch heads clusters members"]
    queries: Float[Tensor, "batch heads clusters members"]


def no_members(batch: int, centroids: Float[Tensor, "heads clusters head_dim"], places: int) -> PrefixMembers:
    """Clusters that hold nothing, with `places` free places."""
    shape = (batch, *centroids.shape[:2], places)
    free = torch.full(shape, -torch.inf, dtype=compute_dtype(centroids), device=centroids.device)
    return PrefixMembers(torch.zeros(shape, dtype=torch.int64, device=centroids.device), free, free.clone())


@dataclass(frozen=True)
class _Chunk:
    """Some queries, the keys that they may meet, and which of them they see."""

    rows: slice
    places: Int[Tensor, "batch heads clusters columns"]
    visible: Bool[Tensor, "batch heads clusters rows columns"]
    own: Bool[Tensor, "batch heads clusters rows columns"]
    held: Bool[Tensor, "batch heads clusters rows"]


class PrefixRouter:
    """Takes tokens in order and keeps account of what the clusters hold.

    Args:
        members: what they hold before the first token.
        form: how tokens are routed; causal.

    Raises:
        ValueError: a form that is not causal.
    """

    def __init__(self, members: PrefixMembers, form: RoutingForm) -> None:
        if not form.causal:
            raise ValueError("choosing among the tokens so far needs causal=True")
        self.members, self._form = members, form

    def chunks(
        self,
        queries: NewSimilarities,
        keys: NewSimilarities,
        first: Int[Tensor, " batch"],
        *,
        places: int | None = None,
    ) -> Iterator[_Chunk]:
        """The chunks of new tokens in order, after each of which `members` holds what is left.

        Args:
            queries: similarities of the new queries; minus infinity at padding, which stands at the end.
            keys: the same of the keys; not read where they are routed as the queries.
            first: position of the first new token.
            places: places that `members` keeps; None = as many as there are tokens for.
        """
        tokens = queries.shape[-1]
        size = chunk_size(self._form)
        for start in range(0, tokens, size):
            rows = slice(start, min(start + size, tokens))
            yield self._take(queries[..., rows], keys[..., rows], first + start, rows, places)

    def _take(self, queries: Tensor, keys: Tensor, first: Tensor, rows: slice, places: int | None) -> _Chunk:
        old, window = self.members, self._form.window_size
        keys = queries if self._form.shared_qk else keys
        order, scores, own, chosen = _compete(old.keys, keys, window)
        new = first[:, None, None, None] + torch.arange(rows.stop - rows.start, device=keys.device)
        columns = torch.cat((old.places, new.expand_as(keys)), dim=-1).gather(-1, order)
        if self._form.shared_qk:
            left, held = scores, (own & chosen).any(dim=-1)
        else:
            _, left, own_query, chosen_queries = _compete(old.queries, queries, window)
            held = (own_query & chosen_queries).any(dim=-1)
        kept = min(window, scores.shape[-1]) if places is None else places
        self.members = PrefixMembers(
            *(_first(x, kept, empty) for x, empty in ((columns, 0), (scores, -torch.inf), (left, -torch.inf)))
        )
        return _Chunk(rows, columns, chosen, own, held)


def _first(x: Tensor, count: int, empty: float) -> Tensor:
    """The first `count` columns, filled up where there are fewer."""
    return x[..., :count] if x.shape[-1] >= count else pad(x, (0, count - x.shape[-1]), value=empty)


def _compete(old: Tensor, new: Tensor, window: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Old members and new tokens by similarity: their order, the similarities, and for every new token in time which
    column is its own and which columns hold a place.
    """
    scores = torch.cat((old, new), dim=-1)
    # stable: of equal ones the earlier comes first, whatever the chunks
    scores, order = scores.sort(dim=-1, descending=True, stable=True)
    arrival = (order - old.shape[-1])[..., None, :]
    now = torch.arange(new.shape[-1], device=new.device)[:, None]
    there = (arrival <= now) & (scores > -torch.inf)[..., None, :]
    chosen = there & (there.cumsum(dim=-1, dtype=torch.int32) <= window)
    return order, scores, arrival == now, chosen


def chunk_size(form: RoutingForm) -> int:
    """Queries that are taken at once."""
    return max(SMALLEST_CHUNK, min(form.window_size, LARGEST_CHUNK))


def _gathered(x: Tensor, places: Tensor, memory: Tensor | None) -> Float[Tensor, "batch lists columns width"]:
    """Keys or values of every cluster of every head, learned slots first."""
    batch, heads, tokens, width = x.shape
    first = tokens * torch.arange(batch * heads, device=x.device).view(batch, heads, 1, 1)
    found = x.reshape(-1, width).index_select(0, (places + first).flatten()).view(*places.shape, width)
    if memory is not None:
        found = torch.cat((memory.to(x.dtype)[None].expand(batch, -1, -1, -1, -1), found), dim=3)
    return found.flatten(1, 2)


def _scored(chunk: _Chunk, form: RoutingForm, slots: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor]:
    """Which keys are visible and what is added to scores, slots included; and 1 where a cluster counts for a query."""
    visible = pad(chunk.visible, (slots, 0), value=True)
    own = pad(chunk.own, (slots, 0)).to(dtype) * OWN_KEY if form.avoids_own_key else None
    counts = (chunk.held & visible.any(dim=-1)).to(torch.float32)
    return visible.flatten(1, 2), None if own is None else own.flatten(1, 2), counts


def _mean(mixed: Tensor, counts: Tensor, form: RoutingForm) -> Tensor:
    """Over the clusters that count for a query."""
    total = (mixed.to(compute_dtype(mixed)) * counts[..., None]).sum(dim=2)
    number = counts.sum(dim=2)[..., None]
    return total / (number + form.epsilon if form.epsilon > 0 else number.clamp(min=1))


@without_autocast
def prefix_routed_attention(
    q: Queries,
    keys: Float[Tensor, "batch heads tokens head_dim"],
    values: Float[Tensor, "batch heads tokens value_dim"],
    query_scores: NewSimilarities,
    key_scores: NewSimilarities,
    router: PrefixRouter,
    form: RoutingForm,
    *,
    first: Int[Tensor, " batch"],
    places: int | None = None,
    memory: Memory | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Attention of new tokens in the clusters that hold them; `router` goes on to what the clusters hold after them.

    Args:
        q: queries of the new tokens.
        keys: of all tokens so far, the new ones included, by position.
        values: the same of the values.
        query_scores: similarities of the new queries, minus infinity at padding.
        key_scores: similarities of the new keys; not read where they are routed as the queries.
        router: what the clusters hold before.
        form: how tokens are routed; causal.
        first: position of the first new token of every row.
        places: places that the router keeps; None = as many as there are tokens for.
        memory: keys and values that every query of a cluster sees.
        dropout: probability of dropping a weight.
    """
    clusters, parts = query_scores.shape[2], []
    slots, (memory_keys, memory_values) = 0 if memory is None else memory[0].shape[2], memory or (None, None)
    for chunk in router.chunks(query_scores, key_scores, first, places=places):
        visible, bias, counts = _scored(chunk, form, slots, q.dtype)
        mixed = softmax_attention(
            q[:, :, chunk.rows].repeat_interleave(clusters, dim=1),
            _gathered(keys, chunk.places, memory_keys),
            _gathered(values, chunk.places, memory_values),
            visible=visible,
            bias=bias,
            dropout=dropout,
        )
        parts.append(_mean(mixed.unflatten(1, (-1, clusters)), counts, form).to(values.dtype))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


@without_autocast
def prefix_routed_weights(
    q: Queries,
    keys: Float[Tensor, "batch heads tokens head_dim"],
    query_scores: NewSimilarities,
    key_scores: NewSimilarities,
    router: PrefixRouter,
    form: RoutingForm,
) -> Float[Tensor, "batch heads queries tokens"]:
    """The whole map of weights of a sequence from its first token on, without memory slots. Quadratic."""
    clusters, parts = query_scores.shape[2], []
    first = torch.zeros(q.shape[0], dtype=torch.int64, device=q.device)
    for chunk in router.chunks(query_scores, key_scores, first):
        visible, bias, counts = _scored(chunk, form, 0, compute_dtype(q))
        own = q[:, :, chunk.rows].repeat_interleave(clusters, dim=1)
        weights = softmax_weights(own, _gathered(keys, chunk.places, None), visible=visible, bias=bias)
        weights = weights.unflatten(1, (-1, clusters))
        index = chunk.places[..., None, :].expand(weights.shape)
        # a free place may have the position of a key that is there as well
        spread = weights.new_zeros(*weights.shape[:-1], keys.shape[2]).scatter_add(-1, index, weights)
        parts.append(_mean(spread, counts, form))
    return torch.cat(parts, dim=2)


def prefix_routing_macs(
    form: RoutingForm, *, clusters: int, tokens: int, head_dim: int, value_dim: int, slots: int = 0
) -> int:
    """Contraction MACs of one row and one head from the first token on; arguments as for `routing_macs`."""
    size, pairs, held = chunk_size(form), 0, 0
    for start in range(0, tokens, size):
        rows = min(size, tokens - start)
        pairs += rows * (held + rows + slots)
        held = min(form.window_size, held + rows)
    routed = tokens if form.shared_qk else 2 * tokens
    return clusters * (routed * head_dim + pairs * (head_dim + value_dim))
