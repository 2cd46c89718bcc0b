"""Transposed convolution with "same" padding: every side grows by the stride exactly.

With kernel k and stride s, n positions spread over (n - 1) s + k. "Same" padding keeps n s of them: an excess k - s is
dropped, half of it (rounded down) before the map and the rest behind it; where the kernel is shorter than the stride,
the positions that nothing reaches lie at the end and hold the bias. Source: TensorFlow's documentation of
`tf.nn.conv_transpose`.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv_transpose3d

Volumes = Float[Tensor, "batch channels x y z"]


class SameConvTranspose3d(nn.ConvTranspose3d):
    """A transposed convolution from sides of n to sides of n times the stride.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: taps per side.
        stride: factor by which sides grow.
        bias: a bias per output channel.

    Raises:
        ValueError: a kernel or a stride that is not positive.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, *, stride: int = 2, bias: bool = True
    ) -> None:
        if kernel_size < 1 or stride < 1:
            raise ValueError(f"kernel_size and stride must be positive, got {kernel_size} and {stride}")
        excess = kernel_size - stride
        before = max(excess, 0) // 2
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=before,
            output_padding=max(-excess, 0),
            bias=bias,
        )
        self.before = before
        self.surplus = max(excess, 0) - 2 * before
        """Positions at the end of every side that symmetric padding leaves."""

    def forward(
        self, input: Volumes, output_size: list[int] | None = None
    ) -> Float[Tensor, "batch out_channels x_out y_out z_out"]:
        """The map, larger by the stride.

        Raises:
            ValueError: an output size, which the stride alone decides.
        """
        if output_size is not None:
            raise ValueError(f"the output's size is the input's times the stride, got output_size={output_size}")
        return self.applied(input, self.weight, self.bias)

    def applied(
        self, input: Volumes, weight: Tensor, bias: Tensor | None
    ) -> Float[Tensor, "batch out_channels x_out y_out z_out"]:
        """The layer with another kernel and bias."""
        y = conv_transpose3d(input, weight, bias, self.stride, self.before, self.output_padding)
        if not self.surplus:
            return y
        kept = slice(None, -self.surplus)
        return y[:, :, kept, kept, kept]
