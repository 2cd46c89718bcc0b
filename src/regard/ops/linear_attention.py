"""Linear attention: scores are plain products of queries and keys, so that values are summed up in a state once.

    o_i = sum_{j <= i} exp(-slope (i - j)) (q_i . k_j) v_j,

with or without decay, and, for non-negative features of queries and keys, divided by the sum of its weights. One op
serves lightning, hedgehog and plain linear attention.

Papers: "Transformers are RNNs", Katharopoulos et al., ICML 2020, https://arxiv.org/abs/2006.16236, equations 9-20;
"Lightning Attention-2", Qin et al., 2024, https://arxiv.org/abs/2401.04658, algorithm 1. Compared with
OpenNLPLab/lightning-attention@d15c3852 `lightning_attn/ops/torch/linear_attention.py` and HazyResearch/lolcats@375df84f
`src/model/linear_attention/linear_attention.py`. Three forms: `linear_attention_reference` (quadratic),
`linear_attention_recurrent` (token by token) and `linear_attention` (in blocks, the default everywhere). On CUDA the
causal block form runs in the Triton kernels of `regard.ops.triton.lightning` where they can take the inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.metadata import No
from regard.ops.linear_blocks import BLOCK, default_block, scan_blocks, scan_macs
from regard.ops.precision import compute_dtype, product_dtype, without_autocast
from regard.ops.visibility import run_numbers, visible_keys

StateTensor = Float[Tensor, "batch heads head_dim state_dim"]
Backend = Literal["auto", "torch", "triton"]

# --------------------------------------------------------------------------------------------------- references


@without_autocast
def linear_attention_weights(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch heads keys head_dim"],
    *,
    causal: bool = True,
    slopes: Sequence[float] | None = None,
    normaliser_eps: float | None = None,
    mask: Bool[Tensor, "batch keys"] | None = None,
    segments: Int[Tensor, "batch tokens"] | None = None,
) -> Float[Tensor, "batch heads queries keys"]:
    """The map of linear attention, in at least float32: signed, or, with a normaliser, rows that sum to 1.

    Args:
        q: queries, or their features.
        k: keys, or their features.
        causal: hide the future; with fewer queries than keys, the last query sees the last key.
        slopes: decay per head; needs `causal`.
        normaliser_eps: added to the sum of each row, by which the row is divided; None = no normaliser.
        mask: True = real key.
        segments: packed sequences, which never see each other.

    Raises:
        ValueError: shapes or slopes that do not fit, or more queries than keys with `causal`.
    """
    _check_inputs(q, k, k, slopes=slopes, causal=causal)
    queries, keys = q.shape[2], k.shape[2]
    if causal and queries > keys:
        raise ValueError(f"causal attention needs at least as many keys as queries, got {keys} keys, {queries} queries")
    dtype = compute_dtype(q)
    scores = torch.einsum("bhid,bhjd->bhij", q.to(dtype), k.to(dtype))
    if slopes is not None:
        rows = torch.arange(queries, device=q.device)[:, None] + (keys - queries)
        distance = (rows - torch.arange(keys, device=q.device)).clamp(min=0).to(dtype)
        scores = scores * torch.exp(
            -torch.tensor(tuple(slopes), dtype=dtype, device=q.device)[:, None, None] * distance
        )
    visible = visible_keys(queries, keys, causal=causal, mask=mask, segments=segments, device=q.device)
    if visible is not None:
        scores = torch.where(visible, scores, 0)
    if normaliser_eps is None:
        return scores
    return scores / (scores.sum(dim=-1, keepdim=True) + normaliser_eps)


def linear_attention_reference(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch heads keys head_dim"],
    v: Float[Tensor, "batch heads keys value_dim"],
    *,
    causal: bool = True,
    slopes: Sequence[float] | None = None,
    normaliser_eps: float | None = None,
    mask: Bool[Tensor, "batch keys"] | None = None,
    segments: Int[Tensor, "batch tokens"] | None = None,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """The quadratic form, as written: the map times the values; arguments as for `linear_attention_weights`."""
    weights = linear_attention_weights(
        q, k, causal=causal, slopes=slopes, normaliser_eps=normaliser_eps, mask=mask, segments=segments
    )
    return (weights @ v.to(weights.dtype)).to(q.dtype)


def linear_attention_recurrent(
    q: Float[Tensor, "batch heads tokens head_dim"],
    k: Float[Tensor, "batch heads tokens head_dim"],
    v: Float[Tensor, "batch heads tokens value_dim"],
    *,
    slopes: Sequence[float] | None = None,
    normaliser_eps: float | None = None,
    initial_state: StateTensor | None = None,
) -> tuple[Float[Tensor, "batch heads tokens value_dim"], StateTensor]:
    """The recurrent form: one `linear_attention_step` per token."""
    state = initial_state
    if state is None:
        state = empty_linear_state(
            q.shape[0],
            num_heads=q.shape[1],
            head_dim=q.shape[3],
            value_dim=v.shape[-1],
            normalised=normaliser_eps is not None,
            like=q,
        )
    outputs = []
    for token in range(q.shape[2]):
        at = slice(token, token + 1)
        y, state = linear_attention_step(
            q[:, :, at], k[:, :, at], v[:, :, at], state, slopes=slopes, normaliser_eps=normaliser_eps
        )
        outputs.append(y)
    return torch.cat(outputs, dim=2), state


# --------------------------------------------------------------------------------------------------- fast forms


@without_autocast
def linear_attention(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch heads keys head_dim"],
    v: Float[Tensor, "batch heads keys value_dim"],
    *,
    causal: bool = True,
    slopes: Sequence[float] | None = None,
    normaliser_eps: float | None = None,
    mask: Bool[Tensor, "batch keys"] | None = None,
    segments: Int[Tensor, "batch tokens"] | None = None,
    block_size: int | None = None,
    backend: Backend = "auto",
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Linear attention in linear time and memory; equals `linear_attention_reference`.

    Args:
        q: queries, or their features; all inputs have the same dtype.
        k: keys, or their features.
        v: values; their width may differ from the keys'.
        causal: hide the future; needs as many queries as keys.
        slopes: decay per head, at least 0; needs `causal`.
        normaliser_eps: added to the sum of each row's weights, by which it is divided; None = no normaliser.
        mask: True on the prefix of each row that is real. A causal form need not look at it: the padding's own
            results are undefined, but finite.
        segments: packed sequences, which never see each other.
        block_size: tokens in a block of the causal form; None = the fastest.
        backend: "auto" = the Triton kernels for causal inputs on CUDA that they can take, else PyTorch; "torch" and
            "triton" force one.

    Raises:
        ValueError: shapes, dtypes, devices, slopes or a block size that do not fit, or, with `backend="triton"`,
            what the kernels cannot take or a machine without them.
    """
    _check_inputs(q, k, v, slopes=slopes, causal=causal, block_size=block_size)
    if causal:
        _check_square(q, k)
    if _in_kernels(q, causal=causal, packed=segments is not None, block_size=block_size, backend=backend):
        return _run_kernels(q, k, v, slopes=slopes, normaliser_eps=normaliser_eps, block_size=block_size)[0]
    block_size = default_block(product_dtype(q)) if block_size is None else block_size
    dtype = q.dtype
    q, k, v = _in_tile_dtype(q, k, v, ones=normaliser_eps is not None)
    if causal:
        runs = None if segments is None else run_numbers(segments)
        sums, _ = scan_blocks(q, k, v, slopes=slopes, runs=runs, block_size=block_size)
        return torch.cat([_finish(block, normaliser_eps) for block in sums], dim=2).to(dtype)
    if mask is not None:
        k = k * mask[:, None, :, None]
    if segments is None:
        total = (k.transpose(2, 3) @ v).to(compute_dtype(k))
        return _finish(q @ total.to(q.dtype), normaliser_eps).to(dtype)
    _check_square(q, k)
    return _finish(_sum_of_own_run(q, k, v, run_numbers(segments), block_size), normaliser_eps).to(dtype)


@without_autocast
def linear_attention_with_state(
    q: Float[Tensor, "batch heads tokens head_dim"],
    k: Float[Tensor, "batch heads tokens head_dim"],
    v: Float[Tensor, "batch heads tokens value_dim"],
    state: StateTensor | None = None,
    *,
    slopes: Sequence[float] | None = None,
    normaliser_eps: float | None = None,
    mask: Bool[Tensor, "batch tokens"] | None = None,
    block_size: int | None = None,
    backend: Backend = "auto",
) -> tuple[Float[Tensor, "batch heads tokens value_dim"], StateTensor]:
    """Causal linear attention of tokens that follow those in `state`, and the state after them.

    Args:
        q: queries, or their features.
        k: keys, or their features.
        v: values.
        state: `(batch, heads, head_dim, value_dim)`, with one more column (the sum of the keys' features) where there
            is a normaliser; None = nothing seen yet.
        slopes: decay per head; None = none.
        normaliser_eps: added to the sum of each row's weights; None = no normaliser.
        mask: True on the prefix of each row that is real; the rest leaves the state as it is.
        block_size: tokens in a block; None = the fastest.
        backend: as for `linear_attention`.

    Raises:
        ValueError: shapes, dtypes, devices, slopes, a state or a block size that do not fit, or, with
            `backend="triton"`, what the kernels cannot take or a machine without them.
    """
    _check_inputs(q, k, v, slopes=slopes, causal=True, block_size=block_size)
    _check_square(q, k)
    if state is not None:
        _check_state(state, q, v, normalised=normaliser_eps is not None)
    if _in_kernels(q, causal=True, packed=False, block_size=block_size, backend=backend):
        return _run_kernels(
            q, k, v, slopes=slopes, normaliser_eps=normaliser_eps, block_size=block_size, mask=mask, state=state
        )
    block_size = default_block(product_dtype(q)) if block_size is None else block_size
    dtype = q.dtype
    q, k, v = _in_tile_dtype(q, k, v, ones=normaliser_eps is not None)
    sums, after = scan_blocks(
        q, k, v, slopes=slopes, block_size=block_size, mask=mask, initial_state=state, want_state=True
    )
    assert after is not None
    return torch.cat([_finish(block, normaliser_eps) for block in sums], dim=2).to(dtype), after


@without_autocast
def linear_attention_step(
    q: Float[Tensor, "batch heads 1 head_dim"],
    k: Float[Tensor, "batch heads 1 head_dim"],
    v: Float[Tensor, "batch heads 1 value_dim"],
    state: StateTensor,
    *,
    slopes: Sequence[float] | None = None,
    normaliser_eps: float | None = None,
    mask: Bool[Tensor, "batch 1"] | None = None,
) -> tuple[Float[Tensor, "batch heads 1 value_dim"], StateTensor]:
    """One token: the state decays, takes up k^T v and is read by q; a masked token leaves it as it is.

    Arguments and errors as for `linear_attention_with_state`.
    """
    _check_inputs(q, k, v, slopes=slopes, causal=True)
    if q.shape[2] != 1:
        raise ValueError(f"a step takes 1 token, got {q.shape[2]}")
    _check_state(state, q, v, normalised=normaliser_eps is not None)
    dtype = state.dtype
    queries, keys, values = (x.to(dtype) for x in (q, k, v))
    if normaliser_eps is not None:
        values = _with_ones(values)
    before = state
    if slopes is not None:
        factors = torch.exp(-torch.tensor(tuple(slopes), dtype=dtype, device=q.device))
        before = before * factors[:, None, None]
    after = torch.addcmul(before, keys.transpose(2, 3), values)
    if mask is not None:
        after = torch.where(mask[:, :, None, None], after, state)
    return _finish(queries @ after, normaliser_eps).to(q.dtype), after


def empty_linear_state(
    batch: int, *, num_heads: int, head_dim: int, value_dim: int, normalised: bool, like: Tensor
) -> StateTensor:
    """The state before the first token, in at least float32, on the device of `like`.

    Raises:
        ValueError: `batch` is not positive.
    """
    if batch < 1:
        raise ValueError(f"batch must be positive, got {batch}")
    return like.new_zeros(batch, num_heads, head_dim, value_dim + normalised, dtype=compute_dtype(like))


def linear_attention_macs(
    *, queries: int, keys: int, head_dim: int, value_dim: int, causal: bool, normalised: bool, block_size: int = BLOCK
) -> int:
    """Contraction MACs of `linear_attention` in float32, for one row and one head, without segments."""
    width = value_dim + normalised
    if not causal:
        return (queries + keys) * head_dim * width
    return scan_macs(queries, head_dim=head_dim, value_dim=width, block_size=block_size)


# --------------------------------------------------------------------------------------------------- inside


def _in_kernels(q: Tensor, *, causal: bool, packed: bool, block_size: int | None, backend: Backend) -> bool:
    """Whether the Triton kernels take these inputs; nothing of Triton is imported for tensors on the CPU."""
    if backend == "torch" or (backend == "auto" and q.device.type != "cuda"):
        return False
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}")
    from regard.ops.triton import available

    can = available(q.device)
    if isinstance(can, No):
        reason: str | None = can.reason
    elif not causal or packed:
        reason = "the kernels are causal and take no segments"
    else:
        from regard.ops.triton.lightning import refusal

        reason = refusal(q, block_size=block_size)
    if reason is not None and backend == "triton":
        raise ValueError(f"backend='triton' was asked for, but {reason}")
    return reason is None


def _run_kernels(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    slopes: Sequence[float] | None,
    normaliser_eps: float | None,
    block_size: int | None,
    mask: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums that are still to be divided are kept in float32."""
    from regard.ops.triton.lightning import BLOCK as KERNEL_BLOCK
    from regard.ops.triton.lightning import lightning_operator

    normalised = normaliser_eps is not None
    lengths = None if mask is None else mask.sum(dim=1)
    values = _with_ones(v) if normalised else v
    sums, after = lightning_operator(q, k, values, slopes, state, lengths, block_size or KERNEL_BLOCK, normalised)
    return _finish(sums, normaliser_eps).to(q.dtype), after


def _in_tile_dtype(q: Tensor, k: Tensor, v: Tensor, *, ones: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs as the tiles take them."""
    dtype = product_dtype(q)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    return q, k, _with_ones(v) if ones else v


def _with_ones(v: Tensor) -> Tensor:
    """Values with a column of ones: what is summed there is the sum of the weights."""
    return torch.nn.functional.pad(v, (0, 1), value=1.0)


def _finish(sums: Tensor, normaliser_eps: float | None) -> Tensor:
    """Divide by the sum of the weights, which is the last column."""
    if normaliser_eps is None:
        return sums
    return sums[..., :-1] / (sums[..., -1:] + normaliser_eps)


def _sum_of_own_run(q: Tensor, k: Tensor, v: Tensor, runs: Tensor, block_size: int) -> Tensor:
    """Sums over all tokens of each token's own run: those up to it, and, backwards, those after it."""
    past, _ = scan_blocks(q, k, v, slopes=None, runs=runs, block_size=block_size)
    turned = (x.flip(2) for x in (q, k, v))
    future, _ = scan_blocks(*turned, slopes=None, runs=runs.flip(1), block_size=block_size, diagonal=False)
    return torch.cat(past, dim=2) + torch.cat(future, dim=2).flip(2)


def _check_inputs(
    q: Tensor, k: Tensor, v: Tensor, *, slopes: Sequence[float] | None, causal: bool, block_size: int | None = None
) -> None:
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4 or q.shape[:2] != k.shape[:2] or k.shape[:3] != v.shape[:3]:
        raise ValueError(
            "q, k, v must have shapes (b, h, i, d), (b, h, j, d), (b, h, j, e), got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if q.shape[-1] != k.shape[-1] or q.shape[-1] < 1:
        raise ValueError(f"q is {q.shape[-1]} wide and k is {k.shape[-1]}: they must be equal and positive")
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise ValueError(f"q, k, v must have one floating-point dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if not (q.device == k.device == v.device):
        raise ValueError(f"q, k, v must be on one device, got {q.device}, {k.device}, {v.device}")
    if block_size is not None and block_size < 1:
        raise ValueError(f"block_size must be positive, got {block_size}")
    if slopes is None:
        return
    if not causal:
        raise ValueError("slopes need causal=True: decay is defined over the past")
    if len(slopes) != q.shape[1]:
        raise ValueError(f"there are {len(slopes)} slopes and {q.shape[1]} heads: they must be equal in number")
    if min(slopes) < 0:
        raise ValueError(f"slopes must be at least 0 (a negative one lets the state grow), got {min(slopes)}")


def _check_square(q: Tensor, k: Tensor) -> None:
    if q.shape[2] != k.shape[2]:
        raise ValueError(f"there are {q.shape[2]} queries and {k.shape[2]} keys: they must be equal in number")


def _check_state(state: Tensor, q: Tensor, v: Tensor, *, normalised: bool) -> None:
    wanted = (*q.shape[:2], q.shape[-1], v.shape[-1] + normalised)
    if tuple(state.shape) != wanted:
        raise ValueError(f"the state has shape {tuple(state.shape)}, it must be {wanted}")
    if state.dtype != compute_dtype(q) or state.device != q.device:
        raise ValueError(f"the state is {state.dtype} on {state.device}, it must be {compute_dtype(q)} on {q.device}")
