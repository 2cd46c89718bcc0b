"""The state of the Routing Transformer's attention while decoding: caches, and what every cluster holds so far."""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.contract import State, state
from regard.layers.block_local_heads import BlockLocalHeads
from regard.layers.kv_cache import KVCache, empty_cache
from regard.layers.routing_heads import Routed, RoutingHeads
from regard.layers.window_cache import WindowCache, empty_window_cache
from regard.ops.prefix_routing import PrefixMembers, PrefixRouter, no_members, prefix_routed_attention

Heads = Float[Tensor, "batch heads tokens head_dim"]
Mask = Bool[Tensor, "batch tokens"]


@state
class RoutingState(State):
    """Keys and values of the local heads' blocks, those of all tokens for routing heads, and the clusters' members."""

    local: WindowCache
    cache: KVCache
    member_places: Int[Tensor, "batch heads clusters members"]
    member_keys: Float[Tensor, "batch heads clusters members"]
    member_queries: Float[Tensor, "batch heads clusters members"]

    def route(
        self, heads: RoutingHeads, routed: Routed, mask: Mask | None
    ) -> tuple[Float[Tensor, "batch heads tokens head_dim"], RoutingState]:
        """New tokens in the clusters that hold them; the tokens are part of the state afterwards."""
        cache = self.cache.append(routed.k, routed.v, mask)
        members = PrefixMembers(self.member_places, self.member_keys, self.member_queries)
        router = PrefixRouter(members, heads.form)
        query_scores, key_scores = heads.scores(routed, mask)
        mixed = prefix_routed_attention(
            routed.q,
            cache.keys.to(routed.q.dtype),
            cache.values.to(routed.v.dtype),
            query_scores,
            key_scores,
            router,
            heads.form,
            first=self.position,
            places=self.member_places.shape[-1],
            memory=heads.memory,
        )
        after = router.members
        return mixed, replace(
            self,
            cache=cache,
            member_places=after.places,
            member_keys=after.keys,
            member_queries=after.queries,
        )


def empty_routing_state(
    batch: int,
    *,
    head_dim: int,
    local: BlockLocalHeads | None,
    routing: RoutingHeads | None,
    max_len: int | None,
    like: Tensor,
) -> RoutingState:
    """A state without tokens, the caches in the dtype and everything on the device of `like`.

    Args:
        batch: number of rows.
        head_dim: width of a head.
        local: the local heads; None = there are none.
        routing: the routing heads; None = there are none.
        max_len: tokens to make room for; None = grow by doubling.
        like: a parameter.

    Raises:
        ValueError: `batch` or `max_len` is not positive.
    """
    means = like.new_zeros(0, 1, head_dim) if routing is None else routing.centroids.means
    places = 1 if routing is None else routing.form.window_size
    cache = empty_cache(
        batch, num_kv_heads=len(means), head_dim=head_dim, value_dim=head_dim, max_len=max_len, like=like
    )
    members = no_members(batch, means, places)
    blocks = local.empty_cache(batch) if local is not None else _no_blocks(batch, head_dim, like)
    return RoutingState(
        position=cache.position.clone(),
        local=blocks,
        cache=cache,
        member_places=members.places,
        member_keys=members.keys,
        member_queries=members.queries,
    )


def _no_blocks(batch: int, head_dim: int, like: Tensor) -> WindowCache:
    return empty_window_cache(batch, num_kv_heads=0, head_dim=head_dim, value_dim=head_dim, window_size=1, like=like)
