"""Recycled attention while decoding: against full attention, and against StreamingLLM's cache of the same size."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from harness import HEADS, WIDTH, Outcome, at_least, at_most, short

from regard.claims._long_decoding import decode_in_full, decode_recycled, decode_streaming, long_streams
from regard.measure import race
from regard.ops.recycled import Recycling
from regard.ops.streaming import Streaming

TOKENS, TOP_K, STRIDE, ROPE_BASE = 32768, 1024, 16, 10000.0


@torch.no_grad()
def decoding(dtype: torch.dtype) -> Iterator[Outcome]:
    """In each turn one whole cycle, a full step and all recycled ones that belong to it."""
    streams = long_streams(TOKENS, STRIDE, dtype)
    contestants = {
        "full": decode_in_full(streams, STRIDE),
        "recycled": decode_recycled(streams, STRIDE, Recycling(top_k=TOP_K, stride=STRIDE)),
        "streaming": decode_streaming(streams, STRIDE, Streaming(cache_size=TOP_K, rope_base=ROPE_BASE)),
        "no positions": decode_streaming(streams, STRIDE, Streaming(cache_size=TOP_K)),
    }
    times = race(contestants, rounds=5)
    each = {name: seconds / STRIDE * 1e3 for name, seconds in times.median_s.items()}
    sizes = f"a token after {TOKENS:,}, {HEADS} heads of {WIDTH}, K {TOP_K:,}, S {STRIDE}, {short(dtype)}"
    yield at_least(
        f"recycled decoding {short(dtype)}",
        f"full attention by SDPA / recycled attention, {sizes}",
        times.ratio("full", "recycled"),
        3.0,
        detail=f"{each['full']:.2f} ms / {each['recycled']:.2f} ms; by minima "
        f"{times.minimum_ratio('full', 'recycled'):.2f}x",
    )
    yield at_most(
        f"recycled streaming {short(dtype)}",
        f"recycled attention / StreamingLLM, which turns all its keys at every step, {sizes}",
        times.ratio("recycled", "streaming"),
        1.2,
        detail=f"StreamingLLM: {each['streaming']:.2f} ms; without positions {each['no positions']:.2f} ms, "
        f"{times.ratio('recycled', 'no positions'):.2f}x",
    )


def races() -> Iterator[Outcome]:
    yield from decoding(torch.float32)
    yield from decoding(torch.bfloat16)
