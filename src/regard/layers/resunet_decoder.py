"""A step up in ResUNet's decoder: twice the size, beside the skip, through a residual unit.

Paper: "Road Extraction by Deep Residual U-Net", Zhang et al., GRSL 2018, https://arxiv.org/abs/1711.10684, figure 2.
Compared with an independent evaluation in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from regard.contract import load_strictly
from regard.layers.reference_names import rename_all
from regard.layers.residual_unit import ResidualUnit

Maps = Float[Tensor, "batch channels y x"]
Skip = Float[Tensor, "batch skip_channels y_out x_out"]
Outputs = Float[Tensor, "batch out_channels y_out x_out"]
Run = Callable[[nn.Module, Tensor], Tensor]
Upsampling = Literal["bilinear", "transposed"]
UPSAMPLINGS: tuple[Upsampling, ...] = ("bilinear", "transposed")
UNIT_NAMES = ((r"^(bn1|conv1|bn2|conv2|shortcut)\.", r"unit.\1."),)
"""Parts of the residual unit, which stand at the top in the reference."""


class ResUNetDecoderBlock(nn.Module):
    """unit([up(x); skip]).

    Args:
        in_channels: channels of the coarse map.
        skip_channels: channels of the skip; 0 = there is none.
        out_channels: channels of the output.
        upsampling: "bilinear" (pixels are areas, corners are not aligned), or "transposed", a convolution with stride 2
            that keeps the channels.

    Raises:
        ValueError: an unknown upsampling, or a size that is not positive.
    """

    def __init__(
        self, in_channels: int, skip_channels: int, out_channels: int, *, upsampling: Upsampling = "bilinear"
    ) -> None:
        super().__init__()
        if upsampling not in UPSAMPLINGS:
            raise ValueError(f"upsampling must be one of {', '.join(UPSAMPLINGS)}, got {upsampling!r}")
        if skip_channels < 0:
            raise ValueError(f"skip_channels must not be negative, got {skip_channels}")
        self.unit = ResidualUnit(in_channels + skip_channels, out_channels)
        self.up = nn.ConvTranspose2d(in_channels, in_channels, 2, stride=2) if upsampling == "transposed" else None

    def forward(self, x: Maps, skip: Skip | None = None, run: Run | None = None) -> Outputs:
        """Of twice the size of `x`, which is the skip's.

        Args:
            x: the coarse map.
            skip: the map beside it; None where there is none.
            run: applies the unit; None = the unit itself. Recomputation goes through it.
        """
        x = interpolate(x, scale_factor=2, mode="bilinear", align_corners=False) if self.up is None else self.up(x)
        x = x if skip is None else torch.cat((x, skip), dim=1)
        return self.unit(x) if run is None else run(self.unit, x)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load a layout with the unit's parts at the top: `bn1`, `conv1`, `bn2`, `conv2`, `shortcut`; or our own.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, rename_all(state_dict, UNIT_NAMES))
