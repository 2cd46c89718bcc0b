"""HiP attention against fused causal attention: prefill at long lengths, decoding, and the block-sparse products alone.

Prefill: 2 heads of 64, k = 512, blocks of 64 queries. The block-sparse operator is timed against matrix products of the
sizes that it cannot do without, at the speed that this machine multiplies large matrices with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from harness import Outcome, at_least, at_most, short
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from regard.layers.hip_state import HiPState, empty_hip_state
from regard.measure import growth_exponent, one_thread, race
from regard.ops.block_sparse import block_sparse_attention, block_sparse_macs
from regard.ops.hip import HiPSizes, hip_attention, hip_choice

HEADS, WIDTH = 2, 64
SIZES = HiPSizes(mask_k=512, block_q=64, block_k=2, window=256, sinks=16)
PREFILL_TARGETS = {16384: 1.0, 32768: 3.0}
DECODED = 131072
REFRESH = 8


def tensors(tokens: int, dtype: torch.dtype, *, heads: int = HEADS) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    q, k, v = (torch.randn(1, heads, tokens, WIDTH, generator=generator).to(dtype) for _ in range(3))
    return q, k, v


def prefill(dtype: torch.dtype) -> Iterator[Outcome]:
    seconds = {}
    for tokens, target in PREFILL_TARGETS.items():
        q, k, v = tensors(tokens, dtype)
        times = race(
            {
                "hip": lambda q=q, k=k, v=v: hip_attention(q, k, v, SIZES),  # type: ignore[misc]
                "sdpa": lambda q=q, k=k, v=v: sdpa(q, k, v, is_causal=True),  # type: ignore[misc]
            },
            rounds=3,
        )
        seconds[tokens] = times.median_s["hip"]
        what = f"causal SDPA / HiP (k 512, blocks of 64), forward, {short(dtype)}, {tokens:,} tokens, {HEADS} heads"
        detail = f"{times.median_s['hip']:.2f} s / {times.median_s['sdpa']:.2f} s"
        yield at_least(f"hip prefill {tokens} {short(dtype)}", what, times.ratio("sdpa", "hip"), target, detail=detail)
    exponent = growth_exponent(list(seconds), list(seconds.values()))
    what = f"exponent of HiP's prefill time from 16,384 to 32,768 tokens, {short(dtype)}"
    yield at_most(f"hip growth {short(dtype)}", what, exponent, 1.3, unit="")


class Decoder:
    """Single tokens, one after the other, behind a long cache that keeps its length."""

    def __init__(self, dtype: torch.dtype) -> None:
        q, k, v = tensors(DECODED, dtype)
        empty = empty_hip_state(
            1, SIZES, num_heads=HEADS, num_kv_heads=HEADS, head_dim=WIDTH, max_len=DECODED + 4096, like=q
        )
        self._state: HiPState = empty.advance(q, k, v, SIZES, refresh=REFRESH)[1]
        self._tokens = tuple(x[:, :, :1] for x in (q, k, v))

    def step(self) -> Tensor:
        """As many tokens as there are between two searches, the search included."""
        q, k, v = self._tokens
        for _ in range(REFRESH):
            mixed, self._state = self._state.advance(q, k, v, SIZES, refresh=REFRESH)
        return mixed


def decoding(dtype: torch.dtype) -> Outcome:
    decoder = Decoder(dtype)
    q, k, v = tensors(DECODED, dtype)

    def dense() -> Tensor:
        for _ in range(REFRESH):
            mixed = sdpa(q[:, :, :1], k, v)
        return mixed

    times = race({"hip": decoder.step, "dense": dense}, rounds=15)
    what = (
        f"dense row / HiP's decoding step (a search every {REFRESH}), {short(dtype)}, {DECODED:,} keys, {HEADS} heads"
    )
    detail = ", ".join(f"{name} {value / REFRESH * 1e3:.2f} ms" for name, value in times.median_s.items())
    return at_least(f"hip decode {short(dtype)}", what, times.ratio("dense", "hip"), 5.0, detail=detail)


def peak_macs_per_second(dtype: torch.dtype) -> float:
    """What a product of large matrices attains."""
    left, right = torch.randn(1024, 1024).to(dtype), torch.randn(1024, 1024).to(dtype)
    times = race({"product": lambda: left @ right}, rounds=9)
    return 1024**3 / times.minimum_s["product"]


def products(dtype: torch.dtype) -> Outcome:
    tokens = 16384
    q, k, v = tensors(tokens, dtype)
    choice, first = hip_choice(q, k, SIZES, first=0), torch.zeros(1, dtype=torch.int64)
    reach = SIZES.reach(tokens)
    attend: Callable[[], Tensor] = lambda: block_sparse_attention(q, k, v, choice, reach, first=first)  # noqa: E731
    times = race({"operator": attend}, rounds=5)
    kept = HEADS * block_sparse_macs(
        blocks=tokens // 64, block_q=64, chosen=512, reach=reach, head_dim=WIDTH, value_dim=WIDTH
    )
    least = kept / peak_macs_per_second(dtype)
    what = f"block-sparse attention / its kept products at the speed of a 1,024 x 1,024 product, {short(dtype)}"
    detail = f"{times.minimum_s['operator'] * 1e3:.0f} ms / {least * 1e3:.0f} ms, {tokens:,} tokens"
    ratio = times.minimum_s["operator"] / least
    return at_most(f"block sparse products {short(dtype)}", what, ratio, 1.5, detail=detail)


def races() -> Iterator[Outcome]:
    with torch.no_grad(), one_thread():
        for dtype in (torch.float32, torch.bfloat16):
            yield from prefill(dtype)
            yield decoding(dtype)
            yield products(dtype)
