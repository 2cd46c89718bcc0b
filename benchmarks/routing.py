"""Routing attention against causal SDPA, and its growth with the length."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from harness import WIDTH, Outcome, at_least, at_most, short
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from regard.measure import growth_exponent, race
from regard.ops.kmeans_routing import routing_attention
from regard.ops.routing_form import RoutingForm

HEADS, TOKENS = 2, 8192
LENGTHS = (2048, 4096, 8192, 16_384)


def inputs(tokens: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return [torch.randn(1, HEADS, tokens, WIDTH, generator=generator).to(dtype) for _ in range(3)]


def routing(tokens: int, dtype: torch.dtype) -> Callable[[], Tensor]:
    """Everything between the projections, with C = w = sqrt(n) and keys that are routed as the queries."""
    q, k, v = inputs(tokens, dtype)
    window = math.isqrt(tokens - 1) + 1
    centroids = torch.randn(HEADS, window, WIDTH, generator=torch.Generator().manual_seed(0))
    form = RoutingForm(window_size=window, causal=True, shared_qk=True)
    return lambda: routing_attention(q, k, v, centroids, form)


@torch.no_grad()
def forward(dtype: torch.dtype) -> Outcome:
    q, k, v = inputs(TOKENS, dtype)
    contestants = {"sdpa": lambda: sdpa(q, k, v, is_causal=True), "routing": routing(TOKENS, dtype)}
    times = race(contestants, rounds=5)
    what = f"causal SDPA / routing, forward, {short(dtype)}, 8,192 tokens, 2 heads of 64, w = sqrt(n)"
    shown = f"{times.median_s['sdpa'] * 1e3:.0f} ms / {times.median_s['routing'] * 1e3:.0f} ms"
    return at_least(f"routing forward {short(dtype)}", what, times.ratio("sdpa", "routing"), 3.0, detail=shown)


@torch.no_grad()
def growth() -> Outcome:
    times = race({str(tokens): routing(tokens, torch.float32) for tokens in LENGTHS}, rounds=5)
    seconds = [times.minimum_s[str(tokens)] for tokens in LENGTHS]
    shown = ", ".join(f"{tokens}: {second * 1e3:.0f} ms" for tokens, second in zip(LENGTHS, seconds, strict=True))
    what = f"exponent of the time from {LENGTHS[0]:,} to {LENGTHS[-1]:,} tokens, forward, float32"
    return at_most("routing growth", what, growth_exponent(LENGTHS, seconds), 1.6, unit="", detail=shown)


def races() -> Iterator[Outcome]:
    yield forward(torch.float32)
    yield forward(torch.bfloat16)
    yield growth()
