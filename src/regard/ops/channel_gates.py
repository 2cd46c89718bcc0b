"""Gates on channels: a feature map is pooled to a number per channel, scored, and scaled by the sigmoid of the scores.

y = x * sigmoid(scores(pool(x))). The scores of "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural
Networks", Wang et al., CVPR 2020, https://arxiv.org/abs/1910.03151, slide a short stencil along the channels.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from regard.ops.precision import compute_dtype, without_autocast


def adaptive_kernel_size(channels: int, *, gamma: float = 2.0, b: float = 1.0) -> int:
    """The odd number at t = int(|log2(C) / gamma + b / gamma|): t if it is odd, else t + 1.

    Args:
        channels: C.
        gamma: slope; the paper's is 2.
        b: offset; the paper's is 1.

    Raises:
        ValueError: no channel, or `gamma` is 0.

    Paper: equation 12.
    """
    if channels < 1:
        raise ValueError(f"channels must be positive, got {channels}")
    if gamma == 0:
        raise ValueError("gamma must differ from 0, got 0")
    size = int(abs((math.log2(channels) + b) / gamma))
    return size if size % 2 else size + 1


def check_kernel_size(kernel_size: int, channels: int) -> None:
    """Refuse a stencil that has no middle, or whose outer taps never meet a channel.

    Raises:
        ValueError: an even size, or one that is not between 1 and 2 * channels - 1.
    """
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}: try {kernel_size + 1}")
    if not 1 <= kernel_size <= 2 * channels - 1:
        raise ValueError(
            f"kernel_size must be between 1 and 2 * channels - 1 = {2 * channels - 1}, got {kernel_size}: "
            f"with {channels} channels the outer taps would meet padding alone"
        )


# --------------------------------------------------------------------------------------------------- pooling


@without_autocast
def channel_means(x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels"]:
    """The mean of each channel over all positions, in at least float32.

    The sum is scaled after it is taken: the gradient of a sum is a view, that of a mean a feature map. bfloat16 is
    summed in float32 and rounded once, at the end of the sum, which reads `x` without widening it; float16, whose sums
    may overflow, is widened.
    """
    space = tuple(range(2, x.ndim))
    wide = compute_dtype(x)
    total = x.sum(dim=space) if x.dtype == torch.bfloat16 else x.sum(dim=space, dtype=wide)
    return total.to(wide) / math.prod(x.shape[2:])


# --------------------------------------------------------------------------------------------------- scores


@without_autocast
def shared_stencil(
    pooled: Float[Tensor, "batch channels"], taps: Float[Tensor, " kernel"]
) -> Float[Tensor, "batch channels"]:
    """One stencil for all channels: y_c = sum_j w_j g_{c + j - (k - 1) / 2}, zero beyond both ends (equation 7).

    The batch is laid out as the rows of a single image: `conv2d` with a kernel of one row takes a third of the time of
    `conv1d` on the CPU, and views that of indices.

    Args:
        pooled: g.
        taps: w, an odd number.
    """
    batch, channels = pooled.shape
    size = taps.shape[0]
    kernel = taps.to(pooled.dtype).view(1, 1, 1, size)
    return F.conv2d(pooled.reshape(1, 1, batch, channels), kernel, padding=(0, size // 2)).view(batch, channels)


def shared_stencil_reference(
    pooled: Float[Tensor, "batch channels"], taps: Float[Tensor, " kernel"]
) -> Float[Tensor, "batch channels"]:
    """`shared_stencil` tap by tap."""
    return unshared_stencil_reference(pooled, taps.expand(pooled.shape[1], -1))


@without_autocast
def unshared_stencil(
    pooled: Float[Tensor, "batch channels"], taps: Float[Tensor, "channels kernel"]
) -> Float[Tensor, "batch channels"]:
    """A stencil for every channel: y_c = sum_j w_{c, j} g_{c + j - (k - 1) / 2}, zero beyond both ends (equation 6).

    Args:
        pooled: g.
        taps: w, an odd number per channel.
    """
    size = taps.shape[1]
    windows = F.pad(pooled, (size // 2, size // 2)).unfold(1, size, 1)
    return torch.bmm(windows.transpose(0, 1), taps.to(pooled.dtype)[:, :, None])[:, :, 0].t()


def unshared_stencil_reference(
    pooled: Float[Tensor, "batch channels"], taps: Float[Tensor, "channels kernel"]
) -> Float[Tensor, "batch channels"]:
    """`unshared_stencil` tap by tap."""
    channels, size = taps.shape
    padded = F.pad(pooled, (size // 2, size // 2))
    return torch.stack([padded[:, j : j + channels] * taps[:, j] for j in range(size)]).sum(dim=0)


@without_autocast
def dense_scores(
    pooled: Float[Tensor, "batch width"],
    weight: Float[Tensor, "channels width"],
    bias: Float[Tensor, " channels"] | None = None,
) -> Float[Tensor, "batch channels"]:
    """A full matrix on the pooled vector, in the precision of the matrix: widening it costs more than the product."""
    return F.linear(pooled.to(weight.dtype), weight, bias)


@without_autocast
def grouped_scores(
    pooled: Float[Tensor, "batch channels"], weight: Float[Tensor, "groups width width"]
) -> Float[Tensor, "batch channels"]:
    """A block-diagonal matrix on the pooled vector, in the precision of the matrix: `weight[g]` is the g-th block."""
    groups = pooled.to(weight.dtype).unflatten(1, weight.shape[:2]).transpose(0, 1)
    return torch.bmm(groups, weight.transpose(1, 2)).transpose(0, 1).flatten(1)


# --------------------------------------------------------------------------------------------------- scaling
# autocast changes nothing here, and switching it off costs as much as the sigmoid


def gate_of(
    x: Float[Tensor, "batch channels *space"], scores: Float[Tensor, "batch channels"]
) -> Float[Tensor, "batch channels *ones"]:
    """sigmoid(scores), of the type of `x` and with axes of length 1 for its positions."""
    return scores.sigmoid().to(x.dtype).reshape(*scores.shape, *[1] * (x.ndim - 2))


def scale_channels(
    x: Float[Tensor, "batch channels *space"], scores: Float[Tensor, "batch channels"]
) -> Float[Tensor, "batch channels *space"]:
    """The input times sigmoid(scores)."""
    return x * gate_of(x, scores)


def scale_channels_and_add(
    x: Float[Tensor, "batch channels *space"],
    scores: Float[Tensor, "batch channels"],
    shortcut: Float[Tensor, "batch channels *space"],
) -> Float[Tensor, "batch channels *space"]:
    """The shortcut plus x * sigmoid(scores), in one pass over memory."""
    return torch.addcmul(shortcut, x, gate_of(x, scores))
