"""Residual blocks of convolutional networks with a place for a feature mixer, and their recomputation in training.

Papers: "Deep Residual Learning for Image Recognition", He et al., CVPR 2016, https://arxiv.org/abs/1512.03385 (figure
5; the stride is on the 3x3 convolution of a bottleneck, as in torchvision); "MobileNetV2: Inverted Residuals and Linear
Bottlenecks", Sandler et al., CVPR 2018, https://arxiv.org/abs/1801.04381 (figure 4d). The mixer stands at the end of
the residual branch, before the addition: "ECA-Net", Wang et al., CVPR 2020, https://arxiv.org/abs/1910.03151.
Parameters are named as torchvision names them; the mixer is `mixer`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regard.contract import load_strictly
from regard.layers.channel_gate import ChannelGate, taps_of_conv

Images = Float[Tensor, "batch channels y x"]


def add_mixed(mixer: nn.Module | None, x: Images, shortcut: Images) -> Images:
    """`mixer(x) + shortcut`; a gate on channels does it in one pass, and None is the identity."""
    if mixer is None:
        return x + shortcut
    if isinstance(mixer, ChannelGate):
        return mixer.mix_and_add(x, shortcut)
    return mixer(x) + shortcut


class _ResidualBlock(nn.Module):
    """What both blocks share: the projected shortcut, and the authors' names."""

    downsample: nn.Sequential | None

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the layout of ECANet's and torchvision's blocks: `conv1.weight`, ..., `eca.conv.weight`.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, name_mixers(self, {name: (name, tensor) for name, tensor in state_dict.items()}))

    def _shortcut(self, x: Images) -> Images:
        return x if self.downsample is None else self.downsample(x)


class BasicBlock(_ResidualBlock):
    """Two 3x3 convolutions.

    Args:
        in_channels: channels of the input.
        width: channels of both convolutions, and of the output.
        stride: of the first convolution, and of the shortcut.
        mixer: feature mixer on `width` channels; None = none.
    """

    expansion = 1

    def __init__(self, in_channels: int, width: int, *, stride: int = 1, mixer: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.mixer = mixer
        self.downsample = projection(in_channels, width, stride)

    def forward(self, x: Images) -> Images:
        """Convolutions, mixer, addition, ReLU."""
        inner = self.bn1(self.conv1(x)).relu_()
        inner = self.bn2(self.conv2(inner))
        return add_mixed(self.mixer, inner, self._shortcut(x)).relu_()


class Bottleneck(_ResidualBlock):
    """A 1x1, a 3x3 and a widening 1x1 convolution.

    Args:
        in_channels: channels of the input.
        width: channels of the 3x3 convolution; the output has four times as many.
        stride: of the 3x3 convolution, and of the shortcut.
        mixer: feature mixer on `4 * width` channels; None = none.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, *, stride: int = 1, mixer: nn.Module | None = None) -> None:
        super().__init__()
        out_channels = self.expansion * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.mixer = mixer
        self.downsample = projection(in_channels, out_channels, stride)

    def forward(self, x: Images) -> Images:
        """Convolutions, mixer, addition, ReLU."""
        inner = self.bn1(self.conv1(x)).relu_()
        inner = self.bn2(self.conv2(inner)).relu_()
        inner = self.bn3(self.conv3(inner))
        return add_mixed(self.mixer, inner, self._shortcut(x)).relu_()


class InvertedResidual(nn.Module):
    """A widening 1x1, a depthwise 3x3 and a linear narrowing 1x1 convolution, with a shortcut where shapes allow.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the depthwise convolution.
        expand_ratio: the inner width is `in_channels * expand_ratio`; 1 = without the widening convolution.
        mixer: feature mixer on `out_channels` channels; None = none.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, expand_ratio: int, mixer: nn.Module | None
    ) -> None:
        super().__init__()
        self.has_shortcut = stride == 1 and in_channels == out_channels
        inner = in_channels * expand_ratio
        layers: list[nn.Module] = [conv_bn_relu6(in_channels, inner, kernel_size=1)] if expand_ratio != 1 else []
        layers.append(conv_bn_relu6(inner, inner, kernel_size=3, stride=stride, groups=inner))
        layers.append(nn.Conv2d(inner, out_channels, 1, bias=False))
        layers.append(nn.BatchNorm2d(out_channels))
        self.conv = nn.Sequential(*layers)
        self.mixer = mixer

    def forward(self, x: Images) -> Images:
        """Convolutions, mixer, and the addition where there is a shortcut."""
        inner = self.conv(x)
        if self.has_shortcut:
            return add_mixed(self.mixer, inner, x)
        return inner if self.mixer is None else self.mixer(inner)


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The shortcut of a block whose output has another shape than its input; None where the shapes are equal."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
    )


def conv_bn_relu6(
    in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """A convolution that keeps the size, but for its stride, batch norm, and min(max(x, 0), 6)."""
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, groups=groups, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU6(inplace=True))


def initialise_convolutions(module: nn.Module) -> None:
    """Two-dimensional convolutions from N(0, 2 / (kernel area * output channels)); batch norms 1 and 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            fan_out = math.prod(part.kernel_size) * part.out_channels
            nn.init.normal_(part.weight, 0.0, math.sqrt(2 / fan_out))
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def name_mixers(module: nn.Module, renamed: Mapping[str, tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Replace `eca.conv.weight`, as ECANet names the stencils of a block, by `mixer.taps`.

    Args:
        module: whose parameters are to be loaded.
        renamed: our name of each tensor so far, and the tensor, by the reference's name.

    Raises:
        KeyError: two tensors of the reference would get the same name.
    """
    parameters = dict(module.named_parameters())
    made: dict[str, Tensor] = {}
    for reference_name, (name, tensor) in renamed.items():
        prefix, found, _ = name.rpartition("eca.conv.weight")
        if found and (not prefix or prefix.endswith(".")):
            name = f"{prefix}mixer.taps"
            tensor = taps_of_conv(tensor, like=parameters[name]) if name in parameters else tensor
        if name in made:
            raise KeyError(f"unknown keys: {reference_name}, beside another that stands for {name}")
        made[name] = tensor
    return made


# --------------------------------------------------------------------------------------------------- recomputation


def recomputed(block: nn.Module, x: Images) -> Images:
    """`block(x)`, whose activations are not kept but computed again for the gradient (gradient checkpointing).

    The second computation leaves the running statistics of batch norms as they are, so that training is the same as
    without.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _frozen_statistics(block)

    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    norms = [part for part in block.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    counts = [None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone() for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        with torch.no_grad():
            for norm, momentum, count in zip(norms, momenta, counts, strict=True):
                norm.momentum = momentum
                if count is not None and norm.num_batches_tracked is not None:
                    norm.num_batches_tracked.copy_(count)
