"""The key-value cache of attention in a sliding window: a ring with one slot for each token that can still be seen.

Token p lies in slot p modulo the window's size, so that a new token takes the place of the one that it pushes out of
sight. The size is constant, whatever the number of tokens.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regard.contract import State, state


@state
class WindowCache(State):
    """Keys and values of the last real tokens; row b holds those of positions below `position[b]`."""

    keys: Float[Tensor, "batch kv_heads window head_dim"]
    values: Float[Tensor, "batch kv_heads window value_dim"]

    def append(
        self,
        keys: Float[Tensor, "batch kv_heads tokens head_dim"],
        values: Float[Tensor, "batch kv_heads tokens value_dim"],
        mask: Bool[Tensor, "batch tokens"] | None,
    ) -> WindowCache:
        """The cache with new tokens; `mask` is True on the prefix of each row that is real.

        Without gradients a single token is written into this cache's own memory.
        """
        window, tokens = self.keys.shape[2], keys.shape[2]
        counts = torch.full_like(self.position, tokens) if mask is None else mask.sum(dim=1)
        position = self.position + counts
        if tokens == 1 and not torch.is_grad_enabled():
            self._write(keys, values, mask)
            return replace(self, position=position)
        # each slot's newest token: among the new ones, or where it was
        slots = torch.arange(window, device=keys.device)
        newest = position[:, None] - 1 - (position[:, None] - 1 - slots) % window
        source = torch.where(newest >= self.position[:, None], window + newest - self.position[:, None], slots)
        return WindowCache(
            position=position,
            keys=_take(torch.cat((self.keys, keys.to(self.keys.dtype)), dim=2), source),
            values=_take(torch.cat((self.values, values.to(self.values.dtype)), dim=2), source),
        )

    def visible(self) -> Bool[Tensor, "batch 1 1 window"]:
        """Which slots the newest token may see, itself included: all that were ever written."""
        return (torch.arange(self.keys.shape[2], device=self.keys.device) < self.position[:, None])[:, None, None]

    def in_order(
        self,
    ) -> tuple[
        Float[Tensor, "batch kv_heads window head_dim"],
        Float[Tensor, "batch kv_heads window value_dim"],
        Bool[Tensor, "batch window"],
    ]:
        """Keys and values from the oldest to the newest, at the right end, and which of them are real."""
        window = self.keys.shape[2]
        held = self.position[:, None] - window + torch.arange(window, device=self.keys.device)
        return _take(self.keys, held % window), _take(self.values, held % window), held >= 0

    def _write(self, keys: Tensor, values: Tensor, mask: Tensor | None) -> None:
        slot = (self.position % self.keys.shape[2])[:, None]
        for ring, new in ((self.keys, keys), (self.values, values)):
            index = slot[:, None, :, None].expand(new.shape)
            new = new.to(ring.dtype)
            if mask is not None:
                new = torch.where(mask[:, None, :, None], new, ring.gather(2, index))
            ring.scatter_(2, index, new)


def empty_window_cache(
    batch: int, *, num_kv_heads: int, head_dim: int, value_dim: int, window_size: int, like: Tensor
) -> WindowCache:
    """A cache without tokens, in the dtype and on the device of `like`.

    Raises:
        ValueError: `batch` or `window_size` is not positive.
    """
    if batch < 1 or window_size < 1:
        raise ValueError(f"batch and window_size must be positive, got batch={batch} and window_size={window_size}")
    return WindowCache(
        position=torch.zeros(batch, dtype=torch.int64, device=like.device),
        keys=like.new_zeros(batch, num_kv_heads, window_size, head_dim),
        values=like.new_zeros(batch, num_kv_heads, window_size, value_dim),
    )


def _take(x: Tensor, slots: Tensor) -> Tensor:
    """The slots of each row, in another order for every row."""
    return x.gather(2, slots[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
