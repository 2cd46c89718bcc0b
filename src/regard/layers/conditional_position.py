"""Positions from a depth-wise convolution, which zero padding at the borders anchors.

Paper: "Conditional Positional Encodings for Vision Transformers", Chu et al., ICLR 2023,
https://arxiv.org/abs/2102.10882, section 3.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class ConditionalPosition(nn.Module):
    """x + DWConv(x), the convolution depth-wise with a bias.

    Args:
        channels: number of channels.
        kernel_size: taps per side, odd.

    Raises:
        ValueError: an even kernel.
    """

    def __init__(self, channels: int, *, kernel_size: int = 3) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.conv = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)

    def forward(self, x: Float[Tensor, "batch channels y x"]) -> Float[Tensor, "batch channels y x"]:
        """The map and its local means."""
        return x + self.conv(x)
