"""The memory of landmark attention: all blocks so far, of which each query reads a few.

Keys are stored without positions, since a block's position depends on who reads it. Complete blocks lie in a ring,
block number p in slot p modulo the ring's size; without a limit the ring grows instead of overwriting. Keys of
landmarks are kept a second time, side by side, for they are all that a search looks at: the blocks themselves may lie
in the CPU's memory or in a file that is mapped into it, from which only chosen blocks are read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad
from torch.utils import _pytree as pytree

from regard.contract import State, state, static
from regard.layers.offload import Offload, check_offload, grown_ring, zeros_at
from regard.ops.heads import repeat_heads
from regard.ops.landmark_retrieval import (
    Retrieval,
    TurnedQueries,
    Turns,
    choose_blocks,
    landmark_scores,
    local_logits,
    mix_retrieved,
    numbers_in_slots,
    pooled_scores,
    retrieved_logits,
    turned_queries,
    turns,
)
from regard.ops.precision import compute_dtype, without_autocast

INITIAL_BLOCKS = 8
SLICE_BYTES = 1 << 24
"""Retrieved keys and values that are in memory at once, about."""


@state
class LandmarkMemory(State):
    """Blocks in a ring, the keys of their landmarks, and the unfinished block; row b has seen `position[b]` tokens.

    Without gradients it is written in place. What is stored never carries a gradient: it reaches the tokens of one
    call alone.
    """

    keys: Float[Tensor, "batch kv_heads blocks span head_dim"]
    values: Float[Tensor, "batch kv_heads blocks span value_dim"]
    landmarks: Float[Tensor, "batch kv_heads blocks head_dim"]
    open_keys: Float[Tensor, "batch kv_heads span head_dim"]
    open_values: Float[Tensor, "batch kv_heads span value_dim"]
    filled: int = static()
    """Upper bound of `position`, known without looking at it."""
    ragged: bool = static()
    """Whether rows may differ in length (a mask was given)."""
    max_blocks: int | None = static()
    offload: Offload = static()

    @property
    def span(self) -> int:
        """Tokens of a block, its landmark included."""
        return self.open_keys.shape[2]

    @property
    def counts(self) -> Int[Tensor, " batch"]:
        """Complete blocks so far, per row; those that the ring has overwritten included."""
        return self.position // self.span

    @property
    def searched(self) -> int:
        """Slots that a search looks at."""
        return min(self.filled // self.span, self.keys.shape[2])

    def reorder(self, index: Int[Tensor, " rows"]) -> LandmarkMemory:
        """The rows `index` of this state; what lies in a file is copied into the CPU's memory."""
        return pytree.tree_map(lambda tensor: tensor.index_select(0, index.to(tensor.device)), self)

    # -- reading

    def attend(
        self,
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads tokens head_dim"],
        v: Float[Tensor, "batch kv_heads tokens value_dim"],
        sizes: Retrieval,
        *,
        mask: Bool[Tensor, "batch tokens"] | None = None,
    ) -> tuple[Float[Tensor, "batch heads tokens value_dim"], LandmarkMemory]:
        """New tokens against the chosen blocks, the unfinished one, and each other; and the memory that holds them.

        Args:
            q: queries, not turned.
            k: keys, not turned.
            v: values.
            sizes: what is retrieved; its blocks must be as long as the memory's.
            mask: True on the prefix of each row that is real.
        """
        tokens = q.shape[2]
        rows = (self.position % self.span)[:, None] + torch.arange(tokens, device=q.device)
        local_keys, local_values = self._behind_border(k, v)
        mixed = _mixed(q, self, rows, local_keys, local_values, sizes, mask)
        return mixed.to(q.dtype), self._stored(local_keys, local_values, tokens, mask, in_place=_in_place(tokens))

    def _mix(
        self, q: Tensor, rows: Tensor, local_keys: Tensor, local_values: Tensor, sizes: Retrieval, mask: Tensor | None
    ) -> Tensor:
        """A slice of queries at a time, since each retrieves keys of its own."""
        blocks, tokens, parts = min(sizes.top_k, self.searched), q.shape[2], []
        counts, table = self.counts, turns(max(self.span, local_keys.shape[2]), q, sizes)
        near_keys = repeat_heads(_turned(local_keys, table, q), q.shape[1])
        pooled = None
        if blocks and sizes.selection == "max_over_tokens":
            pooled = self._choice_for_all(q, rows, sizes, mask)
        at_once = self._tokens_at_once(q, blocks * self.span, local_keys.shape[2])
        for start in range(0, tokens, at_once):
            piece = slice(start, start + at_once)
            turned = turned_queries(q[:, :, piece], rows[:, piece], sizes)
            near = local_logits(turned.inside[..., 0, :], near_keys, rows=rows[:, piece], sizes=sizes)
            if blocks == 0:
                parts.append(_mix_local(near, local_values))
                continue
            chosen = self._choice(turned, sizes) if pooled is None else pooled
            far_keys, far_values = self.read(chosen)
            far_keys = _turned(far_keys, table, q)
            far = retrieved_logits(turned.inside, far_keys, chosen=chosen, counts=counts, sizes=sizes)
            parts.append(mix_retrieved(far, far_values, near, local_values))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def read(
        self, chosen: Int[Tensor, "batch heads tokens chosen"]
    ) -> tuple[
        Float[Tensor, "batch heads tokens chosen span head_dim"],
        Float[Tensor, "batch heads tokens chosen span value_dim"],
    ]:
        """Keys and values of the blocks with these numbers, for query heads that share key/value heads."""
        batch, kv_heads, blocks = self.keys.shape[:3]
        owners = torch.arange(batch * kv_heads, device=chosen.device).repeat_interleave(chosen.shape[1] // kv_heads)
        slots = owners.view(batch, -1, 1, 1) * blocks + chosen.clamp(min=0) % blocks
        where = slots.flatten().to(self.keys.device)
        taken = (ring.flatten(0, 2).index_select(0, where).to(chosen.device) for ring in (self.keys, self.values))
        keys, values = (x.view(*chosen.shape, *x.shape[1:]) for x in taken)
        return keys, values

    def _scores(self, turned: TurnedQueries, sizes: Retrieval, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        counts, slots = self.counts, self.searched
        scores = landmark_scores(turned.ends, self.landmarks[:, :, :slots], counts=counts, sizes=sizes)
        numbers = numbers_in_slots(counts, slots)
        return pooled_scores(scores, numbers, sizes, mask), numbers

    def _choice(self, turned: TurnedQueries, sizes: Retrieval) -> Int[Tensor, "batch heads tokens chosen"]:
        scores, numbers = self._scores(turned, sizes, None)
        heads = turned.ends.shape[1]
        return choose_blocks(scores, numbers, min(sizes.top_k, self.searched)).expand(-1, heads, -1, -1)

    def _choice_for_all(
        self, q: Tensor, rows: Tensor, sizes: Retrieval, mask: Tensor | None
    ) -> Int[Tensor, "batch heads 1 chosen"]:
        """One choice for all tokens, of which only some are scored at a time."""
        best, numbers, at_once = None, rows, self._tokens_at_once(q, 0, 0)
        for start in range(0, q.shape[2], at_once):
            piece = slice(start, start + at_once)
            real = None if mask is None else mask[:, piece]
            scores, numbers = self._scores(turned_queries(q[:, :, piece], rows[:, piece], sizes), sizes, real)
            best = scores if best is None else torch.maximum(best, scores)
        assert best is not None
        return choose_blocks(best, numbers, min(sizes.top_k, self.searched))

    def _tokens_at_once(self, q: Tensor, retrieved: int, local: int) -> int:
        width = self.keys.shape[-1] + self.values.shape[-1]
        numbers = q.shape[0] * q.shape[1] * (retrieved * width + local + self.searched + 1)
        return max(1, SLICE_BYTES // (numbers * self.keys.element_size()))

    # -- writing

    def extend(
        self,
        k: Float[Tensor, "batch kv_heads tokens head_dim"],
        v: Float[Tensor, "batch kv_heads tokens value_dim"],
        *,
        mask: Bool[Tensor, "batch tokens"] | None = None,
    ) -> LandmarkMemory:
        """The memory with new tokens, without reading it; arguments as for `attend`."""
        tokens = k.shape[2]
        return self._stored(*self._behind_border(k, v), tokens, mask, in_place=_in_place(tokens))

    def _behind_border(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The unfinished block with the new tokens behind it, at their places; what is not real has any value."""
        pairs = ((self.open_keys, k), (self.open_values, v))
        tokens, before = k.shape[2], self.filled % self.span
        if _in_place(tokens):
            return self._with_single(*pairs[0], before), self._with_single(*pairs[1], before)
        if not self.ragged:
            keys, values = (torch.cat((held[:, :, :before].to(new.dtype), new), dim=2) for held, new in pairs)
            return keys, values
        slots = (self.position % self.span)[:, None] + torch.arange(tokens, device=k.device)
        keys, values = (
            pad(held[:, :, :-1].to(new.dtype), (0, 0, 0, tokens)).scatter(
                2, slots[:, None, :, None].expand(new.shape), new
            )
            for held, new in pairs
        )
        return keys, values

    def _with_single(self, held: Tensor, new: Tensor, before: int) -> Tensor:
        if not self.ragged:
            held[:, :, before] = new[:, :, 0].to(held.dtype)
            return held[:, :, : before + 1].to(new.dtype)
        slots = (self.position % self.span)[:, None, None, None].expand(new.shape)
        return held.scatter_(2, slots, new.to(held.dtype)).to(new.dtype)

    @torch.no_grad()
    def _stored(
        self, local_keys: Tensor, local_values: Tensor, tokens: int, mask: Tensor | None, *, in_place: bool
    ) -> LandmarkMemory:
        keys, values = local_keys.detach(), local_values.detach()
        position = self.position + (tokens if mask is None else mask.sum(dim=1))
        roomy = self._with_room_for(self.filled + tokens)
        ragged = self.ragged or mask is not None
        complete = keys.shape[2] // self.span if ragged else (self.filled % self.span + tokens) // self.span
        finished = position // self.span - self.counts
        if complete:
            roomy._write(keys, values, complete, finished, ragged)
        after = replace(roomy, position=position, filled=self.filled + tokens, ragged=ragged)
        if in_place:
            return after
        return replace(
            after,
            open_keys=_behind(keys, finished, self.open_keys),
            open_values=_behind(values, finished, self.open_values),
        )

    def _write(self, keys: Tensor, values: Tensor, complete: int, finished: Tensor, ragged: bool) -> None:
        """Write the last blocks that became complete, in place; `complete` bounds their number."""
        kept = min(complete, self.keys.shape[2])
        order = (finished - kept)[:, None] + torch.arange(kept, device=keys.device)
        slots = (self.counts[:, None] + order) % self.keys.shape[2]
        index = order.clamp(min=0)[:, None, :, None, None]
        rows = torch.arange(len(slots), device=keys.device)[:, None]
        for local, rings in ((keys, (self.keys, self.landmarks)), (values, (self.values,))):
            blocks = local[:, :, : complete * self.span].unflatten(2, (complete, self.span))
            taken = blocks.gather(2, index.expand(-1, blocks.shape[1], -1, *blocks.shape[3:])).transpose(1, 2)
            for ring in rings:
                new = (taken if ring.ndim == 5 else taken[..., -1, :]).to(device=ring.device, dtype=ring.dtype)
                there, which = rows.to(ring.device), slots.to(ring.device)
                if ragged:
                    written = (order >= 0).to(ring.device).view(*order.shape, *[1] * (new.ndim - 2))
                    new = torch.where(written, new, ring[there, :, which])
                ring[there, :, which] = new

    def _with_room_for(self, tokens: int) -> LandmarkMemory:
        blocks, needed = self.keys.shape[2], tokens // self.span
        limit = needed if self.max_blocks is None else self.max_blocks
        if min(needed, limit) <= blocks:
            return self
        grown = max(needed, 2 * blocks) if self.max_blocks is None else min(max(needed, 2 * blocks), limit)
        return replace(
            self,
            keys=grown_ring(self.keys, grown, self.offload),
            values=grown_ring(self.values, grown, self.offload),
            landmarks=grown_ring(self.landmarks, grown, "none"),
        )


def empty_landmark_memory(
    batch: int,
    *,
    num_kv_heads: int,
    head_dim: int,
    value_dim: int,
    block_size: int,
    max_blocks: int | None,
    max_len: int | None,
    offload: Offload,
    like: Tensor,
) -> LandmarkMemory:
    """A memory without tokens, in the dtype of `like`.

    Args:
        batch: rows.
        num_kv_heads: key/value heads.
        head_dim: width of keys.
        value_dim: width of values.
        block_size: ordinary tokens in a block.
        max_blocks: blocks that are kept, the oldest being overwritten; None = all.
        max_len: tokens to make room for at first; it grows beyond.
        offload: where blocks lie: "none" beside `like`, "cpu" in the CPU's memory, "disk" in an unnamed temporary file.
        like: says the dtype, and the device of everything else.

    Raises:
        ValueError: a size that is not positive, or an unknown place.
    """
    if batch < 1 or (max_len is not None and max_len < 1) or (max_blocks is not None and max_blocks < 1):
        raise ValueError(
            "batch, max_len and max_blocks must be positive, "
            f"got batch={batch}, max_len={max_len} and max_blocks={max_blocks}"
        )
    check_offload(offload)
    span = block_size + 1
    blocks = INITIAL_BLOCKS if max_len is None else max(1, max_len // span)
    blocks = blocks if max_blocks is None else min(blocks, max_blocks)
    shape = (batch, num_kv_heads, blocks, span)
    return LandmarkMemory(
        position=torch.zeros(batch, dtype=torch.int64, device=like.device),
        keys=zeros_at((*shape, head_dim), like, offload),
        values=zeros_at((*shape, value_dim), like, offload),
        landmarks=like.new_zeros(batch, num_kv_heads, blocks, head_dim),
        open_keys=like.new_zeros(batch, num_kv_heads, span, head_dim),
        open_values=like.new_zeros(batch, num_kv_heads, span, value_dim),
        filled=0,
        ragged=False,
        max_blocks=max_blocks,
        offload=offload,
    )


@without_autocast
def _mixed(q: Tensor, memory: LandmarkMemory, *parts: Any) -> Tensor:
    return memory._mix(q, *parts)


def _in_place(tokens: int) -> bool:
    """Whether new tokens are written into the unfinished block itself: a single one, when nothing is differentiated."""
    return tokens == 1 and not torch.is_grad_enabled()


def _behind(local: Tensor, finished: Int[Tensor, " batch"], like: Tensor) -> Tensor:
    """The tokens behind the last complete block, in a buffer of a whole block."""
    span = like.shape[2]
    places = finished[:, None] * span + torch.arange(span, device=local.device)
    places = places.clamp(max=local.shape[2] - 1)
    return local.gather(2, places[:, None, :, None].expand(-1, local.shape[1], -1, local.shape[3])).to(like.dtype)


def _turned(keys: Tensor, table: Turns | None, like: Tensor) -> Tensor:
    keys = keys.to(compute_dtype(like))
    return keys if table is None else table.apply(keys)


def _mix_local(logits: Tensor, values: Tensor) -> Tensor:
    weights = logits.softmax(dim=-1)
    return weights @ repeat_heads(values, logits.shape[1]).to(weights.dtype)
