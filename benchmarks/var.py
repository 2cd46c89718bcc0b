"""Decoding with redistributed attention against SDPA, in the shape of a 7B Llama and in the usual one; prompts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from harness import HEADS, WIDTH, Outcome, at_most, short
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from regard.measure import race
from regard.ops.redistributed_attention import redistributed_attention
from regard.ops.visual_sinks import SinkRule

DTYPES = (torch.float32, torch.bfloat16)
SHAPES = ((32, 128), (HEADS, WIDTH))
BEFORE, IMAGE, PROMPT = 35, 576, 704
SINKS = (0, 40, 101, 300)


def marks() -> tuple[Tensor, Tensor]:
    places = torch.arange(PROMPT)[None]
    return (places >= BEFORE) & (places < BEFORE + IMAGE), torch.isin(places, torch.tensor(SINKS))


def inputs(heads: int, width: int, queries: int, keys: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(keys)
    shapes = [(1, heads, tokens, width) for tokens in (queries, keys, keys)]
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


@torch.no_grad()
def decoding(heads: int, width: int, dtype: torch.dtype, keys: int = 4096) -> Outcome:
    q, k, v = inputs(heads, width, 1, keys, dtype)
    image, sinks = marks()

    def ours() -> Tensor:
        return redistributed_attention(q, k, v, SinkRule(), image=image, sinks=sinks, text_start=0)

    times = race({"ours": ours, "sdpa": lambda: sdpa(q, k, v)}, rounds=31, warmup=3)
    what = f"a decoding step / SDPA's, {short(dtype)}, {keys:,} keys, a prompt of {PROMPT}, {heads} heads of {width}"
    detail = (
        f"{times.median_s['ours'] * 1e3:.2f} ms / {times.median_s['sdpa'] * 1e3:.2f} ms; "
        f"of the shortest times {times.minimum_ratio('ours', 'sdpa'):.2f}x"
    )
    return at_most(
        f"var decoding {heads}x{width} {short(dtype)}", what, times.ratio("ours", "sdpa"), 1.15, detail=detail
    )


@torch.no_grad()
def prompt(dtype: torch.dtype) -> Outcome:
    """Reported, without a target."""
    q, k, v = inputs(32, 128, PROMPT, PROMPT, dtype)
    image, sinks = marks()

    def ours() -> Tensor:
        return redistributed_attention(q, k, v, SinkRule(), image=image, sinks=sinks, text_start=BEFORE + IMAGE)

    times = race({"ours": ours, "sdpa": lambda: sdpa(q, k, v, is_causal=True)}, rounds=7)
    ratio = times.ratio("ours", "sdpa")
    return Outcome(
        name=f"var prompt {short(dtype)}",
        what=f"a prompt of {PROMPT} tokens / causal SDPA, forward, {short(dtype)}, 32 heads of 128",
        value=ratio,
        measured=f"{ratio:.2f}x",
        target="reported",
        met=True,
        detail=f"{times.median_s['ours'] * 1e3:.0f} ms / {times.median_s['sdpa'] * 1e3:.0f} ms",
    )


def races() -> Iterator[Outcome]:
    for dtype in DTYPES:
        for heads, width in SHAPES:
            yield decoding(heads, width, dtype)
        yield prompt(dtype)
