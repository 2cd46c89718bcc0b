"""Attention between channels: the channels of a group are the tokens, and positions are what is summed over.

Paper: "DaViT: Dual Attention Vision Transformers", Ding et al., ECCV 2022,
https://arxiv.org/abs/2204.03645, equation 4.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from regard.ops.precision import compute_dtype, without_autocast

Grouped = Float[Tensor, "batch positions groups width"]


@without_autocast
def channel_affinity(k: Grouped, v: Grouped) -> Float[Tensor, "batch groups width width"]:
    """Softmax over the last axis of k^T v / sqrt(width), summed over positions in at least float32."""
    dtype = compute_dtype(k)
    keys, values = (k.to(dtype) * k.shape[-1] ** -0.5).permute(0, 2, 3, 1), v.to(dtype).permute(0, 2, 1, 3)
    return (keys @ values).softmax(dim=-1)


@without_autocast
def channel_attention(q: Grouped, k: Grouped, v: Grouped) -> Grouped:
    """Every channel of a group as the affinity's mean of the group's channels of `q`.

    The roles are those of the authors' code, in which the affinity is between `k` and `v` and weighs `q`; the paper's
    softmax(Q^T K) V is the same with other names.
    """
    mixed = q.permute(0, 2, 1, 3) @ channel_affinity(k, v).to(q.dtype).transpose(2, 3)
    return mixed.permute(0, 2, 1, 3)
