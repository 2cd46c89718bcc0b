"""StreamingLLM: attention to the first and the latest tokens, whose positions are counted inside the cache.

Paper: "Efficient Streaming Language Models with Attention Sinks", Xiao et al., ICLR 2024,
https://arxiv.org/abs/2309.17453, section 3.2. A step sees its own key and those carried from the step before: `sinks`
first tokens and the latest ones, `cache_size` in all. Keys are rotated by their rank among these. The latest keys are
then as far from the query as they were in the text; only the sinks stand nearer than they did. So every key is rotated
once by its place, every sink also a second time, and queries by their place for the former, by their rank for the
latter: one product of keys twice as wide, and blocks of queries share a window, in linear time and memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.ops.block_sparse import BlockChoice, Reach, block_sparse_attention, block_sparse_macs
from regard.ops.precision import without_autocast
from regard.ops.rotary import rotate
from regard.ops.softmax_attention import softmax_attention, softmax_weights

SMALLEST_BLOCK = 64
"""Queries in a block, at least; else as many as the window holds."""

Queries = Float[Tensor, "batch heads queries head_dim"]
Keys = Float[Tensor, "batch kv_heads keys head_dim"]
Values = Float[Tensor, "batch kv_heads keys value_dim"]


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """What a step carries to the next.

    Args:
        cache_size: keys that are carried, sinks among them.
        sinks: first tokens of a sequence that are always carried.
        rope_base: base of the rotary embedding; None = no positions.

    Raises:
        ValueError: no key is carried, or fewer than there are sinks.
    """

    cache_size: int = 512
    sinks: int = 4
    rope_base: float | None = None

    def __post_init__(self) -> None:
        if self.sinks < 0 or self.cache_size < max(1, self.sinks):
            raise ValueError(
                f"cache_size must be at least 1 and at least sinks, which is at least 0: "
                f"got cache_size={self.cache_size} and sinks={self.sinks}"
            )

    @property
    def window(self) -> int:
        """Latest keys that a step sees beside the sinks, its own the last."""
        return self.cache_size + 1 - self.sinks

    @property
    def turns_twice(self) -> bool:
        """Whether queries have a second position, their rank, for the sinks."""
        return self.rope_base is not None and self.sinks > 0

    def reach(self, keys: int) -> Reach:
        """Window and sinks, cut to the keys that there are."""
        return Reach(min(self.window, keys), min(self.sinks, keys))

    def sees_all(self, keys: int) -> bool:
        """Whether the last of so many keys' queries sees them all."""
        return keys <= self.cache_size + 1


def turned(
    q: Queries, k: Keys, streaming: Streaming, *, first: int | Int[Tensor, " batch"]
) -> tuple[Float[Tensor, "batch heads queries width"], Float[Tensor, "batch kv_heads keys width"]]:
    """Queries and keys whose products, divided by the root of their width, are the scores.

    Args:
        q: queries before rotation.
        k: keys before rotation, the first of the sequence at the front.
        streaming: what is carried.
        first: place of the first query among the keys, for all rows or for each.
    """
    base = streaming.rope_base
    if base is None:
        return q, k
    columns = torch.arange(k.shape[2], device=q.device)
    rows = torch.as_tensor(first, device=q.device).reshape(-1, 1) + torch.arange(q.shape[2], device=q.device)
    by_place, keys = rotate(q, rows, base=base), rotate(k, columns[None], base=base)
    if not streaming.turns_twice:
        return by_place, keys
    by_rank = rotate(q, rows.clamp(max=streaming.cache_size), base=base)
    sinks = (columns < streaming.sinks)[:, None]
    # the products are divided by the root of twice the width
    queries = torch.cat((by_place, by_rank), dim=-1) * 2**0.5
    return queries, torch.cat((torch.where(sinks, 0, keys), torch.where(sinks, keys, 0)), dim=-1)


def streaming_visible(queries: int, streaming: Streaming, device: torch.device) -> Bool[Tensor, "1 1 queries queries"]:
    """The whole map of keys that a sequence's queries see. Quadratic."""
    rows, columns = torch.arange(queries, device=device)[:, None], torch.arange(queries, device=device)
    near = (columns > rows - streaming.window) | (columns < streaming.sinks)
    return (near & (columns <= rows))[None, None]


def streaming_weights(q: Queries, k: Keys, streaming: Streaming) -> Float[Tensor, "batch heads queries queries"]:
    """All weights of a sequence, 0 where a key is not seen. Quadratic."""
    queries, keys = turned(q, k, streaming, first=0)
    return softmax_weights(queries, keys, visible=streaming_visible(q.shape[2], streaming, q.device))


@without_autocast
def streaming_attention(
    q: Queries, k: Keys, v: Values, streaming: Streaming, *, first: int | Int[Tensor, " batch"] = 0
) -> Float[Tensor, "batch heads queries value_dim"]:
    """What the tokens of a sequence find, each from what the step before carried; `streaming_weights` times values.

    Args:
        q: queries before rotation.
        k: keys before rotation, from the first of the sequence on, or from a cache: sinks, then the latest, in order;
            their heads may be fewer than the queries'.
        v: values.
        streaming: what is carried.
        first: place of the first query among the keys, for all rows or for each.
    """
    if isinstance(first, int) and first == 0 and streaming.sees_all(q.shape[2]):
        # no key is dropped yet: ranks are places
        q, k = (q, k) if streaming.rope_base is None else _by_place(q, k, streaming.rope_base)
        return softmax_attention(q, k, v, causal=True)
    queries, keys = turned(q, k, streaming, first=first)
    block, blocks = _blocks(q.shape[2], streaming)
    nothing = torch.zeros(*q.shape[:2], blocks, 0, dtype=torch.int64, device=q.device)
    choice = BlockChoice(nothing, nothing.new_zeros(nothing.shape[:3]), block_q=block, block_k=1)
    places = torch.as_tensor(first, device=q.device).expand(q.shape[0])
    return block_sparse_attention(queries, keys, v, choice, streaming.reach(k.shape[2]), first=places)


def streaming_macs(streaming: Streaming, *, tokens: int, head_dim: int, value_dim: int) -> int:
    """Contraction MACs of `streaming_attention` for one head and a sequence of so many tokens."""
    if streaming.sees_all(tokens):
        return tokens * tokens * (head_dim + value_dim)
    block, blocks = _blocks(tokens, streaming)
    width = 2 * head_dim if streaming.turns_twice else head_dim
    return block_sparse_macs(
        blocks=blocks, block_q=block, chosen=0, reach=streaming.reach(tokens), head_dim=width, value_dim=value_dim
    )


def cache_ranks(
    position: Int[Tensor, " batch"], streaming: Streaming
) -> tuple[Int[Tensor, "batch slots"], Int[Tensor, "batch slots"]]:
    """Which token lies in each slot of a cache, -1 in an empty one, and its rank, where so many tokens were written.

    The sinks have the first slots; the latest tokens share the others in turn.

    Args:
        position: tokens written.
        streaming: what is carried; there is one slot more, for a step's own key.
    """
    slots = torch.arange(streaming.cache_size + 1, device=position.device)
    last = position[:, None] - 1
    tokens = last - (last - slots) % streaming.window
    tokens = torch.where(slots < streaming.sinks, slots, tokens)
    # before the slots are full, each token lies in the slot of its own number
    held = torch.where(slots < position[:, None], tokens, -1)
    ranks = torch.where(slots < streaming.sinks, slots, held - last + last.clamp(max=streaming.cache_size))
    return held, ranks


def _by_place(q: Tensor, k: Tensor, base: float) -> tuple[Tensor, Tensor]:
    places = torch.arange(q.shape[2], device=q.device)[None]
    return rotate(q, places, base=base), rotate(k, places, base=base)


def _blocks(queries: int, streaming: Streaming) -> tuple[int, int]:
    size = min(queries, max(SMALLEST_BLOCK, streaming.window))
    return size, -(-queries // size)
