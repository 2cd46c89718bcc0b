"""The state of StreamingLLM while decoding: the first and the latest keys before rotation, in memory of constant size.

With full steps in between ("++") a cache of all keys, rotated by their places, lies beside it.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.contract import State, state
from regard.layers.kv_cache import KVCache, empty_cache
from regard.ops.grouped_attention import grouped_attention
from regard.ops.precision import product_dtype
from regard.ops.rotary import rotate
from regard.ops.streaming import Streaming, cache_ranks, streaming_attention

Queries = Float[Tensor, "batch heads tokens head_dim"]
Keys = Float[Tensor, "batch kv_heads tokens head_dim"]
Values = Float[Tensor, "batch kv_heads tokens value_dim"]
Mixed = Float[Tensor, "batch heads tokens value_dim"]


@state
class StreamingState(State):
    """Sinks in the first slots, the latest tokens in the others: one more than are carried, for a step's own key."""

    keys: Float[Tensor, "batch kv_heads slots head_dim"]
    values: Float[Tensor, "batch kv_heads slots value_dim"]

    def carried(self, streaming: Streaming) -> Int[Tensor, "batch cache_size"]:
        """Positions of the keys that the next step sees beside its own, -1 at the end where there are fewer."""
        sinks, size = streaming.sinks, streaming.cache_size
        ranks = torch.arange(size, device=self.position.device)
        late = self.position[:, None] - size + ranks
        kept = torch.where((ranks < sinks) | (late < ranks), ranks, late)
        return torch.where(ranks < self.position[:, None], kept, -1)

    def keys_read(self, streaming: Streaming) -> Int[Tensor, " batch"]:
        """How many keys the latest token of each row attended to, its own among them."""
        return self.position.clamp(max=streaming.cache_size + 1)

    def advance(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        streaming: Streaming,
        *,
        mask: Bool[Tensor, "batch tokens"] | None = None,
    ) -> tuple[Mixed, StreamingState]:
        """New tokens, each of which attends to what the one before carried.

        Args:
            q: queries before rotation.
            k: keys before rotation.
            v: values.
            streaming: what is carried.
            mask: True on the prefix of each row that is real.
        """
        if q.shape[2] == 1:
            after = self._with_one(k, v, streaming, None if mask is None else mask[:, 0])
            return after._attend(q, streaming), after
        old_keys, old_values, carried = self._in_order(streaming)
        keys, values = (_behind(old, new, carried) for old, new in ((old_keys, k), (old_values, v)))
        mixed = streaming_attention(q, keys.to(q.dtype), values.to(q.dtype), streaming, first=carried)
        return mixed, self._with_many(keys, values, carried, streaming, k.shape[2] if mask is None else mask.sum(dim=1))

    def _attend(self, q: Tensor, streaming: Streaming) -> Mixed:
        held, ranks = cache_ranks(self.position, streaming)
        dtype = product_dtype(self.keys)
        keys, values = self.keys.to(dtype), self.values.to(dtype)
        if streaming.rope_base is not None:
            own = (self.position - 1).clamp(min=0, max=streaming.cache_size)
            q = rotate(q, own[:, None], base=streaming.rope_base)
            keys = rotate(keys, ranks, base=streaming.rope_base)
        return grouped_attention(q.to(dtype), keys, values, visible=(held >= 0)[:, None, None]).to(q.dtype)

    def _with_one(self, k: Tensor, v: Tensor, streaming: Streaming, real: Tensor | None) -> StreamingState:
        place, sinks = self.position, streaming.sinks
        slot = torch.where(place < sinks, place, sinks + (place - sinks) % streaming.window)
        return StreamingState(
            position=place + (1 if real is None else real),
            keys=_written(self.keys, k, slot, real),
            values=_written(self.values, v, slot, real),
        )

    def _in_order(self, streaming: Streaming) -> tuple[Tensor, Tensor, Int[Tensor, " batch"]]:
        """The carried keys and values by rank at the front of each row, and their number."""
        carried = self.carried(streaming)
        slots = torch.where(
            carried < streaming.sinks,
            carried.clamp(min=0),
            streaming.sinks + (carried - streaming.sinks) % streaming.window,
        )
        return _take(self.keys, slots), _take(self.values, slots), self.position.clamp(max=streaming.cache_size)

    def _with_many(
        self, keys: Tensor, values: Tensor, carried: Tensor, streaming: Streaming, counts: int | Tensor
    ) -> StreamingState:
        """From the carried ones and the new ones in order: each slot's token among them."""
        position = self.position + counts
        held, _ = cache_ranks(position, streaming)
        # how far back a token lies is the same in the text and in `keys`; sinks stand in front in both
        places = held + (carried - self.position)[:, None]
        places = torch.where(held < streaming.sinks, held, places).clamp(min=0, max=keys.shape[2] - 1)
        dtype = self.keys.dtype
        return StreamingState(
            position=position, keys=_take(keys, places).to(dtype), values=_take(values, places).to(dtype)
        )


@state
class StreamingPlusState(State):
    """What streaming carries, and all keys at their own places for the full steps."""

    window: StreamingState
    cache: KVCache

    def advance(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        streaming: Streaming,
        *,
        stride: int,
        mask: Bool[Tensor, "batch tokens"] | None = None,
    ) -> tuple[Mixed, StreamingPlusState]:
        """New tokens, of which those at the multiples of `stride` attend to all keys before them.

        Args:
            q: queries before rotation.
            k: keys before rotation.
            v: values.
            streaming: what is carried.
            stride: tokens from one full step to the next.
            mask: True on the prefix of each row that is real.
        """
        first, tokens = self.position, q.shape[2]
        mixed, window = self.window.advance(q, k, v, streaming, mask=mask)
        by_place, keys = q, k
        if streaming.rope_base is not None:
            places = first[:, None] + torch.arange(tokens, device=q.device)
            by_place, keys = (rotate(x, places, base=streaming.rope_base) for x in (q, k))
        cache = self.cache.append(keys, v, mask)
        after = StreamingPlusState(position=cache.position, window=window, cache=cache)
        if not cache.ragged and (cache.filled - 1) // stride * stride < cache.filled - tokens:
            return mixed, after
        stored_keys, stored_values = (stored.to(q.dtype) for stored in cache.read())
        return full_rows(mixed, by_place, stored_keys, stored_values, first=first, stride=stride), after


def full_rows(
    mixed: Mixed,
    q: Queries,
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    v: Float[Tensor, "batch kv_heads keys value_dim"],
    *,
    first: Int[Tensor, " batch"],
    stride: int,
) -> Mixed:
    """What the queries find, but at the multiples of `stride` what they find among all keys up to their own.

    Args:
        mixed: what they find otherwise.
        q: queries, rotated by their places.
        k: all keys, rotated by their places.
        v: all values.
        first: place of the first query among the keys.
        stride: tokens from one full step to the next.
    """
    tokens = q.shape[2]
    rows = (-first)[:, None] % stride + stride * torch.arange(-(-tokens // stride), device=q.device)
    inside = rows.clamp(max=tokens - 1)
    columns = torch.arange(k.shape[2], device=q.device)
    visible = columns <= (first[:, None] + inside)[..., None]
    found = grouped_attention(_take(q, inside), k, v, visible=visible[:, None])
    # rows behind the last query go to a place of their own
    index = rows.clamp(max=tokens)[:, None, :, None].expand(found.shape)
    padded = torch.nn.functional.pad(mixed, (0, 0, 0, 1))
    return padded.scatter(2, index, found.to(mixed.dtype))[:, :, :tokens]


def empty_streaming_state(
    batch: int, streaming: Streaming, *, num_kv_heads: int, head_dim: int, value_dim: int, like: Tensor
) -> StreamingState:
    """A state without tokens, in the dtype and on the device of `like`.

    Raises:
        ValueError: `batch` is not positive.
    """
    if batch < 1:
        raise ValueError(f"batch must be positive, got batch={batch}")
    slots = streaming.cache_size + 1
    return StreamingState(
        position=torch.zeros(batch, dtype=torch.int64, device=like.device),
        keys=like.new_zeros(batch, num_kv_heads, slots, head_dim),
        values=like.new_zeros(batch, num_kv_heads, slots, value_dim),
    )


def empty_streaming_plus_state(
    batch: int,
    streaming: Streaming,
    *,
    num_kv_heads: int,
    head_dim: int,
    value_dim: int,
    max_len: int | None,
    like: Tensor,
) -> StreamingPlusState:
    """A state without tokens; arguments as for `empty_cache`.

    Raises:
        ValueError: `batch` or `max_len` is not positive.
    """
    sizes = {"num_kv_heads": num_kv_heads, "head_dim": head_dim, "value_dim": value_dim}
    cache = empty_cache(batch, **sizes, max_len=max_len, like=like)
    window = empty_streaming_state(batch, streaming, **sizes, like=like)
    return StreamingPlusState(position=cache.position.clone(), window=window, cache=cache)


def _take(x: Tensor, places: Int[Tensor, "batch taken"]) -> Tensor:
    """The tokens at these places of each row."""
    return x.gather(2, places[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def _behind(old: Tensor, new: Tensor, count: Int[Tensor, " batch"]) -> Tensor:
    """The first `count` tokens of each row of `old`, then `new`; anything behind that."""
    total = old.shape[2] + new.shape[2]
    places = torch.arange(total, device=old.device)
    places = torch.where(places < count[:, None], places, old.shape[2] + places - count[:, None])
    return _take(torch.cat((old.to(new.dtype), new), dim=2), places.clamp(max=total - 1))


def _written(buffer: Tensor, new: Tensor, slot: Int[Tensor, " batch"], real: Tensor | None) -> Tensor:
    index = slot[:, None, None, None].expand(new.shape)
    new = new.to(buffer.dtype)
    if real is not None:
        new = torch.where(real[:, None, None, None], new, buffer.gather(2, index))
    return buffer.scatter(2, index, new) if torch.is_grad_enabled() else buffer.scatter_(2, index, new)
