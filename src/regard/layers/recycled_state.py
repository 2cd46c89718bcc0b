"""The state of recycled attention while decoding: all keys, and beside them the few that most tokens attend to.

The chosen keys are copied once, when they are chosen, to the front of a buffer; what is decoded until the next choice
is appended behind them, so that a recycled step reads one stretch of memory. The buffer is filled from the right end of
its front, the best key last: fewer keys than it has room for still lie together, and so do all but the worst.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.contract import State, state, static
from regard.layers.kv_cache import INITIAL_CAPACITY, KVCache, empty_cache
from regard.ops.grouped_attention import group_weights, grouped_attention, weigh_values
from regard.ops.latest_attention import latest_attention
from regard.ops.precision import product_dtype
from regard.ops.recycled import Recycling, choose_keys, group_scores, query_similarity, take_keys
from regard.ops.softmax_attention import softmax_attention

Queries = Float[Tensor, "batch heads tokens head_dim"]
Keys = Float[Tensor, "batch kv_heads tokens head_dim"]
Values = Float[Tensor, "batch kv_heads tokens value_dim"]
Mixed = Float[Tensor, "batch heads tokens value_dim"]


@state
class RecycledState(State):
    """All keys and values, the recycled ones, and how long ago they were chosen."""

    cache: KVCache
    keys: Float[Tensor, "batch kv_heads room head_dim"]
    values: Float[Tensor, "batch kv_heads room value_dim"]
    chosen: Int[Tensor, "batch kv_heads top_k"]
    """Positions of the recycled keys, the best one last; -1 at the front where there are fewer."""
    count: Int[Tensor, " batch"]
    """How many of `chosen` hold."""
    recent: Int[Tensor, " batch"]
    """Tokens since the choice, which lie behind the chosen ones."""
    steps: Int[Tensor, " batch"]
    """Single tokens since the prompt, by which the schedule goes."""
    queries: Float[Tensor, "batch heads stored"]
    """Those of the token that chose; without a dynamic schedule 0 wide."""
    count_most: int = static()
    """Upper bounds of `count`, `recent` and, where all rows are equal, the number of `steps`: known without looking."""
    recent_most: int = static()
    steps_of_all: int = static()

    @property
    def was_full(self) -> Bool[Tensor, " batch"]:
        """Whether the latest token of each row attended to everything."""
        return self.recent == 0

    def keys_read(self, recycling: Recycling) -> Int[Tensor, " batch"]:
        """How many keys the latest token of each row attended to, its own among them."""
        read = self.count + self.recent
        if recycling.fixed_size:
            read = torch.minimum(read, self.recent.clamp(min=self.chosen.shape[2]))
        return torch.where(self.was_full, self.position, read)

    def advance(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        recycling: Recycling,
        *,
        mask: Bool[Tensor, "batch tokens"] | None = None,
    ) -> tuple[Mixed, RecycledState]:
        """New tokens: several are a prompt, which attends in full; a single one goes by the schedule.

        A prompt's last token chooses its best keys, itself among them or not; a full step always keeps its own key.

        Args:
            q: queries, with their positions.
            k: keys, with their positions.
            v: values.
            recycling: how many keys are recycled, and when they are chosen anew.
            mask: True on the prefix of each row that is real; a row with a single real token goes by the schedule.
        """
        cache = self.cache.append(k, v, mask)
        after = replace(self, cache=cache, position=cache.position)
        if q.shape[2] == 1:
            return after._decode(q, k, v, recycling, before=self.position, real=None if mask is None else mask[:, 0])
        mixed = after._attend_many(q, k, v, before=self)
        counts = None if mask is None else mask.sum(dim=1)
        after = after._prompted(q, recycling, counts)
        if counts is None:
            return mixed, after
        single = counts == 1
        one_q, one_k, one_v = q[:, :, :1], k[:, :, :1], v[:, :, :1]
        first, after = after._decode(one_q, one_k, one_v, recycling, before=self.position, real=single)
        first = torch.where(single[:, None, None, None], first, mixed[:, :, :1])
        return torch.cat((first, mixed[:, :, 1:]), dim=2), after

    # -- prompts

    def _attend_many(self, q: Tensor, k: Tensor, v: Tensor, *, before: RecycledState) -> Mixed:
        if before.cache.filled == 0:
            return softmax_attention(q, k, v, causal=True)
        keys, values = (stored.to(q.dtype) for stored in self.cache.read())
        if not self.cache.ragged:
            return latest_attention(q, keys, values)
        return softmax_attention(q, keys, values, visible=self.cache.visible_to(before.position, q.shape[2]))

    def _prompted(self, q: Tensor, recycling: Recycling, counts: Tensor | None) -> RecycledState:
        """After a prompt: the choice of its last real token, in the rows that have several."""
        rows = None if counts is None else counts > 1
        last = q[:, :, -1:] if counts is None else q.gather(2, _places(counts.clamp(min=1) - 1, q))
        visible = self._stored()
        scores = group_scores(group_weights(last, self.cache.read()[0], visible=visible), recycling.reduce)
        after = self._chosen_anew(scores, last, recycling, rows=rows, always=None)
        steps = torch.zeros_like(self.steps) if rows is None else torch.where(rows, 0, self.steps)
        return replace(after, steps=steps, steps_of_all=0)

    # -- single tokens

    def _decode(
        self, q: Tensor, k: Tensor, v: Tensor, recycling: Recycling, *, before: Tensor, real: Tensor | None
    ) -> tuple[Mixed, RecycledState]:
        if self._rows_are_equal(recycling):
            first = self.cache.filled == 1
            number = 0 if first else self.steps_of_all + 1
            after = replace(self, steps=torch.full_like(self.steps, number), steps_of_all=number)
            if first or (recycling.stride is not None and number % recycling.stride == 0):
                return after._full_step(q, recycling, rows=None)
            after = after._with_recent(k, v, None, recycling)
            return after._recycled_step(q, recycling), after
        real = torch.ones_like(before, dtype=torch.bool) if real is None else real
        numbers = torch.where(before == 0, 0, self.steps + 1)
        due = real & ((before == 0) | self._is_due(q, numbers, recycling))
        after = replace(self, steps=torch.where(real, numbers, self.steps))._with_recent(k, v, real, recycling)
        traced = torch.compiler.is_compiling()
        # looking at the device costs less than a full step that no row needs
        rows_due = -1 if traced else int(due.sum())
        if rows_due == len(due):
            return after._full_step(q, recycling, rows=None)
        mixed = after._recycled_step(q, recycling)
        if rows_due == 0:
            return mixed, after
        in_full, after = after._full_step(q, recycling, rows=due)
        after = after if traced else replace(after, recent_most=int(after.recent.max()))
        return torch.where(due[:, None, None, None], in_full, mixed), after

    def _is_due(self, q: Tensor, numbers: Tensor, recycling: Recycling) -> Bool[Tensor, " batch"]:
        if recycling.threshold is not None:
            alike = query_similarity(q[:, :, 0], self.queries)
            return (numbers % recycling.check_stride == 0) & (alike < recycling.threshold)
        return torch.zeros_like(numbers).bool() if recycling.stride is None else numbers % recycling.stride == 0

    def _full_step(self, q: Tensor, recycling: Recycling, *, rows: Tensor | None) -> tuple[Mixed, RecycledState]:
        keys, values = self.cache.read()
        weights = group_weights(q, keys, visible=self._stored())
        scores = group_scores(weights.detach(), recycling.reduce)
        after = self._chosen_anew(scores, q, recycling, rows=rows, always=self.position - 1)
        return weigh_values(weights, values).to(q.dtype), after

    def _recycled_step(self, q: Tensor, recycling: Recycling) -> Mixed:
        top_k = self.chosen.shape[2]
        start, stop = top_k - self.count_most, top_k + self.recent_most
        visible = None
        if self._rows_are_equal(recycling):
            start = max(start, min(self.recent_most, top_k)) if recycling.fixed_size else start
        else:
            slots, first = torch.arange(start, stop, device=q.device), top_k - self.count
            first = torch.maximum(first, self.recent.clamp(max=top_k)) if recycling.fixed_size else first
            visible = (slots >= first[:, None]) & (slots < top_k + self.recent[:, None])
            visible = visible[:, None, None]
        dtype = product_dtype(self.keys)
        keys, values = (buffer[:, :, start:stop].to(dtype) for buffer in (self.keys, self.values))
        return grouped_attention(q.to(dtype), keys, values, visible=visible).to(q.dtype)

    # -- the buffer

    def _rows_are_equal(self, recycling: Recycling) -> bool:
        """Whether no row can differ from another in its length or in when it chose."""
        return not self.cache.ragged and recycling.threshold is None

    def _stored(self) -> Bool[Tensor, "batch 1 1 keys"] | None:
        """Which slots of the cache hold keys; None where all that `read` gives do."""
        if not self.cache.ragged:
            return None
        return (torch.arange(self.cache.filled, device=self.position.device) < self.position[:, None])[:, None, None]

    def _chosen_anew(
        self, scores: Tensor, q: Tensor, recycling: Recycling, *, rows: Tensor | None, always: Tensor | None
    ) -> RecycledState:
        """With the best keys of `scores`, in those of the rows that `rows` names, at the front of the buffer."""
        stored, top_k = self._stored(), self.chosen.shape[2]
        allowed = None if stored is None else stored[:, :, 0]
        own = None if always is None else always[:, None]
        chosen = choose_keys(scores[:, :, 0].detach(), top_k, allowed=allowed, always=own)
        count, recent = self.position.clamp(max=top_k), torch.zeros_like(self.recent)
        queries = q[:, :, 0] if recycling.threshold is not None else self.queries
        most, since = min(top_k, self.cache.filled), 0
        keys, values = take_keys(self.cache.keys, chosen), take_keys(self.cache.values, chosen)
        if rows is not None:
            keys = torch.where(rows[:, None, None, None], keys, self.keys[:, :, :top_k])
            values = torch.where(rows[:, None, None, None], values, self.values[:, :, :top_k])
            chosen = torch.where(rows[:, None, None], chosen, self.chosen)
            queries = torch.where(rows[:, None, None], queries, self.queries)
            count, recent = torch.where(rows, count, self.count), torch.where(rows, recent, self.recent)
            most, since = max(most, self.count_most), self.recent_most
        return replace(
            self,
            keys=_with_front(self.keys, keys),
            values=_with_front(self.values, values),
            chosen=chosen,
            count=count,
            recent=recent,
            queries=queries.to(self.queries.dtype),
            count_most=most,
            recent_most=since,
        )

    def _with_recent(self, k: Tensor, v: Tensor, real: Tensor | None, recycling: Recycling) -> RecycledState:
        """With a new token behind the recycled keys, in the rows where it is real."""
        roomy, top_k = self._with_room(recycling), self.chosen.shape[2]
        stretch = _longest_stretch(recycling)
        most = roomy.recent_most + 1 if stretch is None else min(roomy.recent_most + 1, stretch - 1)
        return replace(
            roomy,
            # where the token is not real the slot is not counted, and written again by the next
            keys=_written(roomy.keys, k, _places(top_k + roomy.recent, k)),
            values=_written(roomy.values, v, _places(top_k + roomy.recent, v)),
            recent=roomy.recent + (1 if real is None else real),
            recent_most=most,
        )

    def _with_room(self, recycling: Recycling) -> RecycledState:
        room = self.keys.shape[2] - self.chosen.shape[2]
        if self.recent_most < room:
            return self
        roomy = self
        if not (self._rows_are_equal(recycling) or torch.compiler.is_compiling()):
            # only here is looking at the device worth its cost
            roomy = replace(self, recent_most=int(self.recent.max()))
        if roomy.recent_most < room:
            return roomy
        keys, values = (torch.nn.functional.pad(x, (0, 0, 0, room)) for x in (self.keys, self.values))
        return replace(roomy, keys=keys, values=values)


def empty_recycled_state(
    batch: int,
    recycling: Recycling,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    value_dim: int,
    max_len: int | None,
    like: Tensor,
) -> RecycledState:
    """A state without tokens; arguments as for `empty_cache`, `num_heads` those of the queries.

    Raises:
        ValueError: `batch` or `max_len` is not positive.
    """
    cache = empty_cache(
        batch, num_kv_heads=num_kv_heads, head_dim=head_dim, value_dim=value_dim, max_len=max_len, like=like
    )
    recent = _longest_stretch(recycling) or INITIAL_CAPACITY
    top_k, room = (size if max_len is None else min(size, max_len) for size in (recycling.top_k, recent))
    numbers = [torch.zeros_like(cache.position) for _ in range(4)]
    return RecycledState(
        position=numbers[0],
        cache=cache,
        keys=like.new_zeros(batch, num_kv_heads, top_k + room, head_dim),
        values=like.new_zeros(batch, num_kv_heads, top_k + room, value_dim),
        chosen=torch.full((batch, num_kv_heads, top_k), -1, device=like.device),
        count=numbers[1],
        recent=numbers[2],
        steps=numbers[3],
        queries=like.new_zeros(batch, num_heads, 0 if recycling.threshold is None else head_dim),
        count_most=0,
        recent_most=0,
        steps_of_all=0,
    )


def _longest_stretch(recycling: Recycling) -> int | None:
    """Tokens from one full step to the next, at least 2; None where nothing limits them."""
    if recycling.stride is None or recycling.threshold is not None:
        return None
    return max(2, recycling.stride)


def _places(slots: Int[Tensor, " batch"], like: Tensor) -> Int[Tensor, "batch heads 1 width"]:
    """One slot for each row, as an index for tensors like this."""
    return slots[:, None, None, None].expand(-1, like.shape[1], 1, like.shape[3])


def _with_front(buffer: Tensor, front: Tensor) -> Tensor:
    size = front.shape[2]
    if torch.is_grad_enabled():
        return torch.cat((front.to(buffer.dtype), buffer[:, :, size:]), dim=2)
    buffer[:, :, :size] = front
    return buffer


def _written(buffer: Tensor, new: Tensor, slots: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        return buffer.scatter(2, slots, new.to(buffer.dtype))
    return buffer.scatter_(2, slots, new.to(buffer.dtype))
