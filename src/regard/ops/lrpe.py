"""LRPE, linearised relative positional encoding: relative positions as features of queries and of keys, one by one.

    q_i -> [q_i cos(i theta), q_i sin(i theta)],  k_j -> [k_j cos(j theta), k_j sin(j theta)],

so that a product of a query and a key becomes sum_c q_ic k_jc cos((i - j) theta_c): linear attention, which never forms
that product, sees distances all the same. The width of queries and keys doubles.

Papers: "Linearized Relative Positional Encoding", Qin et al., TMLR 2023, https://arxiv.org/abs/2307.09270;
"TransNormerLLM", Qin et al., 2023, https://arxiv.org/abs/2307.14995, section 3. Compared with
weigao266/TNL-MoE@007576fe `smoe/models/tnl/modeling_transnormer.py` (`Lrpe`). Computed in at least float32.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regard.ops.precision import compute_dtype, without_autocast

LRPE_BASE = 10000.0


def lrpe_frequencies(num_heads: int, head_dim: int) -> Float[Tensor, "heads 1 head_dim"]:
    """Where theta starts, in radians per token: 10000^(-2 c / (h d)) for channel c = 0..h*d - 1 of all heads together.

    Raises:
        ValueError: a size that is not positive.
    """
    if num_heads < 1 or head_dim < 1:
        raise ValueError(f"num_heads and head_dim must be positive, got {num_heads} and {head_dim}")
    width = num_heads * head_dim
    return LRPE_BASE ** (-2 / width * torch.arange(width)).reshape(num_heads, 1, head_dim)


@without_autocast
def lrpe(
    q: Float[Tensor, "batch heads tokens head_dim"],
    k: Float[Tensor, "batch heads tokens head_dim"],
    theta: Float[Tensor, "heads 1 head_dim"],
    positions: Int[Tensor, "#batch tokens"],
) -> tuple[Float[Tensor, "batch heads tokens twice"], Float[Tensor, "batch heads tokens twice"]]:
    """Queries and keys with their positions inside, twice as wide: first the cosines' half, then the sines'.

    Args:
        q: queries, already activated.
        k: keys of the same tokens, already activated.
        theta: frequencies in radians per token.
        positions: of the tokens, counted from 0; one row for all, or one per row of the batch.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check_shapes(q, k, theta, positions)
    dtype = compute_dtype(q)
    angles = positions[:, None, :, None].to(dtype) * theta.to(dtype)
    halves = torch.stack((angles.cos(), angles.sin()), dim=-2)
    q_encoded, k_encoded = ((x.to(dtype)[..., None, :] * halves).flatten(-2).to(x.dtype) for x in (q, k))
    return q_encoded, k_encoded


@without_autocast
def lrpe_scores_reference(
    q: Float[Tensor, "batch heads tokens head_dim"],
    k: Float[Tensor, "batch heads tokens head_dim"],
    theta: Float[Tensor, "heads 1 head_dim"],
    positions: Int[Tensor, "#batch tokens"],
) -> Float[Tensor, "batch heads tokens tokens"]:
    """What products of encoded queries and keys must be, from distances; arguments as for `lrpe`."""
    _check_shapes(q, k, theta, positions)
    dtype = compute_dtype(q)
    distance = (positions[:, :, None] - positions[:, None, :]).to(dtype)
    cosine = torch.cos(distance[:, None, :, :, None] * theta.to(dtype)[:, :, None])
    return torch.einsum("bhid,bhjd,bhijd->bhij", q.to(dtype), k.to(dtype), cosine.expand(q.shape[0], -1, -1, -1, -1))


def _check_shapes(q: Tensor, k: Tensor, theta: Tensor, positions: Tensor) -> None:
    if q.ndim != 4 or q.shape != k.shape:
        raise ValueError(f"q and k must have one shape (b, h, n, d), got {tuple(q.shape)} and {tuple(k.shape)}")
    batch, heads, tokens, width = q.shape
    if tuple(theta.shape) != (heads, 1, width):
        raise ValueError(f"theta has shape {tuple(theta.shape)}, it must be {(heads, 1, width)}")
    if positions.ndim != 2 or positions.shape[0] not in (1, batch) or positions.shape[1] != tokens:
        raise ValueError(
            f"positions have shape {tuple(positions.shape)}, they must be {(batch, tokens)} or (1, {tokens})"
        )
