"""Convolutions and linear maps with batch norms, which fold into single maps for inference.

Papers: "Batch Normalization", Ioffe and Szegedy, ICML 2015, https://arxiv.org/abs/1502.03167, section 3; "RepVGG:
Making VGG-style ConvNets Great Again", Ding et al., CVPR 2021, https://arxiv.org/abs/2101.03697, section 3.3 (a
shortcut beside a convolution is 1 in the middle of its kernel).
In evaluation a batch norm is a scale and a shift per channel, so that it, and such a shortcut, cost nothing once they
are part of the weights. On the CPU, a layer that is not folded for good folds in every call on a map that is large
beside its weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from regard.layers.drop_path import DropPath
from regard.layers.norm_folding import convolve

Maps = Float[Tensor, "batch channels y x"]

SMALLEST_FOLDED, FOLDED_PER_WEIGHT = 2**17, 4
"""Numbers in the output of a layer, in all and per weight, below which folding in a call takes longer than the norm."""


class Foldable(nn.Module, ABC):
    """A layer that is a single convolution or linear map in evaluation."""

    @abstractmethod
    def folded(self) -> nn.Module:
        """That map, in the layer's type and on its device, without gradients."""


def fold_norms(module: nn.Module) -> None:
    """Replace every foldable layer inside `module` by the map that it is in evaluation."""
    for name, child in module.named_children():
        if isinstance(child, Foldable):
            setattr(module, name, child.folded())
        else:
            fold_norms(child)


class PointwiseConv(nn.Conv2d):
    """A 1x1 convolution, which on the CPU is one product of matrices: all positions of all images are its rows.

    PyTorch multiplies image by image there, unless the batch is large. Other devices, compilers and exporters know
    best what to do with a convolution.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        bias: a bias per channel.
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.device.type != "cpu" or torch.compiler.is_compiling():
            return super()._conv_forward(input, weight, bias)
        return linear(input.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


class ConvNorm(Foldable):
    """A convolution without bias that keeps the size, but for its stride, and a batch norm.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: taps per side, odd.
        stride: of the convolution; sizes are divided by it and rounded up.
        groups: groups of channels of the convolution.
        initial_scale: what the norm's scales start from; 0 at the end of a residual branch.

    Raises:
        ValueError: an even kernel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        initial_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.conv = _conv2d(in_channels, out_channels, kernel_size, stride=stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        nn.init.constant_(self.norm.weight, initial_scale)

    def forward(self, x: Maps) -> Float[Tensor, "batch out_channels y_out x_out"]:
        """Convolved and normed."""
        return convolve(x, self.conv, after=self.norm) if self._folds(x) else self.norm(self.conv(x))

    def _folds(self, x: Maps) -> bool:
        """Whether folding in this call is faster; never where shapes may be symbols."""
        if self.training or x.device.type != "cpu" or torch.compiler.is_compiling():
            return False
        numbers = x.shape[0] * x.shape[2] * x.shape[3] // self.conv.stride[0] ** 2 * self.conv.out_channels
        return numbers >= max(SMALLEST_FOLDED, FOLDED_PER_WEIGHT * self.conv.weight.numel())

    def folded(self) -> nn.Conv2d:
        """A convolution with bias."""
        scale, shift = _scale_and_shift(self.norm)
        return _convolution(self.conv, self.conv.weight.double() * scale[:, None, None, None], shift)


class ResidualDepthwise(Foldable):
    """x + norm(DWConv(x)): every channel and a weighted neighbourhood of it.

    Args:
        channels: number of channels.
        kernel_size: taps per side, odd.
        initial_scale: what the norm's scales start from.
        drop_path: rate of stochastic depth of the branch.

    Raises:
        ValueError: an even kernel.
    """

    def __init__(
        self, channels: int, *, kernel_size: int = 3, initial_scale: float = 1.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.branch = ConvNorm(
            channels, channels, kernel_size=kernel_size, groups=channels, initial_scale=initial_scale
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Maps) -> Maps:
        """The sum is written over the branch's output, which nothing else needs."""
        return self.drop_path(self.branch(x)).add_(x)

    def folded(self) -> nn.Conv2d:
        """A convolution with bias whose middle taps are 1 larger."""
        conv = self.branch.conv
        scale, shift = _scale_and_shift(self.branch.norm)
        weight = conv.weight.double() * scale[:, None, None, None]
        middle = conv.kernel_size[0] // 2
        weight[:, 0, middle, middle] += 1
        return _convolution(conv, weight, shift)


class NormLinear(Foldable):
    """A batch norm and a linear map with bias: a classifier on pooled features.

    Args:
        in_features: width of the input.
        out_features: width of the output.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(in_features)
        self.linear = nn.Linear(in_features, out_features)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch out_features"]:
        """Normed and mapped."""
        return self.linear(self.norm(x))

    def folded(self) -> nn.Linear:
        """A linear map."""
        scale, shift = _scale_and_shift(self.norm)
        weight = self.linear.weight.detach().double()
        return linear_map(weight * scale, self.linear.bias.double() + weight @ shift, like=self.linear)


def linear_map(
    weight: Float[Tensor, "out_features in_features"], bias: Float[Tensor, " out_features"], *, like: nn.Linear
) -> nn.Linear:
    """A linear map with these numbers, in the type of `like`, without gradients."""
    # the meta device: no memory, and no random numbers drawn, for what is replaced at once
    with torch.device("meta"):
        made = nn.Linear(weight.shape[1], weight.shape[0])
    _set(made, weight, bias, like.weight.dtype)
    return made


def _scale_and_shift(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What a batch norm is in evaluation, in float64: rounding then happens once."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.detach().double() - norm.running_mean.double() * scale


def _convolution(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """`conv` with other numbers and a bias."""
    size, stride = conv.kernel_size[0], conv.stride[0]
    with torch.device("meta"):
        made = _conv2d(conv.in_channels, conv.out_channels, size, stride=stride, groups=conv.groups, bias=True)
    _set(made, weight, bias, conv.weight.dtype)
    return made


def _conv2d(
    in_channels: int, out_channels: int, kernel_size: int, *, stride: int, groups: int, bias: bool
) -> nn.Conv2d:
    if kernel_size == stride == groups == 1:
        return PointwiseConv(in_channels, out_channels, bias=bias)
    padding = kernel_size // 2
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding, groups=groups, bias=bias)


def _set(module: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
    module.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    module.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
