"""A residual bottleneck around any spatial operator: narrow, let positions meet, widen, add.

Papers: "Deep Residual Learning for Image Recognition", He et al., CVPR 2016, https://arxiv.org/abs/1512.03385 (figure
5, with a 3x3 convolution in the middle); "Scaling Local Self-Attention for Parameter Efficient Visual Backbones",
Vaswani et al., CVPR 2021, https://arxiv.org/abs/2103.12731 (with halo attention there).
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu, silu

from regard.layers.conv_norm import ConvNorm
from regard.layers.drop_path import DropPath

Maps = Float[Tensor, "batch channels y x"]
Activation = Literal["relu", "silu"]

ACTIVATIONS = {"relu": partial(relu, inplace=True), "silu": partial(silu, inplace=True)}
"""Written over what batch norms and additions give, which nothing else needs."""


class SpatialBottleneck(nn.Module):
    """y = act(shortcut(x) + expand(gate(act(norm(spatial(act(reduce(x)))))))).

    `reduce`, `expand` and `shortcut` are 1x1 convolutions with batch norms; there is no shortcut's convolution where
    the shapes are equal.

    Args:
        in_channels: channels of the input.
        width: channels that the spatial operator takes.
        spatial: the operator, from a map to a map.
        spatial_channels: channels that it gives.
        out_channels: channels of the output.
        stride: positions of the input per position of the operator's output, for the shortcut.
        gate: a gate on the operator's channels; None = none.
        activation: "relu" or "silu".
        drop_path: rate of stochastic depth.

    Raises:
        ValueError: an unknown activation, or a rate outside [0, 1).
    """

    def __init__(
        self,
        in_channels: int,
        *,
        width: int,
        spatial: nn.Module,
        spatial_channels: int,
        out_channels: int,
        stride: int = 1,
        gate: nn.Module | None = None,
        activation: Activation = "relu",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.activation = ACTIVATIONS[activation]
        self.reduce = ConvNorm(in_channels, width)
        self.spatial = spatial
        self.spatial_norm = nn.BatchNorm2d(spatial_channels)
        self.gate = gate
        self.expand = ConvNorm(spatial_channels, out_channels)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = None if same else ConvNorm(in_channels, out_channels, stride=stride)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Maps) -> Float[Tensor, "batch out_channels y_out x_out"]:
        """The branch, and what comes in."""
        inner = self.activation(self.reduce(x))
        inner = self.activation(self.spatial_norm(self.spatial(inner)))
        if self.gate is not None:
            inner = self.gate(inner)
        branch = self.drop_path(self.expand(inner))
        return self.activation(branch + (x if self.shortcut is None else self.shortcut(x)))
