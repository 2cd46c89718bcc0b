"""A convolution over rows and columns in which a row sees itself and earlier rows alone.

From "SEA: Sparse Linear Attention with Estimated Attention Mask", Lee et al., ICLR 2024,
https://arxiv.org/abs/2310.01777; compared with gmlwns2000/sea-attention@5609413b
`src/models/perlin_attention/modules.py:CausalConv2d`, which holds a kernel of twice the height, of whose later rows
none counts; here they do not exist.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from regard.ops.precision import compute_dtype, without_autocast

Rows = Float[Tensor, "batch in_channels rows width"]
EarlierRows = Float[Tensor, "batch in_channels earlier_rows width"]


class CausalConv2d(nn.Module):
    """Convolution with zeros above the first row and at both sides; the width is kept.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        kernel_size: taps along both axes; odd.
        dilation: distance of the taps along both axes.

    Raises:
        ValueError: a size that is not positive, or an even kernel.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, dilation: int = 1) -> None:
        super().__init__()
        if min(in_channels, out_channels, dilation) < 1:
            raise ValueError(
                "channels and dilation must be positive, "
                f"got in_channels={in_channels}, out_channels={out_channels} and dilation={dilation}"
            )
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
        self.dilation = dilation
        self.reach = (kernel_size - 1) * dilation
        """Rows before a row that it sees."""
        like = nn.Conv2d(in_channels, out_channels, kernel_size)
        self.weight, self.bias = like.weight, like.bias

    def forward(self, x: Rows, *, before: EarlierRows | None = None) -> Float[Tensor, "batch out_channels rows width"]:
        """Convolve, in at least float32.

        Args:
            x: the rows.
            before: the `reach` rows before them; None = zeros.
        """
        above = self.reach if before is None else 0
        x = x if before is None else torch.cat((before, x), dim=2)
        side = self.reach // 2
        assert self.bias is not None
        return convolve(pad(x, (side, side, above, 0)), self.weight, self.bias, dilation=self.dilation)

    def extra_repr(self) -> str:
        """Channels, taps and dilation."""
        out_channels, in_channels, taps, _ = self.weight.shape
        return f"{in_channels}, {out_channels}, kernel_size={taps}, dilation={self.dilation}"


@without_autocast
def convolve(
    x: Rows,
    weight: Float[Tensor, "out_channels in_channels kernel_height kernel_width"],
    bias: Float[Tensor, " out_channels"],
    *,
    dilation: int = 1,
    stride: tuple[int, int] = (1, 1),
    padding: int = 0,
) -> Float[Tensor, "batch out_channels out_rows out_width"]:
    """`conv2d` in at least float32."""
    dtype = compute_dtype(x)
    return conv2d(x.to(dtype), weight.to(dtype), bias.to(dtype), stride=stride, padding=padding, dilation=dilation)
