"""The state of attention with redistribution while decoding: the cache, and which of its tokens are sinks."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from regard.contract import State, state, static
from regard.layers.kv_cache import KVCache, empty_cache


@state
class VARState(State):
    """All keys and values, and the sinks that were found when the prompt came in."""

    cache: KVCache
    sinks: Bool[Tensor, "batch capacity"]
    """By slot of the cache; False where there is no token yet."""
    searched: int = static()
    """Slots beyond which no sink was sought: where the prompt ends."""

    def append(
        self,
        keys: Float[Tensor, "batch kv_heads tokens head_dim"],
        values: Float[Tensor, "batch kv_heads tokens value_dim"],
        sinks: Bool[Tensor, "batch tokens"] | None,
        mask: Bool[Tensor, "batch tokens"] | None,
    ) -> VARState:
        """The state with new tokens.

        Args:
            keys: theirs.
            values: theirs.
            sinks: which of them are sinks; None = they were not looked at.
            mask: True on the prefix of each row that is real.

        Raises:
            ValueError: more tokens than `max_len` has room for.
        """
        cache = self.cache.append(keys, values, mask)
        missing = cache.keys.shape[2] - self.sinks.shape[1]
        known = pad(self.sinks, (0, missing)) if missing else self.sinks
        searched = self.searched
        if sinks is not None:
            slots = self.position[:, None] + torch.arange(sinks.shape[1], device=sinks.device)
            real = sinks if mask is None else sinks & mask
            known = known.scatter(1, slots, real) if torch.is_grad_enabled() else known.scatter_(1, slots, real)
            # what counts padding is an upper bound
            searched = cache.filled
        return replace(self, position=cache.position, cache=cache, sinks=known, searched=searched)

    def read_sinks(self) -> Bool[Tensor, "batch searched"]:
        """For the first of the keys that the cache's `read` gives; all later ones are no sinks."""
        return self.sinks[:, : min(self.searched, self.cache.filled)]


def empty_var_state(batch: int, *, num_kv_heads: int, head_dim: int, max_len: int | None, like: Tensor) -> VARState:
    """A state without tokens; arguments and errors as for `empty_cache`."""
    cache = empty_cache(
        batch, num_kv_heads=num_kv_heads, head_dim=head_dim, value_dim=head_dim, max_len=max_len, like=like
    )
    sinks = torch.zeros(batch, cache.keys.shape[2], dtype=torch.bool, device=like.device)
    return VARState(position=cache.position.clone(), cache=cache, sinks=sinks, searched=0)
