"""Batch norm of a feature map with any number of spatial axes, and its folding into the convolution before it.

Paper: "Batch Normalization", Ioffe and Szegedy, ICML 2015, https://arxiv.org/abs/1502.03167.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import conv_flop_count, flop_registry, register_flop_formula

from regard.layers.same_transposed import SameConvTranspose3d
from regard.ops.precision import compute_dtype

Features = Float[Tensor, "batch channels *space"]

SMALLEST_FAST = 20480
"""Channels times the first two sides of one volume up to which PyTorch takes its slow kernel."""
_HAS_FAST_KERNEL = torch.backends.mkldnn.is_available()
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class AnyBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batch and all positions, for signals, images and volumes.

    A `BatchNorm2d`, so that whatever treats those treats these alike (recomputation, frozen statistics).

    Args:
        channels: number of channels.
        eps: added to the variance.
        momentum: share of a batch in the running statistics (1 minus what Keras calls momentum).
    """

    def __init__(self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 3:
            raise ValueError(f"a map has shape (batch, channels, *space), got {tuple(input.shape)}")


def convolved(
    x: Features, weight: Tensor, bias: Tensor | None, *, norm: AnyBatchNorm | None = None, padding: int = 0
) -> Float[Tensor, "batch out_channels *space"]:
    """`norm(convolution(x))`; a norm whose statistics are fixed is folded into the kernel.

    Args:
        x: the map.
        weight: kernel `(out_channels, channels, *taps)`; a matrix `(out_channels, channels)` has one tap.
        bias: one number per output channel.
        norm: of the output.
        padding: zeros at every border.
    """
    fixed = norm is not None and not norm.training
    if norm is not None and fixed:
        weight, bias = _folded(weight, bias, norm)
    axes = x.ndim - 2
    if weight.ndim == 2:
        weight = weight.reshape(*weight.shape, *[1] * axes)
    if _falls_to_the_slow_kernel(x, weight):
        y = torch.mkldnn_convolution(x, weight, bias, [padding] * 3, [1] * 3, [1] * 3, 1)
    else:
        y = _CONVOLUTIONS[axes](x, weight, bias, padding=padding)
    return y if norm is None or fixed else norm(y)


def _count_flops(
    x_shape: list[int], weight_shape: list[int], *more: object, out_shape: list[int], **named: object
) -> int:
    """What a convolution by the fast kernel, called by its name, costs: as by any other."""
    return conv_flop_count(x_shape, weight_shape, out_shape)


if torch.ops.aten.mkldnn_convolution not in flop_registry:
    register_flop_formula(torch.ops.aten.mkldnn_convolution)(_count_flops)


def _falls_to_the_slow_kernel(x: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch would leave its fast kernel aside: for one volume with few channels and short leading sides.

    Its rule counts two of the three sides. The fast kernel is several times as fast there.
    """
    if x.ndim != 5 or x.shape[0] != 1 or weight.shape[-1] == 1 or torch.compiler.is_compiling():
        return False
    few = x.shape[1] * x.shape[2] * x.shape[3] <= SMALLEST_FAST
    return few and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and _HAS_FAST_KERNEL


def grown(x: Features, layer: SameConvTranspose3d, norm: AnyBatchNorm | None) -> Float[Tensor, "batch out *fine"]:
    """`norm(layer(x))`; a norm whose statistics are fixed is folded into the kernel."""
    if norm is None or norm.training:
        y: Tensor = layer(x)
        return y if norm is None else norm(y)
    weight, bias = _folded(layer.weight, layer.bias, norm, axis=1)
    return layer.applied(x, weight, bias)


def _folded(weight: Tensor, bias: Tensor | None, norm: AnyBatchNorm, axis: int = 0) -> tuple[Tensor, Tensor]:
    """Kernel and bias with the scale and the shift of the norm, computed in at least float32.

    Args:
        weight: the kernel.
        bias: one number per output channel.
        norm: of the output.
        axis: of the kernel's output channels.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    wide = compute_dtype(norm.weight)
    scale = norm.weight.to(wide) * torch.rsqrt(norm.running_var.to(wide) + norm.eps)
    shift = norm.bias.to(wide) - norm.running_mean.to(wide) * scale
    if bias is not None:
        shift = shift + bias * scale
    along = [-1 if number == axis else 1 for number in range(weight.ndim)]
    return (weight * scale.view(along)).to(weight.dtype), shift.to(weight.dtype)
