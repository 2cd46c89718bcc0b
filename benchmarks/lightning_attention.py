"""Lightning attention against SDPA, against itself at another length, and against flash-linear-attention."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from types import ModuleType

import torch
from harness import HEADS, Outcome, at_least, at_most, queries_keys_values, short
from torch.nn.functional import scaled_dot_product_attention as sdpa

from regard.measure import growth_exponent, peak_bytes, race
from regard.ops.linear_attention import linear_attention

SLOPES = tuple(2.0 ** -(head + 1) for head in range(HEADS))
DTYPES = (torch.float32, torch.bfloat16)


def peer(path: str) -> ModuleType:
    """A plain reference file of flash-linear-attention, loaded by itself: the package needs a GPU to be imported."""
    package = importlib.util.find_spec("fla")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("flash-linear-attention is not installed: make bench")
    file = f"{package.submodule_search_locations[0]}/ops/{path}/naive.py"
    spec = importlib.util.spec_from_file_location(f"fla_{path}_naive", file)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"flash-linear-attention has no {file}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def forward(dtype: torch.dtype) -> Outcome:
    q, k, v = queries_keys_values(16_384, dtype)
    with torch.no_grad():
        times = race(
            {
                "sdpa": lambda: sdpa(q, k, v, is_causal=True),
                "ours": lambda: linear_attention(q, k, v, slopes=SLOPES),
            },
            rounds=3,
        )
    what = f"causal SDPA / lightning, forward, {short(dtype)}, 16,384 tokens, 8 heads of 64"
    detail = f"{times.median_s['sdpa']:.2f} s / {times.median_s['ours']:.3f} s"
    return at_least(f"lightning forward {short(dtype)}", what, times.ratio("sdpa", "ours"), 20, detail=detail)


def training(dtype: torch.dtype) -> Outcome:
    q, k, v = queries_keys_values(4096, dtype, gradients=True)
    upstream = torch.randn_like(q)
    times = race(
        {
            "sdpa": lambda: torch.autograd.grad(sdpa(q, k, v, is_causal=True), (q, k, v), upstream),
            "ours": lambda: torch.autograd.grad(linear_attention(q, k, v, slopes=SLOPES), (q, k, v), upstream),
        },
        rounds=5,
    )
    what = f"causal SDPA / lightning, forward and backward, {short(dtype)}, 4,096 tokens"
    return at_least(f"lightning training {short(dtype)}", what, times.ratio("sdpa", "ours"), 5)


def per_token(dtype: torch.dtype) -> Outcome:
    long, brief = queries_keys_values(16_384, dtype), queries_keys_values(2048, dtype)
    with torch.no_grad():
        times = race(
            {
                "long": lambda: linear_attention(*long, slopes=SLOPES),
                "brief": lambda: linear_attention(*brief, slopes=SLOPES),
            },
            rounds=9,
        )
    what = f"time per token at 16,384 / at 2,048, forward, {short(dtype)}"
    return at_most(f"lightning per token {short(dtype)}", what, times.ratio("long", "brief") / 8, 1.5)


def against_peer(tokens: int, dtype: torch.dtype, decay: bool) -> Outcome:
    """Their layout is (batch, tokens, heads, width); the transposition is left out of the race."""
    q, k, v = queries_keys_values(tokens, dtype)
    theirs = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
    rates = -torch.tensor(SLOPES).expand(1, tokens, HEADS).contiguous()
    gla, plain = peer("simple_gla").naive_chunk_simple_gla, peer("linear_attn").naive_chunk_linear_attn
    run = {
        True: lambda: gla(*theirs, rates, scale=1.0),
        False: lambda: plain(*theirs, scale=1.0, normalize=False),
    }[decay]
    with torch.no_grad():
        slopes = SLOPES if decay else None
        result = run()
        expected = (result[0] if isinstance(result, tuple) else result).transpose(1, 2).float()
        error = (linear_attention(q, k, v, slopes=slopes).float() - expected).norm() / expected.norm()
        assert error < 0.02, f"the peer computes something else: relative error {error:.3f}"
        times = race({"theirs": run, "ours": lambda: linear_attention(q, k, v, slopes=slopes)}, rounds=7)
    kind = "decay" if decay else "no decay"
    what = f"fla naive.py chunked / lightning, {kind}, forward, {short(dtype)}, {tokens} tokens"
    return at_least(f"lightning peer {kind} {tokens} {short(dtype)}", what, times.ratio("theirs", "ours"), 1.0)


def memory() -> Outcome:
    lengths = (4096, 8192, 16_384, 32_768)
    peaks = []
    with torch.no_grad():
        for tokens in lengths:
            q, k, v = queries_keys_values(tokens, torch.float32)
            peaks.append(peak_bytes(lambda q=q, k=k, v=v: linear_attention(q, k, v, slopes=SLOPES)))
    shown = ", ".join(f"{peak / 2**20:.0f} MiB" for peak in peaks)
    exponent = growth_exponent(lengths, peaks)
    what = "exponent of peak extra memory, forward, float32, 4,096 to 32,768 tokens"
    return at_most("lightning memory", what, exponent, 1.1, unit="", detail=shown)


def races() -> Iterator[Outcome]:
    for dtype in DTYPES:
        yield forward(dtype)
        yield training(dtype)
        yield per_token(dtype)
        for tokens in (1024, 4096, 16_384):
            for decay in (True, False):
                yield against_peer(tokens, dtype, decay)
    yield memory()
