"""Block-sparse attention on the GPU, forward and backward: chosen blocks of keys, a window and sinks, each key once.

    o_i = sum_{j seen by i} p_ij v_j,   p_ij = exp(q_i . k_j / sqrt(d) - L_i),   L_i = log sum_{j seen by i} exp(...)

Papers: "FlashAttention-2", Dao, ICLR 2024, https://arxiv.org/abs/2307.08691, algorithms 1 and 2 (a running maximum and
sum, L kept for the backward pass, which computes p anew); what is seen is that of `regard.ops.block_sparse`, whose
`block_sparse_attention_reference` and gathered form are the plain twins.

A program has up to 64 rows of one block of queries, and reads one list of keys, tile by tile: sinks, the chosen blocks,
and the window of all its rows. Which of them each row sees is decided by place alone: the window's part of the list
shows a row what lies in its own window, the other parts what lies before, so that every key counts once. Maximum, sum,
outputs and gradients are float32; bfloat16 is multiplied as such, what is stored in float16 as float16 forward and as
TF32 backward, where gradients may leave its range. Heads of any width up to 256, padded to a power of two.

Backward, a program computes the gradient of its own rows' queries, in fixed order. A key is seen by blocks of queries
that only the choice knows: their parts of its gradient, and its value's, are added to float32 zeros atomically, in no
fixed order, so that two runs may differ by rounding. Where PyTorch is told to use deterministic algorithms only, the
kernels are refused to inputs that need gradients, and the gathered form runs. Memory is linear: inputs, outputs, one
number for each row, and, backward, gradients of keys and values in float32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
from jaxtyping import Float, Int
from torch import Tensor

from regard.ops.triton.block_sparse_kernels import backward_kernel, forward_kernel
from regard.ops.triton.launching import in_rows, on_device, products, refused, tile

_LOG2_E = math.log2(math.e)
TILES = {
    ("forward", "narrow"): {64: (64, 64, 4), 128: (64, 32, 4), 256: (64, 32, 8)},
    ("forward", "wide"): {64: (32, 32, 4), 128: (32, 16, 4), 256: (16, 16, 4)},
    ("backward", "narrow"): {64: (32, 32, 4), 128: (32, 32, 8), 256: (32, 16, 8)},
    ("backward", "wide"): {64: (16, 32, 4), 128: (16, 16, 4), 256: (16, 16, 8)},
}
"""By the width of heads: rows and columns of a tile, at most, and warps. Wide tiles are of float32. So they fit in
registers, and in the 99 KiB of shared memory that the smallest of recent GPUs have."""
WIDEST_SPLIT = 128
"""Heads up to this width are multiplied as three products of TF32 backward; the parts of wider ones would need 144 KiB
of shared memory, so that these are multiplied in float32 itself."""

# --------------------------------------------------------------------------------------------------- the operator


@torch.library.custom_op("regard::block_sparse", mutates_args=())
def block_sparse_operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    counts: Tensor,
    first: Tensor,
    block_q: int,
    block_k: int,
    window: int,
    sinks: int,
) -> tuple[Tensor, Tensor]:
    """Outputs in the type of `q`, and each row's L in base 2, which has no gradient; arguments as `launch_forward`."""
    return launch_forward(q, k, v, starts, counts, first, block_q=block_q, block_k=block_k, window=window, sinks=sinks)


@torch.library.custom_op("regard::block_sparse_backward", mutates_args=())
def block_sparse_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    counts: Tensor,
    first: Tensor,
    out: Tensor,
    sums: Tensor,
    block_q: int,
    block_k: int,
    window: int,
    sinks: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    sizes = {"block_q": block_q, "block_k": block_k, "window": window, "sinks": sinks}
    return launch_backward(d_out, q, k, v, starts, counts, first, out, sums, **sizes)


@block_sparse_operator.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    counts: Tensor,
    first: Tensor,
    block_q: int,
    block_k: int,
    window: int,
    sinks: int,
) -> tuple[Tensor, Tensor]:
    return q.new_empty(*q.shape[:3], v.shape[-1]), q.new_empty(q.shape[:3], dtype=torch.float32)


@block_sparse_backward.register_fake
def _(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    counts: Tensor,
    first: Tensor,
    out: Tensor,
    sums: Tensor,
    block_q: int,
    block_k: int,
    window: int,
    sinks: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.block_q, ctx.block_k, ctx.window, ctx.sinks = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx: Any, d_out: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = block_sparse_backward(d_out, *ctx.saved_tensors, ctx.block_q, ctx.block_k, ctx.window, ctx.sinks)
    return *gradients, *[None] * 7


block_sparse_operator.register_autograd(_differentiate, setup_context=_keep_inputs)


def refusal(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why the kernels do not take such inputs; None where they do."""
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad) and _deterministic_only():
        return "deterministic algorithms are asked for, and gradients of keys and values are added in no fixed order"
    return refused(q, k, v)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _deterministic_only() -> bool:
    """Compiled code is compiled anew when the user changes it."""
    return torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()


# --------------------------------------------------------------------------------------------------- launchers


def launch_forward(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    v: Float[Tensor, "batch kv_heads keys value_dim"],
    starts: Int[Tensor, "batch heads blocks chosen"],
    counts: Int[Tensor, "batch heads blocks"],
    first: Int[Tensor, " batch"],
    *,
    block_q: int,
    block_k: int,
    window: int,
    sinks: int,
) -> tuple[Float[Tensor, "batch heads queries value_dim"], Float[Tensor, "batch heads queries"]]:
    """Outputs, and each row's logarithm to base 2 of its sum of powers.

    Args:
        q: queries.
        k: keys.
        v: values.
        starts: first keys of the chosen blocks.
        counts: how many of them hold.
        first: position of the first query of every row among the keys.
        block_q: queries in a block.
        block_k: keys in a block.
        window: keys up to and with the query's own that it sees.
        sinks: first keys, which all see.
    """
    out = q.new_empty(*q.shape[:3], v.shape[-1])
    sums = q.new_empty(q.shape[:3], dtype=torch.float32)
    q, k, v = in_rows(q), in_rows(k), in_rows(v)
    options = products(q.dtype, keep_float16=True)
    options |= _tiles(q.shape[-1], v.shape[-1], block_q=block_q, wide=_is_wide(options), direction="forward")
    with on_device(q):
        forward_kernel[_grid(counts, block_q, options["ROWS"])](
            q,
            k,
            v,
            starts.contiguous(),
            counts.contiguous(),
            first.contiguous(),
            out,
            sums,
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            *_sizes(q, k, v, starts),
            block_q,
            window,
            sinks,
            q.shape[-1] ** -0.5 * _LOG2_E,
            BLOCK_K=block_k,
            **options,
        )
    return out, sums


def launch_backward(
    d_out: Float[Tensor, "batch heads queries value_dim"],
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    v: Float[Tensor, "batch kv_heads keys value_dim"],
    starts: Int[Tensor, "batch heads blocks chosen"],
    counts: Int[Tensor, "batch heads blocks"],
    first: Int[Tensor, " batch"],
    out: Float[Tensor, "batch heads queries value_dim"],
    sums: Float[Tensor, "batch heads queries"],
    *,
    block_q: int,
    block_k: int,
    window: int,
    sinks: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; `out` and `sums` are what `launch_forward` found, the rest as there."""
    d_q = q.new_empty(q.shape)
    d_k, d_v = (x.new_zeros(x.shape, dtype=torch.float32) for x in (k, v))
    types = k.dtype, v.dtype
    q, k, v, d_out = (in_rows(x) for x in (q, k, v, d_out))
    options = products(q.dtype, keep_float16=False)
    options |= _tiles(q.shape[-1], v.shape[-1], block_q=block_q, wide=_is_wide(options), direction="backward")
    if options["PRECISION"] == "tf32x3" and max(options["HEAD"], options["VALUE"]) > WIDEST_SPLIT:
        options["PRECISION"] = "ieee"
    with on_device(q):
        backward_kernel[_grid(counts, block_q, options["ROWS"])](
            q,
            k,
            v,
            starts.contiguous(),
            counts.contiguous(),
            first.contiguous(),
            out.contiguous(),
            sums.contiguous(),
            d_out,
            d_q,
            d_k,
            d_v,
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            *d_out.stride()[:3],
            *_sizes(q, k, v, starts),
            block_q,
            window,
            sinks,
            q.shape[-1] ** -0.5 * _LOG2_E,
            q.shape[-1] ** -0.5,
            BLOCK_K=block_k,
            **options,
        )
    return d_q, d_k.to(types[0]), d_v.to(types[1])


def _grid(counts: Tensor, block_q: int, rows: int) -> tuple[int]:
    """A program for each head's each block of queries, or for some rows of it."""
    return (counts.numel() * triton.cdiv(block_q, rows),)


def _sizes(q: Tensor, k: Tensor, v: Tensor, starts: Tensor) -> tuple[int, ...]:
    heads, (blocks, room) = q.shape[1], starts.shape[2:]
    return heads, heads // k.shape[1], blocks, room, q.shape[2], k.shape[2], q.shape[3], v.shape[3]


def _is_wide(options: dict[str, Any]) -> bool:
    return options["WORK"].primitive_bitwidth == 32


def _tiles(head_dim: int, value_dim: int, *, block_q: int, wide: bool, direction: str) -> dict[str, Any]:
    head, value = tile(head_dim), tile(value_dim)
    rows, columns, warps = TILES[direction, "wide" if wide else "narrow"][max(64, head, value)]
    return {
        "ROWS": min(rows, tile(block_q)),
        "COLUMNS": columns,
        "HEAD": head,
        "VALUE": value,
        "num_warps": warps,
        "num_stages": 1 if wide else 2,
    }
