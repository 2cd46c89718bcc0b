"""CBAM's scores of channels: one small network on the mean and on the maximum of each channel, added up.

s = W2 relu(W1 mean) + W2 relu(W1 max), from "CBAM: Convolutional Block Attention Module", Woo et al., ECCV 2018,
https://arxiv.org/abs/1807.06521, equation 2; the gate is sigmoid(s).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear, max_pool2d

from regard.ops.precision import compute_dtype, without_autocast


def channel_maxima(x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels"]:
    """The largest value of each channel, in at least float32.

    Equal largest ones share the gradient; on a map whose channels lie last in memory the first of them takes it: there
    pooling over the whole map has a tenth of the time of a maximum over two axes.
    """
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return max_pool2d(x, x.shape[2:]).flatten(1).to(compute_dtype(x))
    return x.amax(dim=tuple(range(2, x.ndim))).to(compute_dtype(x))


@without_autocast
def two_branch_scores(
    means: Float[Tensor, "batch channels"],
    maxima: Float[Tensor, "batch channels"],
    down: Float[Tensor, "hidden channels"],
    up: Float[Tensor, "channels hidden"],
    down_bias: Float[Tensor, " hidden"] | None = None,
    up_bias: Float[Tensor, " channels"] | None = None,
) -> Float[Tensor, "batch channels"]:
    """W2 (relu(W1 mean + b1) + relu(W1 max + b1)) + 2 b2: the outer matrix is linear, so that one product does.

    Computed in the precision of the matrices: widening them costs more than the products.

    Args:
        means: of every channel.
        maxima: of every channel.
        down: W1.
        up: W2.
        down_bias: b1.
        up_bias: b2.
    """
    pooled = torch.stack((means, maxima)).to(down.dtype)
    hidden = linear(pooled, down, down_bias).relu().sum(dim=0)
    return linear(hidden, up, None if up_bias is None else 2 * up_bias)


def two_branch_scores_reference(
    means: Float[Tensor, "batch channels"],
    maxima: Float[Tensor, "batch channels"],
    down: Float[Tensor, "hidden channels"],
    up: Float[Tensor, "channels hidden"],
    down_bias: Float[Tensor, " hidden"] | None = None,
    up_bias: Float[Tensor, " channels"] | None = None,
) -> Float[Tensor, "batch channels"]:
    """`two_branch_scores` branch by branch."""
    branches = (linear(linear(pooled, down, down_bias).relu(), up, up_bias) for pooled in (means, maxima))
    return sum(branches, torch.zeros_like(means))
