"""The residual unit of ResUNet: norm and activation before each of two convolutions, beside a projection.

Papers: "Identity Mappings in Deep Residual Networks", He et al., ECCV 2016, https://arxiv.org/abs/1603.05027 (the
order); "Road Extraction by Deep Residual U-Net", Zhang et al., GRSL 2018, https://arxiv.org/abs/1711.10684, figure 1.
Compared with an independent evaluation in float64. The projection sees the raw input and has a batch norm of its own;
no convolution has a bias.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

Maps = Float[Tensor, "batch channels y x"]
Outputs = Float[Tensor, "batch out_channels y_out x_out"]


class ResidualUnit(nn.Module):
    """conv2(relu(bn2(conv1(relu(bn1(x)))))) + norm(W x), with 3x3 kernels.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the first convolution and of the projection.
        activate_input: norm and activation before the first convolution; without them the unit is the first of a
            network, which must not clip its images.

    Raises:
        ValueError: a size that is not positive.

    Cost: 9 C (C_in + C) + C C_in MACs per position of the output.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, activate_input: bool = True) -> None:
        super().__init__()
        if min(in_channels, out_channels, stride) < 1:
            raise ValueError(f"channels and stride must be positive, got {in_channels}, {out_channels} and {stride}")
        self.bn1 = nn.BatchNorm2d(in_channels) if activate_input else None
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.stride = stride
        self.shortcut = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))

    def forward(self, x: Maps) -> Outputs:
        """Both branches, added."""
        inner = x if self.bn1 is None else self.bn1(x).relu_()
        inner = self.bn2(self.conv1(inner)).relu_()
        # the stride is taken here: on the CPU the gradient of a 1x1 convolution with a stride writes beyond its memory
        # where few channels lie last (PyTorch 2.14)
        return self.conv2(inner) + self.shortcut(x[:, :, :: self.stride, :: self.stride])
