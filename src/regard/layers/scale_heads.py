"""The heads of MEDUSA: at every scale, the global map and the features there make an attention map of their own.

Paper: "MEDUSA: Multi-scale Encoder-Decoder Self-Attention Deep Neural Network Architecture for Medical Image Analysis",
Aboutalebi et al., Frontiers in Medicine 2022, https://arxiv.org/abs/2110.06063.
There is no public code of the architecture: outputs and gradients are compared with independent evaluations of the
equations below.
Where the paper is silent: a head is a 3x3 and a 1x1 convolution, it joins [global map, features], and it makes one map
for all channels. These are options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from regard.contract import load_strictly
from regard.layers.conv_norm import ConvNorm
from regard.layers.reference_names import rename_all
from regard.layers.residual_blocks import initialise_convolutions
from regard.ops.spatial_gate import scale_positions

GlobalMap = Float[Tensor, "batch global_channels y_global x_global"]
Features = Float[Tensor, "batch channels y x"]
Scores = Float[Tensor, "batch maps y x"]
Scaling = Literal["bilinear", "means"]

SMALL = 0.01
"""Standard deviation of the last weights: every head then begins near 1/2 everywhere."""
HEAD_NAMES = (
    (r"^(heads\.\d+)\.0\.", r"\1.hidden.conv."),
    (r"^(heads\.\d+)\.1\.", r"\1.hidden.norm."),
    (r"^(heads\.\d+)\.3\.", r"\1.last."),
)
"""Layers of a head that are numbered inside a sequence, as ours."""
OWN_NAMES = (*HEAD_NAMES, (r"^heads\.", ""))
"""The same as `ScaleHeads` itself names them."""


class Attended(NamedTuple):
    """What a head makes of features.

    Args:
        attention: from 0 to 1; one map, or one for every channel.
        modulated: the features, scaled.
    """

    attention: Float[Tensor, "batch maps y x"]
    modulated: Features


class ScaleHead(nn.Module):
    """M = sigmoid(h([resized(A^G), F])), F' = F M, with h = 3x3 convolution, batch norm, ReLU, 1x1 convolution.

    Args:
        channels: channels of the features F.
        global_channels: channels of the global map A^G; 0 = the head sees its features alone.
        head_width: channels inside h.
        per_channel: a map for every channel instead of one for all.
        residual: F (1 + M) instead of F M, which is gentler on pretrained features.
        scaling: how the global map is brought to the features' size: "bilinear" interpolation between neighbouring
            positions, or "means" over areas, which see every position of the global map.

    Raises:
        ValueError: a size that is not positive (`global_channels` may be 0), or an unknown scaling.

    Cost: 9 (global_channels + C) head_width + 3 head_width + 1 parameters with one map, and about as many MACs per
    position.
    """

    def __init__(
        self,
        channels: int,
        *,
        global_channels: int = 1,
        head_width: int = 8,
        per_channel: bool = False,
        residual: bool = False,
        scaling: Scaling = "bilinear",
    ) -> None:
        super().__init__()
        if channels < 1 or head_width < 1:
            raise ValueError(
                f"channels and head_width must be positive, got channels={channels} and head_width={head_width}"
            )
        if global_channels < 0:
            raise ValueError(f"global_channels must not be negative, got {global_channels}")
        if scaling not in ("bilinear", "means"):
            raise ValueError(f"scaling must be bilinear or means, got {scaling!r}")
        self.channels, self.global_channels = channels, global_channels
        self.residual, self.scaling = residual, scaling
        self.hidden = ConvNorm(global_channels + channels, head_width, kernel_size=3)
        self.last = nn.Conv2d(head_width, channels if per_channel else 1, 1)
        initialise_convolutions(self)
        nn.init.normal_(self.last.weight, std=SMALL)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)
        self.to(memory_format=torch.channels_last)

    def forward(self, global_map: GlobalMap | None, features: Features) -> Attended:
        """The attention map of this scale, and the features that it modulates.

        Raises:
            ValueError: a number of channels that does not fit, or a global map where none is used or lacking.
        """
        scores = self.scores(global_map, features)
        return Attended(scores.sigmoid(), scale_positions(features, scores, residual=self.residual))

    def modulate(self, global_map: GlobalMap | None, features: Features) -> Features:
        """The modulated features alone.

        Raises:
            ValueError: as `forward`.
        """
        return scale_positions(features, self.scores(global_map, features), residual=self.residual)

    def scores(self, global_map: GlobalMap | None, features: Features) -> Scores:
        """What the sigmoid is taken of.

        Raises:
            ValueError: as `forward`.
        """
        if features.ndim != 4 or features.shape[1] != self.channels:
            raise ValueError(f"features must have shape (batch, {self.channels}, y, x), got {tuple(features.shape)}")
        found = 0 if global_map is None else global_map.shape[1]
        if found != self.global_channels:
            raise ValueError(f"the global map has {found} channels and the head takes {self.global_channels}")
        seen = features
        if global_map is not None:
            seen = torch.cat((resized(global_map, features.shape[2:], self.scaling), features), dim=1)
        return self.last(self.hidden(seen).relu_())


class ScaleHeads(nn.ModuleList):
    """A head for each of several scales, all fed by one global map.

    Args:
        channels: of the features of each scale, finest first.
        global_channels: as in `ScaleHead`.
        head_width: as in `ScaleHead`.
        per_channel: as in `ScaleHead`.
        residual: as in `ScaleHead`.
        scaling: as in `ScaleHead`.

    Raises:
        ValueError: as `ScaleHead`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        global_channels: int = 1,
        head_width: int = 8,
        per_channel: bool = False,
        residual: bool = False,
        scaling: Scaling = "bilinear",
    ) -> None:
        super().__init__(
            ScaleHead(
                width,
                global_channels=global_channels,
                head_width=head_width,
                per_channel=per_channel,
                residual=residual,
                scaling=scaling,
            )
            for width in channels
        )

    def forward(self, global_map: GlobalMap | None, features: Sequence[Features]) -> tuple[Attended, ...]:
        """Every head on the features of its scale.

        Raises:
            ValueError: another number of scales than of heads, or as `ScaleHead`.
        """
        if len(features) != len(self):
            raise ValueError(f"there are {len(features)} feature maps and {len(self)} heads: one each is needed")
        return tuple(head(global_map, each) for head, each in zip(self, features, strict=True))

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the layout in which the layers of a head are numbered 0, 1 and 3.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, rename_all(state_dict, OWN_NAMES))


def resized(
    x: Float[Tensor, "batch channels y x"], size: Sequence[int], scaling: Scaling
) -> Float[Tensor, "batch channels y_out x_out"]:
    """The map with `size` positions per side."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    height, width = size
    if scaling == "means":
        return F.adaptive_avg_pool2d(x, (height, width))
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
