"""Softmax attention against bare SDPA: the mixer's overhead in float32, and the blocked form in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from harness import HEADS, WIDTH, Outcome, at_least, at_most, queries_keys_values
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from regard import create
from regard.measure import race
from regard.ops.precision import NATIVE_BFLOAT16
from regard.ops.softmax_attention import softmax_attention

ROUNDS = {1024: 15, 2048: 9, 4096: 5}
WHY_NOT_BLOCKED = "" if NATIVE_BFLOAT16 else "this CPU emulates bfloat16 products: ours is SDPA, not the blocked form"


def mixer_overhead(tokens: int) -> Outcome:
    """The mixer against the same projections around a bare call."""
    dim = HEADS * WIDTH
    mixer = create("softmax", dim=dim, num_heads=HEADS, causal=True).eval()
    x = torch.randn(1, tokens, dim)

    def bare() -> Tensor:
        q, k, v = (
            project(x).view(1, tokens, HEADS, WIDTH).transpose(1, 2)
            for project in (mixer.q_proj, mixer.k_proj, mixer.v_proj)
        )
        return mixer.o_proj(sdpa(q, k, v, is_causal=True).transpose(1, 2).flatten(2))

    with torch.no_grad():
        times = race({"mixer": lambda: mixer(x), "bare": bare}, rounds=ROUNDS[tokens])
    what = f"mixer / bare SDPA with its projections, float32, causal, {tokens} tokens, dim {dim}"
    return at_most(f"softmax overhead {tokens}", what, times.ratio("mixer", "bare"), 1.05)


def blocked_forward(tokens: int) -> Outcome:
    q, k, v = queries_keys_values(tokens, torch.bfloat16)
    with torch.no_grad():
        times = race(
            {
                "sdpa": lambda: sdpa(q, k, v, is_causal=True),
                "ours": lambda: softmax_attention(q, k, v, causal=True),
            },
            rounds=ROUNDS[tokens],
        )
    what = f"SDPA / ours, forward, bfloat16, causal, {tokens} tokens, 8 heads of 64"
    return at_least(f"softmax bfloat16 {tokens}", what, times.ratio("sdpa", "ours"), 2.0, detail=WHY_NOT_BLOCKED)


def blocked_training(tokens: int) -> Outcome:
    q, k, v = queries_keys_values(tokens, torch.bfloat16, gradients=True)
    upstream = torch.randn_like(q)
    times = race(
        {
            "sdpa": lambda: torch.autograd.grad(sdpa(q, k, v, is_causal=True), (q, k, v), upstream),
            "ours": lambda: torch.autograd.grad(softmax_attention(q, k, v, causal=True), (q, k, v), upstream),
        },
        rounds=max(3, ROUNDS[tokens] // 2),
    )
    what = f"SDPA / ours, forward and backward, bfloat16, causal, {tokens} tokens, 8 heads of 64"
    return at_least(
        f"softmax bfloat16 training {tokens}", what, times.ratio("sdpa", "ours"), 1.5, detail=WHY_NOT_BLOCKED
    )


def blocked_error(tokens: int) -> Outcome:
    q, k, v = queries_keys_values(tokens, torch.bfloat16)
    truth = sdpa(q.double(), k.double(), v.double(), is_causal=True)
    ours = float((softmax_attention(q, k, v, causal=True).double() - truth).norm())
    theirs = float((sdpa(q, k, v, is_causal=True).double() - truth).norm())
    what = f"error against float64, ours / SDPA's, bfloat16, causal, {tokens} tokens"
    return at_most(f"softmax bfloat16 error {tokens}", what, ours / theirs, 1.5)


def races() -> Iterator[Outcome]:
    yield mixer_overhead(1024)
    yield mixer_overhead(4096)
    for tokens in (1024, 2048, 4096):
        yield blocked_forward(tokens)
        yield blocked_training(tokens)
    yield blocked_error(2048)
