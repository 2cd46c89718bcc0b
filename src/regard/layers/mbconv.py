"""MBConv with the norm first: widen, convolve each channel, gate, narrow, and add the input.

Papers: "MobileNetV2", Sandler et al., CVPR 2018, https://arxiv.org/abs/1801.04381 (the inverted bottleneck);
"EfficientNet", Tan and Le, ICML 2019, https://arxiv.org/abs/1905.11946 (with a gate); "MaxViT", Tu et al., ECCV 2022,
https://arxiv.org/abs/2204.01697, section 3.2 (norm first, GELU, a pooled shortcut).
Compared with google-research/maxvit@70a47072, `maxvit/models/maxvit.py:MBConvBlock`. GELU is the tanh approximation;
the ratio multiplies the width of the output; the last convolution and the shortcut's have a bias, the others none.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu

from regard.layers.drop_path import DropPath
from regard.layers.norm_folding import convolve
from regard.layers.same_padding import SameAvgPool2d, SameConv2d

NORM_EPS, NORM_MOMENTUM = 1e-3, 0.01
Maps = Float[Tensor, "batch channels y x"]
Outputs = Float[Tensor, "batch out_channels y_out x_out"]


class MBConv(nn.Module):
    """shortcut(x) + W3 gate(GELU(norm(DWConv(GELU(norm(W1 norm(x))))))), with TensorFlow's SAME padding.

    The shortcut takes means over `stride` x `stride` positions and is projected where the width changes.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, C.
        stride: of the depth-wise convolution, and of the shortcut.
        expand_ratio: the width inside is `expand_ratio * out_channels`.
        gate: on the channels inside; None = none.
        drop_path: rate of stochastic depth.

    Raises:
        ValueError: a size that is not positive.

    Cost: about 2 e N C^2 MACs for N positions and a ratio of e.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        expand_ratio: int = 4,
        gate: nn.Module | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if min(in_channels, out_channels, expand_ratio) < 1:
            raise ValueError(
                f"channels and expand_ratio must be positive, got {in_channels}, {out_channels} and {expand_ratio}"
            )
        inner = expand_ratio * out_channels
        self.pre_norm = batch_norm(in_channels)
        self.expand_conv = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.expand_norm = batch_norm(inner)
        self.depthwise_conv = SameConv2d(inner, inner, 3, stride=stride, groups=inner, bias=False)
        self.depthwise_norm = batch_norm(inner)
        self.gate = gate
        self.shrink_conv = nn.Conv2d(inner, out_channels, 1)
        self.shortcut_pool = SameAvgPool2d(stride)
        self.shortcut_conv = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Maps) -> Outputs:
        """Of ceil(n / stride) positions per side."""
        inner = gelu(convolve(x, self.expand_conv, before=self.pre_norm, after=self.expand_norm), approximate="tanh")
        inner = gelu(convolve(inner, self.depthwise_conv, after=self.depthwise_norm), approximate="tanh")
        if self.gate is not None:
            inner = self.gate(inner)
        return self._shortcut(x) + self.drop_path(convolve(inner, self.shrink_conv))

    def _shortcut(self, x: Maps) -> Outputs:
        x = self.shortcut_pool(x)
        return x if self.shortcut_conv is None else convolve(x, self.shortcut_conv)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """With TensorFlow's epsilon, 1e-3, and a momentum that is 0.99 there and 0.01 here."""
    return nn.BatchNorm2d(channels, eps=NORM_EPS, momentum=NORM_MOMENTUM)
