"""Batch norms folded into the convolutions beside them, where their statistics are fixed.

A batch norm in evaluation is y = s x + t for each channel. After a convolution it scales the kernels of its output
channels; before a 1 x 1 convolution it scales those of its input channels, and t becomes a bias. Folding anew in every
call costs a pass over the kernels and saves one over the map, and parameters stay as they are trained and stored.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from regard.ops.precision import compute_dtype

Maps = Float[Tensor, "batch channels y x"]
Outputs = Float[Tensor, "batch out_channels y_out x_out"]


def convolve(
    x: Maps, conv: nn.Conv2d, *, before: nn.BatchNorm2d | None = None, after: nn.BatchNorm2d | None = None
) -> Outputs:
    """`after(conv(before(x)))`; norms whose statistics are fixed are folded into the convolution.

    Args:
        x: the map.
        conv: the convolution; 1 x 1 where there is a norm before it.
        before: a norm of the input.
        after: a norm of the output.

    Raises:
        ValueError: a norm before a convolution that is not 1 x 1: its padding would have to be shifted, too.
    """
    weight, bias = conv.weight, conv.bias
    if before is not None:
        if conv.kernel_size != (1, 1):
            raise ValueError(f"a norm before a convolution needs a 1 x 1 kernel, got {conv.kernel_size}")
        if _is_fixed(before):
            weight, bias = _after_norm(weight, bias, before)
        else:
            x = before(x)
    if after is None:
        return _applied(conv, x, weight, bias)
    if not _is_fixed(after):
        return after(_applied(conv, x, weight, bias))
    return _applied(conv, x, *_before_norm(weight, bias, after))


def _applied(conv: nn.Conv2d, x: Maps, weight: Tensor, bias: Tensor | None) -> Outputs:
    """The convolution with other numbers; a 1 x 1 one on a map whose channels lie last is a single matrix product."""
    pointwise = conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.padding == (0, 0) and conv.groups == 1
    if pointwise and x.is_contiguous(memory_format=torch.channels_last):
        return linear(x.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)
    return conv._conv_forward(x, weight, bias)


def _is_fixed(norm: nn.BatchNorm2d) -> bool:
    return not norm.training and norm.running_mean is not None


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Of each channel, in at least float32."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    dtype = compute_dtype(norm.weight)
    scale = norm.weight.to(dtype) * torch.rsqrt(norm.running_var.to(dtype) + norm.eps)
    return scale, norm.bias.to(dtype) - norm.running_mean.to(dtype) * scale


def _before_norm(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    scale, shift = _scale_and_shift(norm)
    if bias is not None:
        shift = shift + bias * scale
    return (weight * scale[:, None, None, None]).to(weight.dtype), shift.to(weight.dtype)


def _after_norm(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    scale, shift = _scale_and_shift(norm)
    added = (weight * shift[:, None, None]).sum(dim=(1, 2, 3))
    if bias is not None:
        added = added + bias
    return (weight * scale[:, None, None]).to(weight.dtype), added.to(weight.dtype)
