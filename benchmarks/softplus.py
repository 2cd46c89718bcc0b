"""Softplus attention: the blocked form against the eager one and against SDPA, in time and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from harness import Outcome, at_least, at_most, queries_keys_values, short
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from regard.measure import peak_bytes, race
from regard.ops.softplus_attention import softplus_attention, softplus_attention_reference
from regard.ops.visibility import visible_keys

POWER = 15
ROUNDS = {1024: 9, 4096: 3}
DTYPES = (torch.float32, torch.bfloat16)


def forms(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The blocked and the eager form of LSSAR, and causal SDPA."""
    visible = visible_keys(q.shape[2], k.shape[2], causal=True, device=q.device)
    return {
        "blocked": lambda: softplus_attention(q, k, v, visible="past", power=POWER),
        "eager": lambda: softplus_attention_reference(q, k, v, visible=visible, power=POWER),
        "sdpa": lambda: sdpa(q, k, v, is_causal=True),
    }


def forward(tokens: int, dtype: torch.dtype) -> Outcome:
    raced = forms(*queries_keys_values(tokens, dtype))
    with torch.no_grad():
        times = race(raced, rounds=ROUNDS[tokens])
    what = f"eager / blocked LSSAR (p = {POWER}), forward, {short(dtype)}, causal, {tokens} tokens, 8 heads of 64"
    detail = f"blocked / SDPA {times.ratio('blocked', 'sdpa'):.2f}x"
    return at_least(
        f"softplus forward {tokens} {short(dtype)}", what, times.ratio("eager", "blocked"), 1.0, detail=detail
    )


def training(tokens: int, dtype: torch.dtype) -> Outcome:
    q, k, v = queries_keys_values(tokens, dtype, gradients=True)
    upstream = torch.randn_like(q)
    raced = {
        name: (lambda run=run: torch.autograd.grad(run(), (q, k, v), upstream)) for name, run in forms(q, k, v).items()
    }
    times = race(raced, rounds=max(3, ROUNDS[tokens] // 2))
    what = f"eager / blocked LSSAR (p = {POWER}), forward and backward, {short(dtype)}, causal, {tokens} tokens"
    detail = f"blocked / SDPA {times.ratio('blocked', 'sdpa'):.2f}x"
    return at_least(
        f"softplus training {tokens} {short(dtype)}", what, times.ratio("eager", "blocked"), 1.0, detail=detail
    )


def memory(tokens: int, *, gradients: bool) -> Outcome:
    """One head, so that the eager form fits."""
    q, k, v = (x[:, :1].detach().clone() for x in queries_keys_values(tokens, torch.float32))
    for x in (q, k, v):
        x.requires_grad_(gradients)
    raced = forms(q, k, v)

    def peak(name: str) -> int:
        if not gradients:
            return peak_bytes(raced[name])
        return peak_bytes(lambda: torch.autograd.grad(raced[name]().sum(), (q, k, v)))

    # a call first keeps one-time costs out of both figures
    raced["blocked"]()
    blocked, eager = peak("blocked"), peak("eager")
    kind = "forward and backward" if gradients else "forward"
    what = f"peak memory, blocked / eager LSSAR (p = {POWER}), {kind}, float32, causal, {tokens} tokens, one head of 64"
    detail = f"{blocked / 2**20:.0f} MiB / {eager / 2**20:.0f} MiB"
    return at_most(f"softplus memory {kind}", what, blocked / eager, 0.25, detail=detail)


def races() -> Iterator[Outcome]:
    for dtype in DTYPES:
        for tokens in ROUNDS:
            yield forward(tokens, dtype)
        yield training(1024, dtype)
    yield memory(8192, gradients=False)
    yield memory(8192, gradients=True)
