"""Lightning attention's Triton kernels against SDPA's flash kernel and against flash-linear-attention, on a GPU.

Without a GPU that the kernels take, nothing is raced, and the reason is printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from harness import Outcome, at_least, at_most
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

from regard.measure import growth_exponent, peak_bytes, race
from regard.ops.linear_attention import Backend, linear_attention
from regard.ops.triton import available

BATCH, HEADS, WIDTH = 4, 32, 128
"""The paper's sizes."""
LENGTHS = (1024, 4096, 8192, 32_768)
LAYERS = 24
DTYPE = torch.bfloat16
ROUNDS, WARMUP = 15, 3


def paper_slopes(layer: int) -> tuple[float, ...]:
    """The decay of flash-linear-attention's lightning form: heads from 0, so that the first one does not decay."""
    return tuple(8 / HEADS * (1 - layer / LAYERS) * head for head in range(HEADS))


SLOPES = paper_slopes(0)


def inputs(tokens: int, *, gradients: bool = False) -> list[Tensor]:
    generator = torch.Generator(device="cuda").manual_seed(tokens)
    shape = (BATCH, HEADS, tokens, WIDTH)
    made = [torch.randn(shape, generator=generator, device="cuda", dtype=DTYPE) for _ in range(3)]
    made[1] *= WIDTH**-0.5
    return [x.requires_grad_(gradients) for x in made]


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return sdpa(q, k, v, is_causal=True)


def ours(q: Tensor, k: Tensor, v: Tensor, *, backend: Backend = "triton") -> Tensor:
    return linear_attention(q, k, v, slopes=SLOPES, backend=backend)


def with_gradients(form: Callable[..., Tensor], leaves: list[Tensor]) -> Callable[[], object]:
    upstream = torch.randn_like(leaves[2])
    return lambda: torch.autograd.grad(form(*leaves), leaves, upstream)


def against_flash(tokens: int, *, training: bool) -> Outcome:
    """The target is the paper's claim at 32,768 tokens; below, the ratio is reported against 0."""
    leaves = inputs(tokens, gradients=training)
    if training:
        contestants = {"flash": with_gradients(flash, leaves), "ours": with_gradients(ours, leaves)}
    else:
        contestants = {"flash": lambda: flash(*leaves), "ours": lambda: ours(*leaves)}
    times = race(contestants, rounds=ROUNDS, warmup=WARMUP)
    kind = "forward and backward" if training else "forward"
    detail = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in times.median_s.items())
    what = f"SDPA flash / lightning kernels, {kind}, bfloat16, {tokens} tokens, batch 4, 32 heads of 128"
    target = 3 if tokens == 32_768 else 0
    return at_least(f"lightning gpu {kind} {tokens}", what, times.ratio("flash", "ours"), target, detail=detail)


def against_torch(tokens: int) -> Outcome:
    leaves = inputs(tokens, gradients=True)
    contestants = {
        "torch": with_gradients(lambda q, k, v: ours(q, k, v, backend="torch"), leaves),
        "ours": with_gradients(ours, leaves),
    }
    times = race(contestants, rounds=ROUNDS, warmup=WARMUP)
    what = f"PyTorch block form / lightning kernels, forward and backward, bfloat16, {tokens} tokens"
    return at_least(f"lightning gpu torch {tokens}", what, times.ratio("torch", "ours"), 1)


def against_fla(tokens: int, *, name: str, training: bool) -> Outcome:
    """Their layout is (batch, tokens, heads, width); the transposition is left out of the race."""
    from fla.ops.lightning_attn import chunk_lightning_attn
    from fla.ops.simple_gla import chunk_simple_gla

    leaves = inputs(tokens, gradients=training)
    theirs = [x.detach().transpose(1, 2).contiguous().requires_grad_(training) for x in leaves]
    rates = -torch.tensor(SLOPES, device="cuda")

    def peer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if name == "chunk_lightning_attn":
            return chunk_lightning_attn(q, k, v, layer_idx=0, num_layers=LAYERS, scale=1.0)[0]
        return chunk_simple_gla(q, k, v, g_gamma=rates, scale=1.0)[0]

    with torch.no_grad():
        expected = ours(*leaves).float()
        error = (peer(*theirs).transpose(1, 2).float() - expected).norm() / expected.norm()
    assert error < 0.02, f"the peer computes something else: relative error {float(error):.3f}"
    if training:
        contestants = {"theirs": with_gradients(peer, theirs), "ours": with_gradients(ours, leaves)}
    else:
        contestants = {"theirs": lambda: peer(*theirs), "ours": lambda: ours(*leaves)}
    with torch.set_grad_enabled(training):
        times = race(contestants, rounds=ROUNDS, warmup=WARMUP)
    kind = "forward and backward" if training else "forward"
    what = f"fla {name} / lightning kernels, {kind}, bfloat16, {tokens} tokens, batch 4, 32 heads of 128"
    detail = ", ".join(f"{who} {1e3 * seconds:.2f} ms" for who, seconds in times.median_s.items())
    ratio = times.ratio("theirs", "ours")
    return at_least(f"lightning gpu {name} {kind} {tokens}", what, ratio, 1, detail=detail)


def growth() -> Iterator[Outcome]:
    seconds, peaks = [], []
    for tokens in LENGTHS:
        leaves = inputs(tokens, gradients=True)
        run = with_gradients(ours, leaves)
        seconds.append(race({"ours": run}, rounds=ROUNDS, warmup=WARMUP).median_s["ours"])
        peaks.append(peak_bytes(run, device="cuda", warmup=1))
    span = f"forward and backward, {LENGTHS[0]} to {LENGTHS[-1]} tokens"
    per_token = seconds[-1] / LENGTHS[-1] / (seconds[0] / LENGTHS[0])
    shown = ", ".join(f"{1e3 * each:.2f} ms" for each in seconds)
    yield at_most(
        "lightning gpu per token", f"time per token at the longest / the shortest, {span}", per_token, 1.1, detail=shown
    )
    shown = ", ".join(f"{peak / 2**20:.0f} MiB" for peak in peaks)
    exponent = growth_exponent(LENGTHS, peaks)
    yield at_most("lightning gpu memory", f"exponent of peak memory, {span}", exponent, 1.1, unit="", detail=shown)


def races() -> Iterator[Outcome]:
    can = available()
    if not can:
        print(f"lightning on a GPU is not raced: {can.reason}")
        return
    for training in (False, True):
        for tokens in LENGTHS:
            yield against_flash(tokens, training=training)
            for name in ("chunk_lightning_attn", "chunk_simple_gla"):
                yield against_fla(tokens, name=name, training=training)
    yield against_torch(8192)
    yield from growth()
