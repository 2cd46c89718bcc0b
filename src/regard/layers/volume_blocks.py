"""Parts of three-dimensional U-Nets: convolution blocks, an encoder with an image pyramid, and growing maps.

Papers: "3D U-Net", Çiçek et al., MICCAI 2016, https://arxiv.org/abs/1606.06650; the image pyramid at every level is
that of "A Novel Focal Tversky Loss Function with Improved Attention U-Net for Lesion Segmentation", Abraham and Khan,
ISBI 2019, https://arxiv.org/abs/1810.07842.
As in dbouget/mri_brain_tumor_segmentation@7af4e77a: Keras' epsilon of batch norms, Glorot-uniform kernels,
zero biases, the pyramid's maps before the pooled ones, and no norm on them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from regard.layers.any_batch_norm import AnyBatchNorm, convolved
from regard.layers.residual_blocks import recomputed
from regard.ops.precision import compute_dtype
from regard.ops.tied_pooling import tied_max_pool

Volumes = Float[Tensor, "batch channels x y z"]

EPS = 1e-3
"""Of batch norms in Keras."""


def initialise_as_keras(module: nn.Module) -> None:
    """Kernels and matrices uniform in Glorot's bounds, biases zero."""
    for part in module.modules():
        if isinstance(part, nn.Conv3d | nn.ConvTranspose3d | nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class NormedConv(nn.Module):
    """A convolution that keeps the size, a batch norm where asked for, and ReLU.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: taps per side, odd.
        norm: momentum of the batch norm; None = without.
        activation: with ReLU at the end.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        norm: float | None,
        activation: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.norm = None if norm is None else AnyBatchNorm(out_channels, eps=EPS, momentum=norm)
        self.activation = activation

    def forward(self, x: Volumes) -> Float[Tensor, "batch out_channels x y z"]:
        """Convolved, normed, rectified."""
        y = convolved(x, self.conv.weight, self.conv.bias, norm=self.norm, padding=self.conv.kernel_size[0] // 2)
        return y.relu_() if self.activation else y


class VolumeBlock(nn.Module):
    """Twice a 3x3x3 convolution, batch norm, ReLU, and dropout of whole channels.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        norm: momentum of the batch norms; None = without.
        dropout: rate of dropped channels.
    """

    def __init__(self, in_channels: int, out_channels: int, *, norm: float | None, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = NormedConv(in_channels, out_channels, norm=norm)
        self.second = NormedConv(out_channels, out_channels, norm=norm)
        self.dropout = nn.Dropout3d(dropout) if dropout else nn.Identity()

    def forward(self, x: Volumes) -> Float[Tensor, "batch out_channels x y z"]:
        """Both convolutions."""
        return self.dropout(self.second(self.dropout(self.first(x))))


class VolumeEncoder(nn.Module):
    """Blocks with poolings between them; with the pyramid, every level but the finest also sees the shrunken input.

    Args:
        in_channels: channels of the input.
        filters: channels of each level, the finest first.
        pyramid: with the input pyramid.
        norm: momentum of the batch norms; None = without.
        dropout: rate of dropped channels.
        checkpointing: in training, compute the activations inside blocks again instead of keeping them.
        ties: positions nearer than this to a pooling's maximum all get its gradient.
    """

    def __init__(
        self,
        in_channels: int,
        filters: Sequence[int],
        *,
        pyramid: bool,
        norm: float | None,
        dropout: float,
        checkpointing: bool,
        ties: float = 0.0,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.ties = ties
        self.blocks = nn.ModuleList()
        self.pyramid = nn.ModuleList() if pyramid else None
        previous = in_channels
        for level, channels in enumerate(filters):
            # the coarsest level has no map of the pyramid
            if self.pyramid is not None and 0 < level < len(filters) - 1:
                self.pyramid.append(NormedConv(in_channels, channels, norm=None))
                previous += channels
            self.blocks.append(VolumeBlock(previous, channels, norm=norm, dropout=dropout))
            previous = channels

    def forward(self, x: Volumes) -> list[Tensor]:
        """The maps of all levels, the finest first."""
        scaled, maps = x, []
        for level, block in enumerate(self.blocks):
            if level:
                x = tied_max_pool(x, self.ties)
            if self.pyramid is not None and 0 < level < len(self.blocks) - 1:
                # PyTorch averages volumes of narrow types nowhere on CPUs
                scaled = F.avg_pool3d(scaled.to(compute_dtype(scaled)), 2).to(x.dtype)
                x = torch.cat((self.pyramid[level - 1](scaled), x), dim=1)
            x = recomputed(block, x) if self.checkpointing and self.training else block(x)
            maps.append(x)
        return maps
