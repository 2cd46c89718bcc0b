"""The state of SEA while decoding: a cache of keys and values, and what the estimate needs of earlier tokens."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from regard.contract import State, state
from regard.layers.estimated_attention import EstimatedAttention
from regard.layers.kv_cache import KVCache, empty_cache


@state
class SeaState(State):
    """Keys and values of all tokens, and what the estimate needs of them: sums, four rows of two maps, a value sum."""

    cache: KVCache
    sums: Float[Tensor, "batch heads features state_dim"]
    first_rows: Float[Tensor, "batch channels rows width"]
    second_rows: Float[Tensor, "batch channels rows width"]
    value_sum: Float[Tensor, "batch heads head_dim"]


def empty_sea_state(
    batch: int, *, attention: EstimatedAttention, num_kv_heads: int, max_len: int | None, like: Tensor
) -> SeaState:
    """A state without tokens, the cache in the dtype and everything on the device of `like`.

    Args:
        batch: number of rows.
        attention: whose state it is; causal.
        num_kv_heads: key/value heads that are cached.
        max_len: tokens to make room for; None = grow by doubling.
        like: a parameter.

    Raises:
        ValueError: `batch` or `max_len` is not positive.
    """
    width = attention.sizes.head_dim
    cache = empty_cache(batch, num_kv_heads=num_kv_heads, head_dim=width, value_dim=width, max_len=max_len, like=like)
    memory = attention.estimate.empty_memory(batch, like)
    return SeaState(
        position=cache.position.clone(),
        cache=cache,
        sums=memory.sums,
        first_rows=memory.first_rows,
        second_rows=memory.second_rows,
        value_sum=memory.sums.new_zeros(batch, attention.sizes.num_heads, width),
    )
