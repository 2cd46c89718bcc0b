"""URPE attention against SDPA with the same Toeplitz bias, which has no factors: time, reported without a target."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from harness import HEADS, WIDTH, Outcome, queries_keys_values
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from regard.measure import race
from regard.ops.toeplitz import toeplitz
from regard.ops.urpe import urpe_attention


def leaves(tokens: int, *, gradients: bool) -> tuple[Tensor, ...]:
    """Queries, keys, values, and numbers of all distances for biases and factors."""
    generator = torch.Generator().manual_seed(tokens)
    tables = (torch.randn(HEADS, 2 * tokens - 1, generator=generator).requires_grad_(gradients) for _ in range(2))
    return *queries_keys_values(tokens, torch.float32, gradients=gradients), *tables


def forms(tokens: int, *, gradients: bool) -> dict[str, Callable[[], object]]:
    """SDPA is given the bias as a map, made from the same vector in every turn."""
    q, k, v, biases, factors = leaves(tokens, gradients=gradients)

    def ours() -> Tensor:
        return urpe_attention(q, k, v, factors=factors, biases=biases)

    def theirs() -> Tensor:
        return sdpa(q, k, v, attn_mask=toeplitz(biases, tokens)[None])

    if not gradients:
        return {"urpe": ours, "sdpa": theirs}
    return {
        "urpe": lambda: torch.autograd.grad(ours().sum(), (q, k, v, biases, factors)),
        "sdpa": lambda: torch.autograd.grad(theirs().sum(), (q, k, v, biases)),
    }


def against_sdpa(tokens: int, *, gradients: bool) -> Outcome:
    with torch.set_grad_enabled(gradients):
        times = race(forms(tokens, gradients=gradients), rounds=5)
    ratio, passes = times.ratio("urpe", "sdpa"), "forward and backward" if gradients else "forward"
    return Outcome(
        name=f"urpe {'training' if gradients else 'forward'} {tokens}",
        what=f"URPE / SDPA with the same bias, {passes}, float32, {tokens:,} tokens, {HEADS} heads of {WIDTH}",
        value=ratio,
        measured=f"{ratio:.2f}x",
        target="reported",
        met=True,
        detail=f"{times.median_s['urpe'] * 1e3:.0f} ms / {times.median_s['sdpa'] * 1e3:.0f} ms",
    )


def races() -> Iterator[Outcome]:
    for tokens in (512, 2048):
        yield against_sdpa(tokens, gradients=False)
        yield against_sdpa(tokens, gradients=True)
