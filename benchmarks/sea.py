"""SEA against dense attention: peak memory, growth with the length, and time against causal SDPA."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from harness import HEADS, WIDTH, Outcome, at_most, queries_keys_values
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from regard.layers.attention_estimator import EstimatorSizes
from regard.layers.estimated_attention import EstimatedAttention
from regard.measure import growth_exponent, peak_bytes, race
from regard.ops.softmax_attention import softmax_attention_reference
from regard.ops.visibility import visible_keys

KEPT, COLUMNS = 64, 128
LENGTHS = (2048, 4096, 8192)


def attention(tokens: int) -> Callable[[], Tensor]:
    """Everything between the projections, on queries that carry 1 / sqrt(d)."""
    torch.manual_seed(0)
    sizes = EstimatorSizes(
        num_heads=HEADS,
        head_dim=WIDTH,
        causal=True,
        keys_per_query=KEPT,
        estimate_width=COLUMNS,
        max_positions=tokens,
        form="gathered",
    )
    module = EstimatedAttention(sizes).eval()
    q, k, v = queries_keys_values(tokens, torch.float32)
    scaled = q * WIDTH**-0.5
    return lambda: module(scaled, k, v)


def dense(tokens: int) -> Callable[[], Tensor]:
    q, k, v = queries_keys_values(tokens, torch.float32)
    visible = visible_keys(tokens, tokens, causal=True, device=q.device)
    return lambda: softmax_attention_reference(q, k, v, visible=visible)


@torch.no_grad()
def memory() -> Outcome:
    ours, theirs = attention(4096), dense(4096)
    ratio = peak_bytes(ours, warmup=1) / (peak := peak_bytes(theirs))
    what = f"peak memory of SEA (k {KEPT}, K {COLUMNS}) / dense causal attention, forward, float32, 4,096 tokens"
    return at_most("sea memory 4096", what, ratio, 0.5, detail=f"dense: {peak / 2**20:.0f} MiB")


@torch.no_grad()
def growth() -> Outcome:
    contestants = {str(tokens): attention(tokens) for tokens in LENGTHS}
    times = race(contestants, rounds=3)
    seconds = [times.minimum_s[str(tokens)] for tokens in LENGTHS]
    shown = ", ".join(f"{tokens}: {second:.2f} s" for tokens, second in zip(LENGTHS, seconds, strict=True))
    what = f"exponent of the time from {LENGTHS[0]:,} to {LENGTHS[-1]:,} tokens, forward, float32"
    return at_most("sea growth", what, growth_exponent(LENGTHS, seconds), 1.2, unit="", detail=shown)


@torch.no_grad()
def against_sdpa() -> Outcome:
    """Reported, without a target: the outcome says whether it is faster."""
    tokens = 8192
    q, k, v = queries_keys_values(tokens, torch.float32)
    times = race({"sea": attention(tokens), "sdpa": lambda: sdpa(q, k, v, is_causal=True)}, rounds=3)
    ratio = times.ratio("sea", "sdpa")
    return Outcome(
        name="sea time 8192",
        what=f"SEA (k {KEPT}, K {COLUMNS}) / causal SDPA, forward, float32, 8,192 tokens, {HEADS} heads of {WIDTH}",
        value=ratio,
        measured=f"{ratio:.2f}x",
        target="reported",
        met=True,
        detail=f"{times.median_s['sea']:.2f} s / {times.median_s['sdpa']:.2f} s",
    )


def races() -> Iterator[Outcome]:
    yield memory()
    yield growth()
    yield against_sdpa()
