"""Patches of a map as positions of a coarser one: a strided convolution of the padded map, then a norm.

Papers: "Pyramid Vision Transformer", Wang et al., ICCV 2021, https://arxiv.org/abs/2102.12122, and "Swin Transformer",
Liu et al., ICCV 2021, https://arxiv.org/abs/2103.14030 (patches without overlap); "CSWin Transformer", Dong et al.,
CVPR 2022, https://arxiv.org/abs/2107.00652 (overlapping ones).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from regard.ops.windows import pad_to_multiple


class NormedPatches(nn.Module):
    """norm(conv(x)) of a map whose channels lie last, padded with zeros at the bottom and at the right to the stride.

    Args:
        in_channels: channels of the map.
        dim: channels afterwards.
        stride: positions per side that become one.
        kernel_size: taps per side; None = `stride`, patches without overlap.
        padding: of the convolution, on all sides.

    Raises:
        ValueError: a number of channels or a stride that is not positive.
    """

    def __init__(
        self, in_channels: int, dim: int, *, stride: int, kernel_size: int | None = None, padding: int = 0
    ) -> None:
        super().__init__()
        if min(in_channels, dim, stride) < 1:
            raise ValueError(f"channels and stride must be positive, got {in_channels}, {dim} and {stride}")
        self.stride = stride
        self.conv = nn.Conv2d(in_channels, dim, kernel_size or stride, stride=stride, padding=padding)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "batch y x in_channels"]) -> Float[Tensor, "batch sy sx dim"]:
        """One position per stride, rounded up."""
        maps = self.conv(pad_to_multiple(x, (self.stride, self.stride)).permute(0, 3, 1, 2))
        return self.norm(maps.permute(0, 2, 3, 1))
