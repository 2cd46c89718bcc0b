"""Aaren against attention with a preallocated cache, token by token, and against causal SDPA, all tokens at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from harness import HEADS, WIDTH, Outcome, at_least, at_most, queries_keys_values, short
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from regard.contract import SequenceMixer
from regard.measure import race
from regard.mixers.sequence.aaren import AarenAttention
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.ops.prefix_softmax import prefix_softmax

DTYPES = (torch.float32, torch.bfloat16)


def mixers(dim: int, heads: int, dtype: torch.dtype) -> dict[str, SequenceMixer]:
    made = {
        "ours": AarenAttention(dim, num_heads=heads),
        "softmax": SoftmaxAttention(dim, num_heads=heads, causal=True, qkv_bias=True),
    }
    return {name: mixer.to(dtype) for name, mixer in made.items()}


def streaming(dtype: torch.dtype) -> Outcome:
    tokens = torch.randn(1, 8192, 128).to(dtype).split(1, dim=1)

    def stream(mixer: SequenceMixer) -> None:
        state = mixer.init_state(1, max_len=len(tokens))
        for token in tokens:
            _, state = mixer.step(token, state)

    contestants = mixers(128, 4, dtype)
    with torch.no_grad():
        runs = {name: lambda mixer=mixer: stream(mixer.eval()) for name, mixer in contestants.items()}
        times = race(runs, rounds=3, warmup=0)
    what = (
        f"aaren / attention with a preallocated cache, 8,192 tokens one by one, {short(dtype)}, D 128, H 4, one layer"
    )
    seconds = times.median_s
    detail = f"{seconds['ours']:.2f} s / {seconds['softmax']:.2f} s"
    ratio = times.ratio("ours", "softmax")
    return at_most(f"aaren streaming {short(dtype)}", what, ratio, 0.2, detail=detail)


def parallel(dtype: torch.dtype) -> Outcome:
    """Ours takes the keys and one query per head, SDPA a query per token: neither has projections."""
    q, k, v = queries_keys_values(4096, dtype)
    query = torch.randn(HEADS, WIDTH, 1).to(dtype)

    def ours() -> Tensor:
        scores = (k @ query).squeeze(-1).float() * WIDTH**-0.5
        return prefix_softmax(scores, v)

    with torch.no_grad():
        times = race({"sdpa": lambda: sdpa(q, k, v, is_causal=True), "ours": ours}, rounds=7)
    what = f"causal SDPA / aaren (scores and scan), forward, {short(dtype)}, 4,096 tokens, 8 heads of 64"
    seconds = times.median_s
    detail = f"{seconds['sdpa'] * 1e3:.0f} ms / {seconds['ours'] * 1e3:.1f} ms"
    return at_least(f"aaren parallel {short(dtype)}", what, times.ratio("sdpa", "ours"), 2.5, detail=detail)


def training(dtype: torch.dtype) -> Outcome:
    x = torch.randn(1, 4096, 512).to(dtype).requires_grad_()
    upstream = torch.randn_like(x)

    def train(mixer: SequenceMixer) -> None:
        mixer.zero_grad()
        mixer(x).backward(upstream)

    runs = {name: lambda mixer=mixer: train(mixer) for name, mixer in mixers(512, 8, dtype).items()}
    times = race(runs, rounds=5)
    what = f"aaren / causal softmax, whole mixers, forward and backward, {short(dtype)}, 4,096 tokens, 8 heads of 64"
    seconds = times.median_s
    detail = f"{seconds['ours']:.3f} s / {seconds['softmax']:.3f} s"
    ratio = times.ratio("ours", "softmax")
    return at_most(f"aaren training {short(dtype)}", what, ratio, 1.0, detail=detail)


def races() -> Iterator[Outcome]:
    for dtype in DTYPES:
        yield streaming(dtype)
        yield parallel(dtype)
        yield training(dtype)
