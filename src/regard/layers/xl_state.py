"""The state of Transformer-XL-like attention while decoding: keys and values, and what convolutions still need."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regard.contract import State, state
from regard.layers.kv_cache import KVCache, empty_cache

Past = Float[Tensor, "batch past heads head_dim"]


class Projected(NamedTuple):
    """Queries, keys and values, `(batch, tokens, heads, head_dim)`, before their convolutions."""

    q: Tensor
    k: Tensor
    v: Tensor


@state
class XLState(State):
    """A cache of keys and values, behind their convolutions, and the last projected tokens before these."""

    cache: KVCache
    past_queries: Float[Tensor, "batch past_queries heads head_dim"]
    """Without tokens where queries begin anew at every call."""
    past_keys: Past
    past_values: Past

    @property
    def past(self) -> Projected:
        """The last projected tokens."""
        return Projected(self.past_queries, self.past_keys, self.past_values)

    def appended(
        self,
        keys: Float[Tensor, "batch heads tokens head_dim"],
        values: Float[Tensor, "batch heads tokens head_dim"],
        mask: Bool[Tensor, "batch tokens"] | None,
        projected: Projected,
    ) -> XLState:
        """The state with new tokens.

        Args:
            keys: behind their convolution.
            values: behind theirs.
            mask: True on the prefix of each row that is real.
            projected: the tokens before their convolutions.
        """
        cache = self.cache.append(keys, values, mask)
        past = [later_past(each, new, mask) for each, new in zip(self.past, projected, strict=True)]
        return replace(
            self,
            position=cache.position,
            cache=cache,
            past_queries=past[0],
            past_keys=past[1],
            past_values=past[2],
        )


def later_past(
    past: Past, new: Float[Tensor, "batch tokens heads head_dim"], mask: Bool[Tensor, "batch tokens"] | None
) -> Past:
    """The last real tokens, as many as `past` holds, when `new` ones follow those in it."""
    kept = past.shape[1]
    if kept == 0:
        return past
    everything = torch.cat((past, new.to(past.dtype)), dim=1)
    if mask is None:
        return everything[:, -kept:]
    places = mask.sum(dim=1)[:, None] + torch.arange(kept, device=new.device)
    return everything.gather(1, places[..., None, None].expand(-1, -1, *new.shape[2:]))


def empty_xl_state(
    batch: int,
    *,
    num_heads: int,
    head_dim: int,
    past: int,
    past_of_queries: int,
    max_len: int | None,
    like: Tensor,
) -> XLState:
    """A state without tokens, in the dtype and on the device of `like`.

    Args:
        batch: rows.
        num_heads: number of heads.
        head_dim: width of one.
        past: tokens that convolutions of keys and values look back.
        past_of_queries: the same of queries; 0 = they begin anew at every call.
        max_len: tokens to make room for, if known.
        like: a parameter.

    Raises:
        ValueError: `batch` or `max_len` is not positive.
    """
    cache = empty_cache(
        batch, num_kv_heads=num_heads, head_dim=head_dim, value_dim=head_dim, max_len=max_len, like=like
    )

    def zeros(tokens: int) -> Tensor:
        return like.new_zeros(batch, tokens, num_heads, head_dim)

    return XLState(
        position=cache.position.clone(),
        cache=cache,
        past_queries=zeros(past_of_queries),
        past_keys=zeros(past),
        past_values=zeros(past),
    )
