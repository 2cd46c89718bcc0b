"""TensorFlow's "SAME" padding: a strided map has ceil(n / stride) positions, and an odd excess goes to the far end.

With stride 1 and odd kernels it is the usual symmetric padding; with stride 2 on even sizes a 3 x 3 kernel pads nothing
before the map and one position after it. Source: TensorFlow's documentation of `tf.nn.convolution`.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, pad

Maps = Float[Tensor, "batch channels y x"]


def same_padding(length: int, *, kernel_size: int, stride: int) -> tuple[int, int]:
    """Positions to pad before and after an axis.

    Args:
        length: of the axis.
        kernel_size: taps along it.
        stride: along it.
    """
    excess = max((-(-length // stride) - 1) * stride + kernel_size - length, 0)
    return excess // 2, excess - excess // 2


class SameConv2d(nn.Conv2d):
    """A convolution whose output has ceil(n / stride) positions per side, whatever the kernel.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: taps per side.
        stride: of the kernel.
        groups: groups of channels.
        bias: a bias per output channel.

    Raises:
        ValueError: a kernel or a stride that is not positive.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        if kernel_size < 1 or stride < 1:
            raise ValueError(f"kernel_size and stride must be positive, got {kernel_size} and {stride}")
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, groups=groups, bias=bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        (top, bottom), (left, right) = (
            same_padding(input.shape[axis - 2], kernel_size=self.kernel_size[axis], stride=self.stride[axis])
            for axis in (0, 1)
        )
        if (top, left) != (bottom, right):
            # the convolution pads both ends alike
            input = pad(input, (left, right, top, bottom))
            top, left = 0, 0
        return conv2d(input, weight, bias, self.stride, (top, left), self.dilation, self.groups)


class SameAvgPool2d(nn.Module):
    """Means over squares that do not overlap, those at the ends over what is there.

    Args:
        stride: positions per side of a square.

    Raises:
        ValueError: a stride that is not positive.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        if stride < 1:
            raise ValueError(f"stride must be positive, got {stride}")
        self.stride = stride

    def forward(self, x: Maps) -> Float[Tensor, "batch channels y_out x_out"]:
        """The padding counts neither in sums nor in their number."""
        if self.stride == 1:
            return x
        before = [same_padding(length, kernel_size=self.stride, stride=self.stride)[0] for length in x.shape[2:]]
        return avg_pool2d(x, self.stride, padding=before, ceil_mode=True, count_include_pad=False)

    def extra_repr(self) -> str:
        """The stride."""
        return f"stride={self.stride}"
