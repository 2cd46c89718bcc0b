"""HiP's Triton kernels against SDPA's flash kernel, FlexAttention and our gathered form, on a GPU.

Without a GPU that the kernels take, nothing is raced, and the reason is printed. FlexAttention has the same mask, made
of the same choice: its blocks are 128 by 128, so that there both sides choose blocks of 128 keys for 128 queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from harness import Outcome, at_least, at_most
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention as sdpa

from regard.measure import growth_exponent, peak_bytes, race
from regard.ops.backend import Backend
from regard.ops.block_sparse import BlockChoice, Reach, block_sparse_attention
from regard.ops.hip import HiPSizes, hip_attention, hip_choice
from regard.ops.hip_search import search_key_blocks
from regard.ops.triton import available

BATCH, HEADS, WIDTH = 1, 32, 128
LENGTHS = (8192, 32_768, 131_072)
SIZES = HiPSizes(mask_k=512, block_q=64, block_k=2, window=256, sinks=16)
WIDE = HiPSizes(mask_k=1024, block_q=128, block_k=128, window=256, sinks=16)
FLEX_BLOCK = 128
DTYPE = torch.bfloat16
ROUNDS, WARMUP = 15, 3


def inputs(tokens: int, *, gradients: bool = False) -> list[Tensor]:
    generator = torch.Generator(device="cuda").manual_seed(tokens)
    shape = (BATCH, HEADS, tokens, WIDTH)
    made = [torch.randn(shape, generator=generator, device="cuda", dtype=DTYPE) for _ in range(3)]
    return [x.requires_grad_(gradients) for x in made]


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return sdpa(q, k, v, is_causal=True)


def hip(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return hip_attention(q, k, v, SIZES)


def with_gradients(form: Callable[..., Tensor], leaves: list[Tensor]) -> Callable[[], object]:
    upstream = torch.randn_like(leaves[0])
    return lambda: torch.autograd.grad(form(*leaves), leaves, upstream)


def against_flash(tokens: int, *, training: bool) -> Outcome:
    """Search and attention against full causal attention; below 131,072 tokens the ratio is reported against 0."""
    leaves = inputs(tokens, gradients=training)
    if training:
        contestants = {"flash": with_gradients(flash, leaves), "hip": with_gradients(hip, leaves)}
    else:
        contestants = {"flash": lambda: flash(*leaves), "hip": lambda: hip(*leaves)}
    times = race(contestants, rounds=ROUNDS, warmup=WARMUP)
    kind = "forward and backward" if training else "forward"
    detail = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in times.median_s.items())
    what = f"SDPA flash / HiP kernels, {kind}, bfloat16, {tokens:,} tokens, {HEADS} heads of {WIDTH}"
    target = 3 if tokens == LENGTHS[-1] else 0
    return at_least(f"hip gpu {kind} {tokens}", what, times.ratio("flash", "hip"), target, detail=detail)


def decoding(tokens: int) -> Outcome:
    """One query with a search of its own against the whole row."""
    q, k, v = inputs(tokens)
    last = q[:, :, -1:]
    contestants = {
        "dense": lambda: sdpa(last, k, v),
        "hip": lambda: hip_attention(last, k, v, SIZES.for_single_queries(1), first=tokens - 1),
    }
    times = race(contestants, rounds=ROUNDS, warmup=WARMUP)
    detail = ", ".join(f"{name} {1e3 * seconds:.3f} ms" for name, seconds in times.median_s.items())
    what = f"SDPA's row / HiP kernels, one query that searches, bfloat16, {tokens:,} keys, {HEADS} heads of {WIDTH}"
    return at_least(f"hip gpu decoding {tokens}", what, times.ratio("dense", "hip"), 1, detail=detail)


# --------------------------------------------------------------------------------------------- FlexAttention


def flex_mask(choice: BlockChoice, reach: Reach, *, tokens: int) -> BlockMask:
    """What `block_sparse_attention` shows from the first token on, for FlexAttention; lengths are whole blocks."""
    batch, heads, blocks, room = choice.starts.shape
    device = choice.starts.device
    held = torch.arange(room, device=device) < choice.counts[..., None]
    spare = (choice.starts // FLEX_BLOCK).masked_fill(~held, blocks)
    chosen = torch.zeros(batch, heads, blocks, blocks + 1, dtype=torch.bool, device=device).scatter_(-1, spare, True)
    chosen = chosen[..., :blocks].contiguous()
    row, column = torch.arange(blocks, device=device)[:, None], torch.arange(blocks, device=device)
    near = (column + 1) * FLEX_BLOCK > row * FLEX_BLOCK - reach.window + 1
    visible = (chosen | near | (column * FLEX_BLOCK < reach.sinks)) & (column <= row)

    def shows(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        of_choice = chosen[b, h, query // FLEX_BLOCK, key // FLEX_BLOCK]
        return (of_choice | (key > query - reach.window) | (key < reach.sinks)) & (key <= query)

    return BlockMask.from_kv_blocks(
        visible.sum(dim=-1).int(),
        visible.int().argsort(dim=-1, descending=True, stable=True).int(),
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=shows,
        seq_lengths=(tokens, tokens),
    )


def against_flex(tokens: int, *, training: bool) -> Outcome:
    """The attention alone, both with the same keys; the making of FlexAttention's mask is left out of the race."""
    leaves = inputs(tokens, gradients=training)
    choice = hip_choice(*leaves[:2], WIDE, first=0)
    reach, first = WIDE.reach(tokens), torch.zeros(BATCH, dtype=torch.int64, device="cuda")
    mask = flex_mask(choice, reach, tokens=tokens)
    compiled = torch.compile(flex_attention)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return block_sparse_attention(q, k, v, choice, reach, first=first, backend="triton")

    def flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return compiled(q, k, v, block_mask=mask)

    with torch.no_grad():
        expected = ours(*leaves).float()
        error = (flex(*leaves).float() - expected).norm() / expected.norm()
    assert error < 0.02, f"FlexAttention computes something else: relative error {float(error):.3f}"
    if training:
        contestants = {"flex": with_gradients(flex, leaves), "ours": with_gradients(ours, leaves)}
    else:
        contestants = {"flex": lambda: flex(*leaves), "ours": lambda: ours(*leaves)}
    with torch.set_grad_enabled(training):
        times = race(contestants, rounds=ROUNDS, warmup=WARMUP)
    kind = "forward and backward" if training else "forward"
    detail = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in times.median_s.items())
    what = f"FlexAttention / block-sparse kernels, {kind}, 8 blocks of 128 keys, bfloat16, {tokens:,} tokens"
    return at_least(f"hip gpu flex {kind} {tokens}", what, times.ratio("flex", "ours"), 1, detail=detail)


# ------------------------------------------------------------------------------------- the forms in PyTorch


def against_torch(tokens: int) -> Iterator[Outcome]:
    """Kernels against what runs where there are none, each by itself."""
    leaves = inputs(tokens, gradients=True)
    q, k, _ = leaves
    choice = hip_choice(q, k, SIZES, first=0)
    reach, first = SIZES.reach(tokens), torch.zeros(BATCH, dtype=torch.int64, device="cuda")

    def search(backend: Backend) -> Callable[[], object]:
        sizes = {"mask_k": SIZES.mask_k, "block_q": SIZES.block_q, "block_k": SIZES.block_k, "window": SIZES.window}
        return lambda: search_key_blocks(q, k, first=0, backend=backend, **sizes)

    def attend(backend: Backend) -> Callable[[], object]:
        form = lambda q, k, v: block_sparse_attention(q, k, v, choice, reach, first=first, backend=backend)  # noqa: E731
        return with_gradients(form, leaves)

    for name, make in (("search", search), ("attention, forward and backward", attend)):
        times = race({"torch": make("torch"), "ours": make("triton")}, rounds=5, warmup=1)
        detail = ", ".join(f"{who} {1e3 * seconds:.2f} ms" for who, seconds in times.median_s.items())
        what = f"PyTorch's form / kernels, HiP's {name}, bfloat16, {tokens:,} tokens"
        yield at_least(f"hip gpu torch {name} {tokens}", what, times.ratio("torch", "ours"), 1, detail=detail)


def growth() -> Iterator[Outcome]:
    seconds, peaks = [], []
    for tokens in LENGTHS:
        run = with_gradients(hip, inputs(tokens, gradients=True))
        seconds.append(race({"hip": run}, rounds=ROUNDS, warmup=WARMUP).median_s["hip"])
        peaks.append(peak_bytes(run, device="cuda", warmup=1))
    span = f"forward and backward, {LENGTHS[0]:,} to {LENGTHS[-1]:,} tokens"
    shown = ", ".join(f"{1e3 * each:.2f} ms" for each in seconds)
    exponent = growth_exponent(LENGTHS, seconds)
    yield at_most("hip gpu time", f"exponent of HiP's time, {span}", exponent, 1.3, unit="", detail=shown)
    shown = ", ".join(f"{peak / 2**20:.0f} MiB" for peak in peaks)
    exponent = growth_exponent(LENGTHS, peaks)
    yield at_most("hip gpu memory", f"exponent of HiP's peak memory, {span}", exponent, 1.1, unit="", detail=shown)


def races() -> Iterator[Outcome]:
    can = available()
    if not can:
        print(f"HiP on a GPU is not raced: {can.reason}")
        return
    for tokens in LENGTHS:
        for training in (False, True):
            yield against_flash(tokens, training=training)
        yield decoding(tokens)
    for training in (False, True):
        yield against_flex(32_768, training=training)
    yield from against_torch(8192)
    yield from growth()
