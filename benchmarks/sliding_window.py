"""Sliding-window attention against full causal SDPA."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from harness import Outcome, at_least, queries_keys_values, short
from torch.nn.functional import scaled_dot_product_attention as sdpa

from regard.measure import race
from regard.ops.window_attention import window_attention

WINDOW, TOKENS = 64, 4096


def forward(dtype: torch.dtype) -> Outcome:
    q, k, v = queries_keys_values(TOKENS, dtype)
    with torch.no_grad():
        times = race(
            {
                "sdpa": lambda: sdpa(q, k, v, is_causal=True),
                "ours": lambda: window_attention(q, k, v, window_size=WINDOW, causal=True),
            },
            rounds=5,
        )
    what = f"causal SDPA / sliding window of {WINDOW}, forward, {short(dtype)}, 4,096 tokens, 8 heads of 64"
    return at_least(f"sliding_window forward {short(dtype)}", what, times.ratio("sdpa", "ours"), 1.0)


def races() -> Iterator[Outcome]:
    yield forward(torch.float32)
    yield forward(torch.bfloat16)
