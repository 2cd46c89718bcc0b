"""Atrous spatial pyramid pooling: a map seen at several scales at once, by kernels with holes and by its mean.

Paper: "Rethinking Atrous Convolution for Semantic Image Segmentation" (DeepLabv3), Chen et al., 2017,
https://arxiv.org/abs/1706.05587, section 3.3.
Compared with torchvision's `torchvision/models/segmentation/deeplabv3.py:ASPP`, whose layout it loads.
Where a map is smaller than a rate, the outer taps of that rate's kernel meet padding alone, and it acts as a 1x1
kernel. In training, the branch of the mean norms over the batch alone, which must then have at least two rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import load_strictly
from regard.layers.reference_names import rename_all

Maps = Float[Tensor, "batch channels y x"]
Outputs = Float[Tensor, "batch out_channels y x"]


class ConvNormReLU(nn.Module):
    """relu(norm(conv(x))), of the size of x, without a bias.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: taps per side, odd.
        dilation: positions from tap to tap.
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int = 1, dilation: int = 1) -> None:
        super().__init__()
        padding = dilation * (kernel_size // 2)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Maps) -> Outputs:
        """Convolved, normed and rectified."""
        return self.norm(self.conv(x)).relu_()


class ASPP(nn.Module):
    """W [b_1; b_r1; ...; b_rn; b_mean]: a 1x1 kernel, 3x3 kernels with a hole rate each, and the mean of the map.

    Every branch b, and the map W of all of them together, is a convolution with batch norm and ReLU.

    Args:
        in_channels: channels of the input, C_in.
        rates: positions from tap to tap, of every 3x3 kernel.
        out_channels: channels of every branch and of the output, C.
        dropout: probability with which a number of the output is 0 in training.

    Raises:
        ValueError: a size or a rate that is not positive, no rate, or a probability that is none.

    Cost: (1 + 9 n) C_in C + (n + 2) C^2 MACs per position for n rates, and C_in C for the mean.
    """

    def __init__(
        self, in_channels: int, rates: Sequence[int], *, out_channels: int = 256, dropout: float = 0.5
    ) -> None:
        super().__init__()
        if min(in_channels, out_channels) < 1:
            raise ValueError(f"channels must be positive, got {in_channels} and {out_channels}")
        if not rates or min(rates) < 1:
            raise ValueError(f"rates must be positive and at least one, got {tuple(rates)}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.point = ConvNormReLU(in_channels, out_channels)
        self.atrous = nn.ModuleList(
            ConvNormReLU(in_channels, out_channels, kernel_size=3, dilation=rate) for rate in rates
        )
        self.mean = ConvNormReLU(in_channels, out_channels)
        self.project = ConvNormReLU((len(rates) + 2) * out_channels, out_channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Maps) -> Outputs:
        """All branches side by side, then one map.

        Raises:
            ValueError: a single row in training: the branch of the mean has nothing to norm over.
        """
        if self.training and len(x) == 1:
            raise ValueError("training needs at least 2 rows in a batch, got 1: the mean of a map is normed over rows")
        mean = self.mean(x.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        branches = [self.point(x), *(branch(x) for branch in self.atrous), mean]
        return self.dropout(self.project(torch.cat(branches, dim=1)))

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load torchvision's layout: `convs.0` to `convs.<n + 1>` in the order of the branches, and `project`.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, rename_all(state_dict, aspp_names(len(self.atrous))))


def aspp_names(rates: int) -> tuple[tuple[str, str], ...]:
    """Rules from torchvision's names to ours.

    Args:
        rates: number of 3x3 kernels.
    """
    last = rates + 1
    return (
        (r"^convs\.0\.0\.", "point.conv."),
        (r"^convs\.0\.1\.", "point.norm."),
        (rf"^convs\.{last}\.1\.", "mean.conv."),
        (rf"^convs\.{last}\.2\.", "mean.norm."),
        *((rf"^convs\.{number + 1}\.0\.", f"atrous.{number}.conv.") for number in range(rates)),
        *((rf"^convs\.{number + 1}\.1\.", f"atrous.{number}.norm.") for number in range(rates)),
        (r"^project\.0\.", "project.conv."),
        (r"^project\.1\.", "project.norm."),
    )
