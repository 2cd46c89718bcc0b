"""The state of HiP attention while decoding: the cache, and the keys that the last search chose."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.contract import State, state, static
from regard.layers.kv_cache import KVCache, empty_cache
from regard.ops.block_sparse import BlockChoice, block_sparse_attention
from regard.ops.hip import HiPSizes, hip_attention, hip_choice
from regard.ops.softmax_attention import softmax_attention

NEVER = -(1 << 40)
"""Position of a search that has not been made."""


@state
class HiPState(State):
    """All keys and values, and what the newest search chose for a single query."""

    cache: KVCache
    starts: Int[Tensor, "batch heads 1 chosen"]
    counts: Int[Tensor, "batch heads 1"]
    searched: Int[Tensor, " batch"]
    """Position of the token that the search was made for, per row."""
    searched_at: int = static()
    """The cache's `filled` at that time: `searched` for rows of equal lengths, known without looking."""

    def advance(
        self,
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads tokens head_dim"],
        v: Float[Tensor, "batch kv_heads tokens head_dim"],
        sizes: HiPSizes,
        *,
        refresh: int,
        mask: Bool[Tensor, "batch tokens"] | None = None,
    ) -> tuple[Float[Tensor, "batch heads tokens head_dim"], HiPState]:
        """New tokens: several as blocks of queries, a single one by itself.

        Single tokens at multiples of `refresh` search, and the first one after several at once; the others use what
        the last one found, since the window shows all that came after it.

        Args:
            q: queries, with their positions.
            k: keys, with their positions.
            v: values.
            sizes: how much is seen.
            refresh: tokens between searches.
            mask: True on the prefix of each row that is real.
        """
        cache = self.cache.append(k, v, mask)
        after = replace(self, cache=cache, position=cache.position)
        if q.shape[2] == 1:
            return after._attend(q, sizes, first=self.position, refresh=refresh)
        return after._attend_many(q, sizes, first=self.position)

    def _attend(self, q: Tensor, sizes: HiPSizes, *, first: Tensor, refresh: int) -> tuple[Tensor, HiPState]:
        """`first` is the position before: rows that the token is not real for have not moved."""
        cache, searching = self.cache, sizes.for_single_queries(refresh)
        own = (self.position - 1).clamp(min=0)
        if searching.is_full(cache.filled):
            mixed = softmax_attention(q, *(x.to(q.dtype) for x in cache.read()), visible=cache.visible_to(own, 1))
            return mixed, self if searching.is_full(cache.filled + refresh) else self._with_everything(own, searching)
        after = self._searched(q, searching, own, self.position > first, refresh)
        choice = BlockChoice(after.starts, after.counts, block_q=1, block_k=sizes.block_k)
        return block_sparse_attention(q, cache.keys, cache.values, choice, sizes.reach(cache.filled), first=own), after

    def _with_everything(self, own: Tensor, sizes: HiPSizes) -> HiPState:
        """What a search finds where the budget is enough for all keys."""
        starts = sizes.block_k * torch.arange(self.starts.shape[-1], device=own.device)
        searched = (own + 1 - sizes.window).clamp(min=0)
        counts = (searched + sizes.block_k - 1) // sizes.block_k
        return replace(
            self,
            starts=starts.expand_as(self.starts),
            counts=counts[:, None, None].expand_as(self.counts),
            searched=own,
            searched_at=self.cache.filled,
        )

    def _searched(self, q: Tensor, sizes: HiPSizes, own: Tensor, moved: Tensor, refresh: int) -> HiPState:
        cache = self.cache
        if not cache.ragged and self.searched_at != NEVER and (cache.filled - 1) % refresh:
            return self
        due = moved & ((own % refresh == 0) | (self.searched == NEVER))
        if cache.ragged and not torch.compiler.is_compiling() and q.device.type == "cpu" and not bool(due.any()):
            return self
        first = own if cache.ragged else cache.filled - 1
        choice = hip_choice(q, cache.keys, sizes, first=first, lengths=self.position)
        return replace(
            self,
            starts=torch.where(due[:, None, None, None], choice.starts, self.starts),
            counts=torch.where(due[:, None, None], choice.counts, self.counts),
            searched=torch.where(due, own, self.searched),
            searched_at=cache.filled,
        )

    def _attend_many(self, q: Tensor, sizes: HiPSizes, *, first: Tensor) -> tuple[Tensor, HiPState]:
        cache = self.cache
        start = first if cache.ragged else cache.filled - q.shape[2]
        mixed = hip_attention(q, cache.keys, cache.values, sizes, first=start, lengths=self.position)
        searched = torch.where(self.position > first, NEVER, self.searched)
        return mixed, replace(self, searched=searched, searched_at=NEVER)


def empty_hip_state(
    batch: int,
    sizes: HiPSizes,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    value_dim: int | None = None,
    max_len: int | None,
    like: Tensor,
) -> HiPState:
    """A state without tokens; arguments as for `empty_cache`, `num_heads` those of the queries."""
    width = head_dim if value_dim is None else value_dim
    cache = empty_cache(
        batch, num_kv_heads=num_kv_heads, head_dim=head_dim, value_dim=width, max_len=max_len, like=like
    )
    position = cache.position.clone()
    return HiPState(
        position=position,
        cache=cache,
        starts=position.new_zeros(batch, num_heads, 1, sizes.mask_k // sizes.block_k),
        counts=position.new_zeros(batch, num_heads, 1),
        searched=torch.full_like(position, NEVER),
        searched_at=NEVER,
    )
