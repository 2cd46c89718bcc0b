"""The key-value cache of attention that looks back over all tokens: preallocated, one slot per real token.

Memory is allocated ahead and written in place, since concatenating at every token is more than twice as slow at
8,192 tokens. With gradients enabled, and only then, `append` concatenates instead of writing in place.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.contract import State, state, static

INITIAL_CAPACITY = 64


@state
class KVCache(State):
    """Keys and values of the real tokens so far; row b holds `position[b]` of them, at the front."""

    keys: Float[Tensor, "batch kv_heads capacity head_dim"]
    values: Float[Tensor, "batch kv_heads capacity value_dim"]
    filled: int = static()
    """Upper bound of `position`, known without looking at it: the slots that attention must read."""
    ragged: bool = static()
    """Whether rows may differ in length (a mask was given)."""
    max_len: int | None = static()

    def append(
        self,
        keys: Float[Tensor, "batch kv_heads tokens head_dim"],
        values: Float[Tensor, "batch kv_heads tokens value_dim"],
        mask: Bool[Tensor, "batch tokens"] | None,
    ) -> KVCache:
        """The cache with new tokens; `mask` is True on the prefix of each row that is real.

        Raises:
            ValueError: more tokens than `max_len` has room for.
        """
        roomy = self._with_room_for(keys.shape[2], mask)
        counts = keys.shape[2] if mask is None else mask.sum(dim=1)
        ragged = roomy.ragged or mask is not None
        if ragged:
            slots = roomy.position[:, None] + torch.arange(keys.shape[2], device=keys.device)
            stored_keys = _write_at(roomy.keys, keys, slots)
            stored_values = _write_at(roomy.values, values, slots)
        else:
            stored_keys = _write_from(roomy.keys, keys, roomy.filled)
            stored_values = _write_from(roomy.values, values, roomy.filled)
        return replace(
            roomy,
            position=roomy.position + counts,
            keys=stored_keys,
            values=stored_values,
            filled=roomy.filled + keys.shape[2],
            ragged=ragged,
        )

    def read(self) -> tuple[Tensor, Tensor]:
        """Keys and values up to `filled`."""
        return self.keys[:, :, : self.filled], self.values[:, :, : self.filled]

    def visible_to(
        self, first_position: Int[Tensor, " batch"], tokens: int
    ) -> Bool[Tensor, "batch 1 tokens keys"] | None:
        """Which slots the new tokens may see, themselves included; None where they may see all that `read` gives."""
        if tokens == 1 and not self.ragged:
            return None
        rows = first_position[:, None] + torch.arange(tokens, device=first_position.device)
        return (torch.arange(self.filled, device=rows.device) <= rows[..., None])[:, None]

    def _with_room_for(self, tokens: int, mask: Bool[Tensor, "batch tokens"] | None) -> KVCache:
        capacity = self.keys.shape[2]
        needed = self.filled + tokens
        traced = torch.compiler.is_compiling()
        # padding may have made the capacity larger than `max_len`, which limits real tokens
        if needed <= capacity and (self.max_len is None or needed <= self.max_len or traced):
            return self
        tight, real = self, needed
        if (self.ragged or mask is not None) and not traced:
            # `filled` counts padding too; only here is looking at the device worth its cost
            tight = replace(self, filled=int(self.position.max()))
            real = tight.filled + (tokens if mask is None else int(mask.sum(dim=1).max()))
        if self.max_len is not None and real > self.max_len:
            raise ValueError(f"the state has room for max_len={self.max_len} tokens, {real} are needed")
        needed = tight.filled + tokens
        if needed <= capacity:
            return tight
        grown = needed if self.max_len is not None else max(needed, 2 * capacity)
        return replace(tight, keys=_grow(self.keys, grown), values=_grow(self.values, grown))


def empty_cache(
    batch: int,
    *,
    num_kv_heads: int,
    head_dim: int,
    value_dim: int,
    max_len: int | None,
    like: Tensor,
) -> KVCache:
    """A cache without tokens, with room for `max_len`, in the dtype and on the device of `like`.

    Raises:
        ValueError: `batch` or `max_len` is not positive.
    """
    if batch < 1 or (max_len is not None and max_len < 1):
        raise ValueError(f"batch and max_len must be positive, got batch={batch} and max_len={max_len}")
    capacity = INITIAL_CAPACITY if max_len is None else max_len
    return KVCache(
        position=torch.zeros(batch, dtype=torch.int64, device=like.device),
        keys=like.new_zeros(batch, num_kv_heads, capacity, head_dim),
        values=like.new_zeros(batch, num_kv_heads, capacity, value_dim),
        filled=0,
        ragged=False,
        max_len=max_len,
    )


def _grow(buffer: Tensor, capacity: int) -> Tensor:
    return torch.nn.functional.pad(buffer, (0, 0, 0, capacity - buffer.shape[2]))


def _write_from(buffer: Tensor, new: Tensor, start: int) -> Tensor:
    stop = start + new.shape[2]
    if torch.is_grad_enabled():
        return torch.cat((buffer[:, :, :start], new.to(buffer.dtype), buffer[:, :, stop:]), dim=2)
    buffer[:, :, start:stop] = new
    return buffer


def _write_at(buffer: Tensor, new: Tensor, slots: Int[Tensor, "batch tokens"]) -> Tensor:
    index = slots[:, None, :, None].expand(new.shape)
    if torch.is_grad_enabled():
        return buffer.scatter(2, index, new.to(buffer.dtype))
    return buffer.scatter_(2, index, new.to(buffer.dtype))
