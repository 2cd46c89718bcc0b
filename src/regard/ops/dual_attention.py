"""Attention between all positions of a map, and between all of its channels, without scales: DANet's two modules.

Paper: "Dual Attention Network for Scene Segmentation", Fu et al., CVPR 2019, https://arxiv.org/abs/1809.02983,
equations 1 to 4.
The queries of the position attention are an eighth as wide as its values. PyTorch's fused kernel wants equal widths, or
writes all weights to memory: beyond a few positions queries and keys are widened with zeros, which costs products and
keeps the memory linear, in training too.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from regard.ops.precision import compute_dtype, without_autocast

FEW = 256
"""Positions up to which all weights are written to memory."""
Orientation = Literal["outputs", "inputs"]
Queries = Float[Tensor, "batch positions head_dim"]
Values = Float[Tensor, "batch positions channels"]


@without_autocast
def position_weights(q: Queries, k: Queries) -> Float[Tensor, "batch positions positions"]:
    """softmax(q k^T) over the keys, in at least float32."""
    dtype = compute_dtype(q)
    return (q.to(dtype) @ k.to(dtype).mT).softmax(dim=-1)


@without_autocast
def position_attention(q: Queries, k: Queries, v: Values) -> Values:
    """softmax(q k^T) v.

    Args:
        q: queries.
        k: keys.
        v: values, of any width.
    """
    if q.shape[1] <= FEW:
        weights = position_weights(q, k)
        return (weights @ v.to(weights.dtype)).to(v.dtype)
    width = attended_width(q.shape[-1], v.shape[-1])
    q, k = (pad(x, (0, width - x.shape[-1])) for x in (q, k))
    wide = pad(v, (0, width - v.shape[-1]))
    mixed = scaled_dot_product_attention(q[:, None], k[:, None], wide[:, None], scale=1.0)[:, 0]
    return mixed[..., : v.shape[-1]]


def attended_width(head_dim: int, channels: int) -> int:
    """The width that the fused kernel works with."""
    return max(head_dim, channels)


@without_autocast
def channel_weights(
    x: Float[Tensor, "batch channels positions"], *, max_subtraction: bool, normalised_over: Orientation
) -> Float[Tensor, "batch channels channels"]:
    """What every channel (row) takes of every other, from the Gram matrix G = x x^T, in at least float32.

    Args:
        x: the map.
        max_subtraction: weigh by max(G) - G, the maximum over each row, which favours channels that differ.
        normalised_over: "outputs" = what one channel gives to all sums to 1, "inputs" = what one takes of all does.
    """
    wide = x.to(compute_dtype(x))
    gram = wide @ wide.mT
    if max_subtraction:
        gram = gram.amax(dim=-1, keepdim=True) - gram
    weights = gram.softmax(dim=-1)
    return weights if normalised_over == "inputs" else weights.mT


@without_autocast
def channel_mixing(
    x: Float[Tensor, "batch channels positions"], *, max_subtraction: bool, normalised_over: Orientation
) -> Float[Tensor, "batch channels positions"]:
    """Every channel as the weighted sum of all, with the weights of `channel_weights`."""
    weights = channel_weights(x, max_subtraction=max_subtraction, normalised_over=normalised_over)
    return torch.bmm(weights.to(x.dtype), x)
