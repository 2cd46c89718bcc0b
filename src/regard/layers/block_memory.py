"""The memory of a model without landmarks: all keys and values in blocks, of which each query reads a few.

Keys are turned by their place in their block and no further, since a block's position depends on who reads it. The mean
of a block's keys stands for it in a search; the blocks themselves may lie in the CPU's memory or in a file that is
mapped into it, from which only chosen blocks are read. How the tokens were cut into calls changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils import _pytree as pytree

from regard.contract import State, state, static
from regard.layers.offload import Offload, check_offload, grown_ring, zeros_at
from regard.ops.block_retrieval import Asking, BlockRetrieval, asking, block_logits, choose, chosen_logits, turn
from regard.ops.precision import compute_dtype, without_autocast

INITIAL_BLOCKS = 8
QUERIES = 128
"""Queries that are scored at once."""
SLICE_BYTES = 1 << 21
"""Retrieved keys, or values, that are in memory at once, about."""


@state
class BlockMemory(State):
    """Blocks in time, the last of which may be unfinished; row b has seen `position[b]` tokens. For inference alone."""

    keys: Float[Tensor, "batch kv_heads blocks block_size head_dim"]
    values: Float[Tensor, "batch kv_heads blocks block_size value_dim"]
    means: Float[Tensor, "batch kv_heads blocks head_dim"]
    """Of a block's keys; of an unfinished one, what it has so far adds to it."""
    filled: int = static()
    """Upper bound of `position`, known without looking at it."""
    ragged: bool = static()
    """Whether rows may differ in length (a mask was given)."""
    offload: Offload = static()

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self.keys.shape[3]

    def reorder(self, index: Int[Tensor, " rows"]) -> BlockMemory:
        """The rows `index` of this state; what lies in a file is copied into the CPU's memory."""
        return pytree.tree_map(lambda tensor: tensor.index_select(0, index.to(tensor.device)), self)

    def attend(
        self,
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads tokens head_dim"],
        v: Float[Tensor, "batch kv_heads tokens value_dim"],
        sizes: BlockRetrieval,
        *,
        mask: Bool[Tensor, "batch tokens"] | None = None,
    ) -> tuple[Float[Tensor, "batch heads tokens value_dim"], BlockMemory]:
        """New tokens against what they see of the memory, which holds them afterwards.

        Args:
            q: queries, not turned.
            k: keys, not turned.
            v: values.
            sizes: what is seen; its blocks must be as long as the memory's.
            mask: True on the prefix of each row that is real.

        Raises:
            ValueError: gradients are asked for, or blocks of another length.
        """
        if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
            raise ValueError("a memory of blocks has no gradients: call the model under torch.no_grad()")
        if sizes.block_size != self.block_size:
            raise ValueError(f"block_size is {sizes.block_size}, and the memory's blocks have {self.block_size} tokens")
        return _attended(q, k, v, self, sizes, mask)

    # -- writing

    @torch.no_grad()
    def _with(self, k: Tensor, v: Tensor, sizes: BlockRetrieval, mask: Tensor | None) -> BlockMemory:
        tokens, wide = k.shape[2], compute_dtype(k)
        roomy = self._with_room_for(tokens, mask)
        places = self.position[:, None] + torch.arange(tokens, device=k.device)
        turned = turn(k.to(wide), places % self.block_size, sizes.rope_base)
        share = turned if mask is None else torch.where(mask[:, None, :, None], turned, 0)
        # what padding adds is nothing, and its place is written again by the next real token
        index = (places // self.block_size)[:, None, :, None].expand(turned.shape)
        roomy.means.scatter_add_(2, index, share / self.block_size)
        for ring, new in ((roomy.keys, turned), (roomy.values, v)):
            flat, new = ring.flatten(2, 3), new.to(device=ring.device, dtype=ring.dtype)
            if self.ragged or mask is not None:
                flat.scatter_(2, places.to(ring.device)[:, None, :, None].expand(new.shape), new)
            else:
                flat[:, :, self.filled : self.filled + tokens] = new
        return replace(
            roomy,
            position=self.position + (tokens if mask is None else mask.sum(dim=1)),
            filled=roomy.filled + tokens,
            ragged=self.ragged or mask is not None,
        )

    def _with_room_for(self, tokens: int, mask: Tensor | None) -> BlockMemory:
        blocks, tight = self.keys.shape[2], self
        if self.filled + tokens <= blocks * self.block_size:
            return self
        if self.ragged or mask is not None:
            # `filled` counts padding too; only here is looking at the device worth its cost
            tight = replace(self, filled=int(self.position.max()))
        needed = -(-(tight.filled + tokens) // self.block_size)
        if needed <= blocks:
            return tight
        grown = max(needed, 2 * blocks)
        return replace(
            tight,
            keys=grown_ring(self.keys, grown, self.offload),
            values=grown_ring(self.values, grown, self.offload),
            means=grown_ring(self.means, grown, "none"),
        )

    # -- reading

    def _mix(self, queries: Asking, latest: int) -> Tensor:
        """What queries read, the last of which stands in block `latest` at most."""
        sizes, far, chosen = queries.sizes, latest - queries.sizes.recent, None
        shared = [self._recent(queries, latest)]
        if min(far, sizes.sinks) > 0:
            shared.append(self._sinks(queries, min(far, sizes.sinks)))
        logits = [each for each, _ in shared]
        if far > sizes.sinks and sizes.top_k:
            chosen = choose(queries, self.means[:, :, :far])
            logits.append(self._chosen_logits(queries, chosen))
        weights = torch.cat(logits, dim=-1).softmax(dim=-1)
        shares = weights.split([each.shape[-1] for each in logits], dim=-1)
        mixed = [_weighed(share, values) for share, (_, values) in zip(shares, shared, strict=False)]
        if chosen is not None:
            mixed.append(self._weighed_chosen(shares[-1], chosen))
        return torch.stack(mixed).sum(dim=0)

    def _chosen_logits(self, queries: Asking, chosen: Tensor) -> Tensor:
        turned, parts = queries.turned_to(chosen), []
        for some, keys in self._slices(self.keys, chosen):
            parts.append(chosen_logits(turned[:, :, some], keys, chosen[:, :, some]))
        return torch.cat(parts, dim=2)

    def _weighed_chosen(self, weights: Tensor, chosen: Tensor) -> Tensor:
        parts = []
        for some, values in self._slices(self.values, chosen):
            parts.append((weights[:, :, some, None] @ values.flatten(3, 4).to(weights.dtype))[:, :, :, 0])
        return torch.cat(parts, dim=2)

    def _slices(self, ring: Tensor, chosen: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Some queries at a time, since each has blocks of its own; they lie in the same memory each time."""
        a_query = chosen.shape[0] * chosen.shape[1] * chosen.shape[3]
        at_once = max(1, SLICE_BYTES // (a_query * ring[0, 0, 0].nbytes))
        room = ring.new_empty(min(at_once, chosen.shape[2]) * a_query, *ring.shape[3:])
        for begin in range(0, chosen.shape[2], at_once):
            some = slice(begin, begin + at_once)
            yield some, self._take(ring, chosen[:, :, some], room)

    def _recent(self, queries: Asking, latest: int) -> tuple[Tensor, Tensor]:
        """The queries' own blocks and those shortly before."""
        recent, size, device = queries.sizes.recent, self.block_size, queries.q.device
        if self.ragged:
            first = (queries.block[:, :1] - recent).clamp(min=0)
            many = recent + 1 + (queries.block.shape[1] + size - 2) // size
            numbers = first + torch.arange(many, device=device)
            held = numbers.clamp(max=self.keys.shape[2] - 1)[:, None, :].expand(-1, self.keys.shape[1], -1)
            keys, values = (self._take(x, held[:, :, None])[:, :, 0] for x in (self.keys, self.values))
        else:
            begin = max(0, latest - recent - (queries.block.shape[1] + size - 2) // size)
            first = torch.full_like(queries.block[:, :1], begin)
            numbers = first + torch.arange(latest + 1 - begin, device=device)
            keys, values = (x[:, :, begin : latest + 1].to(device) for x in (self.keys, self.values))
        inside = torch.arange(size, device=device)
        positions = (numbers[..., None] * size + inside).flatten(1)[:, None]
        before = queries.block * size + queries.inside
        visible = (positions <= before[..., None]) & (positions >= (queries.choosable * size)[..., None])
        logits = block_logits(queries, keys, offsets=queries.block - first, visible=visible)
        return logits, values.flatten(2, 3)

    def _sinks(self, queries: Asking, many: int) -> tuple[Tensor, Tensor]:
        """The first blocks of the text, where they are not among the recent ones."""
        keys, values = (x[:, :, :many].to(queries.q.device) for x in (self.keys, self.values))
        numbers = torch.arange(many, device=queries.q.device).repeat_interleave(self.block_size)
        visible = numbers < queries.choosable[..., None]
        return block_logits(queries, keys, offsets=queries.place, visible=visible), values.flatten(2, 3)

    def _take(self, ring: Tensor, numbers: Tensor, room: Tensor | None = None) -> Tensor:
        """The blocks with these numbers, `(batch, someheads, tokens, chosen)`, of the key/value heads or for heads
        that share them; where `room` is given, in that memory.
        """
        batch, kv_heads, blocks = ring.shape[:3]
        owners = torch.arange(batch * kv_heads, device=numbers.device)
        owners = owners.repeat_interleave(numbers.shape[1] // kv_heads).view(batch, -1, 1, 1)
        rows = (owners * blocks + numbers.clamp(min=0)).flatten().to(ring.device)
        out = None if room is None else room[: len(rows)]
        taken = torch.index_select(ring.flatten(0, 2), 0, rows, out=out).to(numbers.device)
        return taken.view(*numbers.shape, *taken.shape[1:])


@without_autocast
def _attended(
    q: Tensor, k: Tensor, v: Tensor, before: BlockMemory, sizes: BlockRetrieval, mask: Tensor | None
) -> tuple[Tensor, BlockMemory]:
    after, tokens, parts = before._with(k, v, sizes, mask), q.shape[2], []
    start = after.filled - tokens
    for begin in range(0, tokens, QUERIES):
        end = min(begin + QUERIES, tokens)
        positions = before.position[:, None] + torch.arange(begin, end, device=q.device)
        queries = asking(q[:, :, begin:end], positions, sizes)
        parts.append(after._mix(queries, (start + end - 1) // sizes.block_size).to(q.dtype))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2), after


def _weighed(weights: Tensor, values: Tensor) -> Float[Tensor, "batch heads tokens value_dim"]:
    """Weighted sums of values that all queries of a key head share."""
    tokens = weights.shape[2]
    mixed = weights.unflatten(1, (values.shape[1], -1)).flatten(2, 3) @ values.to(weights.dtype)
    return mixed.unflatten(2, (-1, tokens)).flatten(1, 2)


def empty_block_memory(
    batch: int,
    sizes: BlockRetrieval,
    *,
    num_kv_heads: int,
    head_dim: int,
    value_dim: int,
    max_len: int | None,
    offload: Offload,
    like: Tensor,
) -> BlockMemory:
    """A memory without tokens, in the dtype of `like`.

    Args:
        batch: rows.
        sizes: the length of blocks.
        num_kv_heads: key/value heads.
        head_dim: width of keys.
        value_dim: width of values.
        max_len: tokens to make room for at first; it grows beyond.
        offload: where blocks lie: "none" beside `like`, "cpu" in the CPU's memory, "disk" in an unnamed temporary file.
        like: says the dtype, and the device of everything else.

    Raises:
        ValueError: a size that is not positive, or an unknown place.
    """
    if batch < 1 or (max_len is not None and max_len < 1):
        raise ValueError(f"batch and max_len must be positive, got batch={batch} and max_len={max_len}")
    check_offload(offload)
    blocks = INITIAL_BLOCKS if max_len is None else -(-max_len // sizes.block_size)
    shape = (batch, num_kv_heads, blocks, sizes.block_size)
    return BlockMemory(
        position=torch.zeros(batch, dtype=torch.int64, device=like.device),
        keys=zeros_at((*shape, head_dim), like, offload),
        values=zeros_at((*shape, value_dim), like, offload),
        means=like.new_zeros(batch, num_kv_heads, blocks, head_dim, dtype=compute_dtype(like)),
        filled=0,
        ragged=False,
        offload=offload,
    )
