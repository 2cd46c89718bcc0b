"""Lightning attention on the GPU: causal linear attention in blocks, forward and backward, with a state in and out.

    o_i = sum_{j <= i} c^(i - j) (q_i . k_j) v_j + c^(i + 1) q_i S,   c = exp(-slope)

Papers: "Lightning Attention-2", Qin et al., 2024, https://arxiv.org/abs/2401.04658, algorithms 1 and 2 (blocks, forward
and backward); "Various Lengths, Constant Speed", Qin et al., ICML 2024, https://arxiv.org/abs/2405.17381.
Compared with OpenNLPLab/lightning-attention@d15c3852 `lightning_attn/ops/triton/lightning_attn2.py` and
`..._no_decay.py`. Different from the code: a state goes in and comes out, right after a short last block too; rows of a
batch may have their own lengths; any width (in slices, padded to a power of two); one pair of kernels does everything.

The first kernel walks along the blocks and stores the state before each; the second does all blocks at once, each by
itself: scores within the block, the state for what came before. Backward is the same pair, because the operator
F(q, k, v) has dq = F(do, v, k) with the transposed states, and, from the last token to the first, dk = F(v, do, q),
dv = F(k, q, do): there the state is the sum of q^T do of later tokens. Every power of c is at most 1. Products are
accumulated in float32, the state is float32; what is stored in 16 bits is multiplied as TF32, which holds it exactly.
Memory is linear in the number of tokens: inputs, outputs, and one state per block, which is computed anew for the
backward pass. The plain twins are `linear_attention_reference` and `scan_blocks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
from jaxtyping import Float, Int
from torch import Tensor

from regard.ops.triton.lightning_kernels import outputs_kernel, states_kernel

BLOCK = 64
"""Tokens in a block, as in the code."""
BLOCKS = (16, 32, 64, 128)
"""Numbers of tokens in a block that the kernels know."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the kernels read and write."""

_SLICE = 64
_SMALLEST_TILE = 16

# --------------------------------------------------------------------------------------------------- launchers


def block_states(
    k: Float[Tensor, "batch heads tokens key_width"],
    v: Float[Tensor, "batch heads tokens value_width"],
    *,
    slopes: Float[Tensor, " heads"] | None,
    lengths: Int[Tensor, " batch"],
    initial: Float[Tensor, "batch heads key_width value_width"] | None,
    block_size: int,
    reverse: bool = False,
) -> tuple[
    Float[Tensor, "batch heads blocks key_width value_width"], Float[Tensor, "batch heads key_width value_width"]
]:
    """The float32 state before each block and after the last; what belongs to blocks without a real token is unset.

    Args:
        k: keys.
        v: values.
        slopes: decay per head in float32; None = none.
        lengths: number of real tokens in each row.
        initial: the state before the first block, in float32; None = zero.
        block_size: tokens in a block.
        reverse: walk from the last token to the first; the initial state is then the one after the last token.
    """
    (batch, heads, tokens, key_width), value_width = k.shape, v.shape[-1]
    blocks = triton.cdiv(tokens, block_size)
    states = k.new_empty(batch, heads, blocks, key_width, value_width, dtype=torch.float32)
    final = k.new_empty(batch, heads, key_width, value_width, dtype=torch.float32)
    k, v = _in_rows(k), _in_rows(v)
    key_slice, value_slice = _slice(key_width), _slice(value_width)
    grid = (batch * heads, triton.cdiv(key_width, key_slice), triton.cdiv(value_width, value_slice))
    with _on(k):
        states_kernel[grid](
            k,
            v,
            final if slopes is None else slopes,
            lengths,
            final if initial is None else initial.contiguous(),
            states,
            final,
            *k.stride()[:3],
            *v.stride()[:3],
            heads,
            blocks,
            key_width,
            value_width,
            BLOCK=block_size,
            KEY_SLICE=key_slice,
            VALUE_SLICE=value_slice,
            DECAY=slopes is not None,
            INITIAL=initial is not None,
            REVERSE=reverse,
            **_tuning(k, v),
        )
    return states, final


def block_outputs(
    q: Float[Tensor, "batch heads tokens key_width"],
    k: Float[Tensor, "batch heads tokens key_width"],
    v: Float[Tensor, "batch heads tokens value_width"],
    states: Float[Tensor, "batch heads blocks key_width value_width"],
    *,
    slopes: Float[Tensor, " heads"] | None,
    lengths: Int[Tensor, " batch"],
    dtype: torch.dtype,
    block_size: int,
    reverse: bool = False,
) -> Float[Tensor, "batch heads tokens value_width"]:
    """What the queries read from their own block and from the state before it; 0 at tokens that are not real.

    Args:
        q: queries.
        k: keys.
        v: values.
        states: of `block_states`, or its transposition.
        slopes: decay per head in float32; None = none.
        lengths: number of real tokens in each row.
        dtype: of the result.
        block_size: tokens in a block.
        reverse: the future is seen, and the past hidden.
    """
    (batch, heads, tokens, key_width), value_width = q.shape, v.shape[-1]
    blocks = triton.cdiv(tokens, block_size)
    out = q.new_empty(batch, heads, tokens, value_width, dtype=dtype)
    q, k, v = _in_rows(q), _in_rows(k), _in_rows(v)
    key_slice, value_slice = _slice(key_width), _slice(value_width)
    grid = (batch * heads * blocks, triton.cdiv(value_width, value_slice))
    with _on(q):
        outputs_kernel[grid](
            q,
            k,
            v,
            states if slopes is None else slopes,
            lengths,
            states,
            out,
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            *states.stride()[3:],
            heads,
            blocks,
            tokens,
            key_width,
            value_width,
            BLOCK=block_size,
            KEY_SLICE=key_slice,
            KEY_SLICES=triton.cdiv(key_width, key_slice),
            VALUE_SLICE=value_slice,
            DECAY=slopes is not None,
            REVERSE=reverse,
            **_tuning(q, k, v),
        )
    return out


# --------------------------------------------------------------------------------------------------- the operator


@torch.library.custom_op("regard::lightning", mutates_args=())
def lightning_operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Sequence[float] | None,
    initial: Tensor | None,
    lengths: Tensor | None,
    block_size: int,
    wide: bool,
) -> tuple[Tensor, Tensor]:
    """The sums, and the state after the last real token; `wide` sums are float32, others have the type of `q`."""
    scalars, counts = _slopes_on(slopes, q.device), _lengths(q, lengths)
    states, final = block_states(
        k, v, slopes=scalars, lengths=counts, initial=initial, block_size=block_size, reverse=False
    )
    dtype = torch.float32 if wide else q.dtype
    out = block_outputs(q, k, v, states, slopes=scalars, lengths=counts, dtype=dtype, block_size=block_size)
    return out, final


@torch.library.custom_op("regard::lightning_backward", mutates_args=())
def lightning_backward(
    d_out: Tensor,
    d_final: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Sequence[float] | None,
    initial: Tensor | None,
    lengths: Tensor | None,
    block_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, from the first token on, of k and v, from the last, and of the initial state."""
    scalars, counts = _slopes_on(slopes, q.device), _lengths(q, lengths)
    options: dict[str, Any] = {"slopes": scalars, "lengths": counts, "block_size": block_size}
    states, _ = block_states(k, v, initial=initial, **options)
    d_q = block_outputs(d_out, v, k, states.transpose(3, 4), dtype=q.dtype, **options)
    del states
    d_states, d_initial = block_states(q, d_out, initial=d_final, reverse=True, **options)
    d_k = block_outputs(v, d_out, q, d_states.transpose(3, 4), dtype=k.dtype, reverse=True, **options)
    d_v = block_outputs(k, q, d_out, d_states, dtype=v.dtype, reverse=True, **options)
    return d_q, d_k, d_v, d_initial


@lightning_operator.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Sequence[float] | None,
    initial: Tensor | None,
    lengths: Tensor | None,
    block_size: int,
    wide: bool,
) -> tuple[Tensor, Tensor]:
    out = q.new_empty(*q.shape[:3], v.shape[-1], dtype=torch.float32 if wide else q.dtype)
    return out, q.new_empty(*q.shape[:2], q.shape[-1], v.shape[-1], dtype=torch.float32)


@lightning_backward.register_fake
def _(
    d_out: Tensor,
    d_final: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Sequence[float] | None,
    initial: Tensor | None,
    lengths: Tensor | None,
    block_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), d_final.new_empty(d_final.shape)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, slopes, initial, lengths, block_size, _ = inputs
    ctx.save_for_backward(q, k, v, initial, lengths)
    ctx.slopes, ctx.block_size = slopes, block_size


def _differentiate(ctx: Any, d_out: Tensor, d_final: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, initial, lengths = ctx.saved_tensors
    found = lightning_backward(d_out, d_final, q, k, v, ctx.slopes, initial, lengths, ctx.block_size)
    d_q, d_k, d_v, d_initial = found
    return d_q, d_k, d_v, None, None if initial is None else d_initial, None, None, None


lightning_operator.register_autograd(_differentiate, setup_context=_keep_inputs)


def refusal(q: Tensor, *, block_size: int | None) -> str | None:
    """Why the kernels do not take such inputs; None where they do."""
    if q.dtype not in DTYPES:
        return f"the kernels compute in float32 and take float32, bfloat16 and float16, got {q.dtype}"
    if block_size is not None and block_size not in BLOCKS:
        return f"the kernels' blocks have {', '.join(map(str, BLOCKS))} tokens, got block_size={block_size}"
    return "the kernels need at least 1 row and 1 token, got none" if q.numel() == 0 else None


# --------------------------------------------------------------------------------------------------- inside


def _slice(width: int) -> int:
    """Columns that a program takes at once."""
    return min(_SLICE, max(_SMALLEST_TILE, triton.next_power_of_2(width)))


def _in_rows(x: Tensor) -> Tensor:
    """The kernels address batch, head and token by stride; a token's own numbers lie side by side."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _tuning(*read: Tensor) -> dict[str, Any]:
    """Multiplication of float32 as exactly as float32 is; fewer stages where tiles are wide, to fit shared memory."""
    narrow = all(x.dtype != torch.float32 for x in read)
    exact = "tf32x3" if torch.version.hip is None else "ieee"
    return {"PRECISION": "tf32" if narrow else exact, "num_warps": 4, "num_stages": 2 if narrow else 1}


def _lengths(q: Tensor, lengths: Tensor | None) -> Tensor:
    if lengths is None:
        return torch.full((q.shape[0],), q.shape[2], dtype=torch.int32, device=q.device)
    return lengths.to(torch.int32)


def _slopes_on(slopes: Sequence[float] | None, device: torch.device) -> Tensor | None:
    return None if slopes is None else _copied_slopes(tuple(slopes), device)


@lru_cache(maxsize=256)
def _copied_slopes(slopes: tuple[float, ...], device: torch.device) -> Tensor:
    """Kept, because copying to the GPU in each call would wait for it."""
    return torch.tensor(slopes, dtype=torch.float32, device=device)


def _on(x: Tensor) -> Any:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()
