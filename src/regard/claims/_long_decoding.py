"""Decoding after a long prompt: states that hold its keys already, and one cycle of single tokens from there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from regard.claims._operators import HEADS, WIDTH, random_tensors
from regard.layers.kv_cache import KVCache, empty_cache
from regard.layers.recycled_state import empty_recycled_state
from regard.layers.streaming_state import empty_streaming_state
from regard.ops.recycled import Recycling
from regard.ops.softmax_attention import softmax_attention
from regard.ops.streaming import Streaming

Streams = tuple[Tensor, Tensor, Tensor]


def long_streams(tokens: int, more: int, dtype: torch.dtype) -> Streams:
    """Queries, keys and values of a prompt and of the tokens that follow it, 8 heads of 64."""
    q, k, v = random_tensors(*[(1, HEADS, tokens + more, WIDTH)] * 3, seed=tokens)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def in_chunks(streams: Streams, chunks: list[int]) -> list[Streams]:
    """The same tokens, so many at a time."""
    q, k, v = (x.split(chunks, dim=2) for x in streams)
    return list(zip(q, k, v, strict=True))


def _filled(streams: Streams, tokens: int) -> KVCache:
    q, k, v = streams
    width = {"head_dim": k.shape[3], "value_dim": v.shape[3]}
    cache = empty_cache(1, num_kv_heads=k.shape[1], **width, max_len=q.shape[2], like=k)
    return cache.append(k[:, :, :tokens], v[:, :, :tokens], None)


def decode_in_full(streams: Streams, count: int) -> Callable[[], Tensor]:
    """The last `count` tokens one by one against everything, through a preallocated cache and the fused kernel."""
    before = streams[0].shape[2] - count
    start, (_, *tokens) = _filled(streams, before), in_chunks(streams, [before] + [1] * count)

    def decode() -> Tensor:
        cache = start
        for q, k, v in tokens:
            cache = cache.append(k, v, None)
            y = softmax_attention(q, *cache.read())
        return y

    return decode


def decode_recycled(streams: Streams, count: int, recycling: Recycling) -> Callable[[], Tensor]:
    """The same with recycled keys; the prompt's last two tokens make the first choice."""
    whole, (q, k, v) = streams[0].shape[2], streams
    empty = empty_recycled_state(
        1,
        recycling,
        num_heads=q.shape[1],
        num_kv_heads=k.shape[1],
        head_dim=k.shape[3],
        value_dim=v.shape[3],
        max_len=whole,
        like=k,
    )
    cache = _filled(streams, whole - count - 2)
    _, end, *tokens = in_chunks(streams, [whole - count - 2, 2] + [1] * count)
    _, start = replace(empty, cache=cache, position=cache.position).advance(*end, recycling)

    def decode() -> Tensor:
        state = start
        for piece in tokens:
            y, state = state.advance(*piece, recycling)
        return y

    return decode


def decode_streaming(streams: Streams, count: int, streaming: Streaming) -> Callable[[], Tensor]:
    """The same with the first and the latest keys; of the prompt twice as many as are carried are read."""
    whole, (_, k, v) = streams[0].shape[2], streams
    first = max(0, whole - count - 2 * streaming.cache_size)
    _, prompt, *tokens = in_chunks(streams, [first, whole - count - first] + [1] * count)
    empty = empty_streaming_state(
        1, streaming, num_kv_heads=k.shape[1], head_dim=k.shape[3], value_dim=v.shape[3], like=k
    )
    _, start = empty.advance(*prompt, streaming)

    def decode() -> Tensor:
        state = start
        for piece in tokens:
            y, state = state.advance(*piece, streaming)
        return y

    return decode
