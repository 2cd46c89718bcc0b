"""Rotary position embedding: queries and keys turned by angles proportional to their position.

Paper: "RoFormer: Enhanced Transformer with Rotary Position Embedding", Su et al., 2021, https://arxiv.org/abs/2104.09864,
equations 14-15, in the half-split layout (channel c is paired with channel c + head_dim / 2).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regard.ops.precision import compute_dtype, without_autocast


def check_rotary(head_dim: int, rope_base: float | None) -> None:
    """Refuse a rotary embedding that cannot be built.

    Raises:
        ValueError: an odd `head_dim`, or a base that is not greater than 1.
    """
    if rope_base is None:
        return
    if head_dim % 2:
        raise ValueError(f"rotary embedding needs an even head_dim, got {head_dim}")
    if rope_base <= 1:
        raise ValueError(f"rope_base must be greater than 1, got {rope_base}")


@without_autocast
def rotate(
    x: Float[Tensor, "batch heads tokens head_dim"], positions: Int[Tensor, "#batch tokens"], *, base: float
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Turn each pair of channels of `x` by `position * base ** (-2 * pair / head_dim)` radians."""
    dtype = compute_dtype(x)
    half = x.shape[-1] // 2
    frequencies = base ** (-torch.arange(half, device=x.device, dtype=dtype) / half)
    angles = positions[:, None, :, None].to(dtype) * frequencies
    cosine, sine = angles.cos(), angles.sin()
    first, second = x.to(dtype).split(half, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1).to(x.dtype)
