"""Steps of mechanisms that keep a state: from a model's queries, keys and values to results and the state after.

A model hands over what it has turned by its rotary embedding. Mechanisms that place keys anew need them as they were
before, which the model's config says how to get.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard.contract import State
from regard.integrations.transformers.caches import Advance
from regard.layers.h2o_plus_state import H2OPlusState, empty_h2o_plus_state
from regard.layers.h2o_state import H2OState, empty_h2o_state
from regard.layers.hip_state import HiPState, empty_hip_state
from regard.layers.kv_cache import KVCache, empty_cache
from regard.layers.recycled_state import RecycledState, empty_recycled_state
from regard.layers.streaming_state import (
    StreamingPlusState,
    StreamingState,
    empty_streaming_plus_state,
    empty_streaming_state,
)
from regard.ops.hip import HiPSizes
from regard.ops.latest_attention import latest_attention
from regard.ops.recycled import Recycling
from regard.ops.rotary import rotate
from regard.ops.softmax_attention import softmax_attention
from regard.ops.streaming import Streaming


def sizes_of(k: Tensor, v: Tensor) -> dict[str, int]:
    """Heads and widths, as the makers of states take them."""
    return {"num_kv_heads": k.shape[1], "head_dim": k.shape[3], "value_dim": v.shape[3]}


def softmax_step(*, max_len: int | None = None) -> Advance:
    """Full attention with a preallocated cache."""

    def advance(q: Tensor, k: Tensor, v: Tensor, state: KVCache | None, mask: Tensor | None) -> tuple[Tensor, State]:
        if state is None:
            after = empty_cache(len(q), **sizes_of(k, v), max_len=max_len, like=k).append(k, v, mask)
            return softmax_attention(q, k, v, causal=True), after
        after = state.append(k, v, mask)
        keys, values = after.read()
        if not after.ragged:
            return latest_attention(q, keys, values), after
        return softmax_attention(q, keys, values, visible=after.visible_to(state.position, q.shape[2])), after

    return advance


def hip_step(sizes: HiPSizes, *, refresh: int, max_len: int | None = None) -> Advance:
    """HiP attention with a search every `refresh` tokens."""

    def advance(q: Tensor, k: Tensor, v: Tensor, state: HiPState | None, mask: Tensor | None) -> tuple[Tensor, State]:
        if state is None:
            heads = {"num_heads": q.shape[1], **sizes_of(k, v)}
            # where blocks of keys fill the buffer, the search reads one as one row
            room = None if max_len is None else -(-max_len // sizes.block_k) * sizes.block_k
            state = empty_hip_state(len(q), sizes, **heads, max_len=room, like=k)
        return state.advance(q, k, v, sizes, refresh=refresh, mask=mask)

    return advance


def recycled_step(recycling: Recycling, *, max_len: int | None = None) -> Advance:
    """Recycled attention: a prompt in full, then steps by the schedule."""

    def advance(
        q: Tensor, k: Tensor, v: Tensor, state: RecycledState | None, mask: Tensor | None
    ) -> tuple[Tensor, State]:
        if state is None:
            heads = {"num_heads": q.shape[1], **sizes_of(k, v)}
            state = empty_recycled_state(len(q), recycling, **heads, max_len=max_len, like=k)
        return state.advance(q, k, v, recycling, mask=mask)

    return advance


def h2o_step(*, cache_size: int, refresh_stride: int | None, max_len: int | None = None) -> Advance:
    """H2O: the latest keys and those with the largest sums of attention."""

    def advance(
        q: Tensor, k: Tensor, v: Tensor, state: H2OState | H2OPlusState | None, mask: Tensor | None
    ) -> tuple[Tensor, State]:
        if refresh_stride is None:
            if state is None:
                state = empty_h2o_state(len(q), cache_size=cache_size, **sizes_of(k, v), like=k)
            assert isinstance(state, H2OState)
            return state.advance(q, k, v, mask=mask)
        if state is None:
            state = empty_h2o_plus_state(len(q), cache_size=cache_size, **sizes_of(k, v), max_len=max_len, like=k)
        assert isinstance(state, H2OPlusState)
        return state.advance(q, k, v, stride=refresh_stride, mask=mask)

    return advance


def streaming_step(streaming: Streaming, *, refresh_stride: int | None, max_len: int | None = None) -> Advance:
    """StreamingLLM: sinks and the latest keys, with positions by rank; `streaming` knows the model's rotary base."""

    def advance(
        q: Tensor, k: Tensor, v: Tensor, state: StreamingState | StreamingPlusState | None, mask: Tensor | None
    ) -> tuple[Tensor, State]:
        if state is None and refresh_stride is None:
            state = empty_streaming_state(len(q), streaming, **sizes_of(k, v), like=k)
        elif state is None:
            state = empty_streaming_plus_state(len(q), streaming, **sizes_of(k, v), max_len=max_len, like=k)
        q, k = (turned_back(x, state.position, streaming.rope_base) for x in (q, k))
        if isinstance(state, StreamingState):
            return state.advance(q, k, v, streaming, mask=mask)
        assert refresh_stride is not None
        return state.advance(q, k, v, streaming, stride=refresh_stride, mask=mask)

    return advance


def turned_back(x: Tensor, first: Tensor, base: float | None) -> Tensor:
    """Queries or keys as they were before a rotary embedding at positions from `first` on; None = there was none."""
    if base is None:
        return x
    places = first[:, None] + torch.arange(x.shape[2], device=x.device)
    return rotate(x, -places, base=base)


def rotary_base(config: Any, name: str) -> float | None:
    """The base of a model's rotary embedding, as `regard.ops.rotary` computes it; None where the model has none.

    Args:
        config: of the model's text part.
        name: of the mechanism, for the message.

    Raises:
        ValueError: an embedding that scales positions or turns a part of each head.
    """
    found = getattr(config, "rope_parameters", None)
    if not found:
        return None
    kind, part = found.get("rope_type", "default"), found.get("partial_rotary_factor", 1.0)
    if kind != "default" or part != 1.0:
        raise ValueError(
            f"{name} places keys anew, which is known for plain rotary embeddings alone: this model's is of type "
            f"{kind!r} and turns {part:g} of each head"
        )
    return float(found["rope_theta"])
