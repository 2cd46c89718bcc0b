"""Landmark attention against full attention's cache in decoding, and its one softmax against scattered groups."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from harness import HEADS, Outcome, at_least, queries_keys_values, short

from regard.claims.landmark import BLOCK_OF_PAPER, DECODED, RETRIEVED, cache_decoder, landmark_decoder
from regard.measure import one_thread, race
from regard.ops.landmark_attention import landmark_attention, landmark_attention_of_layout
from regard.ops.landmark_sections import is_landmark

TRAINED = 512


def decoding(dtype: torch.dtype) -> Outcome:
    times = race({"landmark": landmark_decoder(dtype), "cache": cache_decoder(dtype)}, rounds=40, warmup=3)
    what = (
        f"full attention's preallocated cache / landmark memory (blocks of {BLOCK_OF_PAPER}, k {RETRIEVED}), one token "
        f"behind {DECODED:,}, {short(dtype)}, {HEADS} heads of 64"
    )
    detail = ", ".join(f"{name} {seconds * 1e3:.2f} ms" for name, seconds in times.median_s.items())
    return at_least(f"landmark decode {short(dtype)}", what, times.ratio("cache", "landmark"), 5.0, detail=detail)


def forward() -> Outcome:
    q, k, v = queries_keys_values(TRAINED, torch.float32)
    marks = is_landmark(torch.arange(TRAINED), BLOCK_OF_PAPER)[None]
    times = race(
        {
            "one softmax": lambda: landmark_attention(q, k, v, block_size=BLOCK_OF_PAPER),
            "scattered": lambda: landmark_attention_of_layout(q, k, v, landmarks=marks),
        },
        rounds=9,
    )
    what = f"sums over blocks scattered / equal blocks, forward, float32, {TRAINED} tokens, {HEADS} heads of 64"
    detail = ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in times.median_s.items())
    return at_least("landmark forward 512", what, times.ratio("scattered", "one softmax"), 1.0, detail=detail)


def races() -> Iterator[Outcome]:
    with torch.no_grad(), one_thread():
        for dtype in (torch.float32, torch.bfloat16):
            yield decoding(dtype)
        yield forward()
