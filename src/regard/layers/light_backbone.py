"""Parts of light image networks: a deep strided stem, convolutional perceptrons, and the passage between stages.

Papers: "EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention", Liu et al., CVPR 2023,
https://arxiv.org/abs/2305.07027, section 3.1; "SHViT: Single-Head Vision Transformer with Memory Efficient Macro
Design", Yun and Ro, CVPR 2024, https://arxiv.org/abs/2401.16456; both after "LeViT", Graham et al., ICCV
2021, https://arxiv.org/abs/2104.01136.
Compared with microsoft/Cream@4a13c409, `EfficientViT/classification/model/efficientvit.py`, and ysj9909/SHViT@6a729ccf,
`model/shvit.py`, which share these parts.
The rectified maps inside are written over the maps that they come from, which no gradient needs.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from regard.layers.conv_norm import ConvNorm, Foldable, NormLinear, ResidualDepthwise, linear_map
from regard.layers.drop_path import DropPath

Maps = Float[Tensor, "batch channels y x"]

GATE_DIVISOR = 8


class ConvStem(nn.Module):
    """3x3 convolutions of stride 2 with batch norms, and ReLUs between them; each has twice the channels of the last.

    Sizes are divided by `patch_size`, rounding up.

    Args:
        in_channels: channels of the images.
        channels: channels of the output.
        patch_size: pixels per position and side, a power of two; 16 = four convolutions.

    Raises:
        ValueError: a patch that is not a power of two from 2 on, or channels that cannot be halved often enough.
    """

    def __init__(self, in_channels: int, channels: int, *, patch_size: int = 16) -> None:
        super().__init__()
        if patch_size < 2 or patch_size & (patch_size - 1):
            raise ValueError(f"patch_size must be a power of two from 2 on, got {patch_size}")
        if channels < 1 or channels % (patch_size // 2):
            raise ValueError(f"the stem's channels must be a multiple of {patch_size // 2}, got {channels}")
        count = patch_size.bit_length() - 1
        widths = [in_channels, *(channels >> (count - 1 - number) for number in range(count))]
        self.layers = nn.ModuleList(
            ConvNorm(widths[number], widths[number + 1], kernel_size=3, stride=2) for number in range(count)
        )

    def forward(self, images: Float[Tensor, "batch in_channels y x"]) -> Maps:
        """No ReLU after the last convolution."""
        x, last = images, len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            x = layer(x) if number == last else layer(x).relu_()
        return x


class ConvFeedForward(nn.Module):
    """A perceptron on every position: 1x1 convolution, batch norm, ReLU, 1x1 convolution, batch norm.

    The last norm's scales start from 0, so that a residual block starts as the identity.

    Args:
        channels: width before and after.
        hidden: width inside.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.up_proj = ConvNorm(channels, hidden)
        self.down_proj = ConvNorm(hidden, channels, initial_scale=0.0)

    def forward(self, x: Maps) -> Maps:
        """Every position by itself."""
        return self.down_proj(self.up_proj(x).relu_())


class DepthwiseFeedForward(nn.Module):
    """x <- x + DWConv(x), then x <- x + FFN(x).

    Args:
        channels: width.
        hidden: width inside the perceptron.
        initial_scale: what the scales of the depth-wise convolution's norm start from.
        drop_path: rate of stochastic depth of both branches.
    """

    def __init__(self, channels: int, *, hidden: int, initial_scale: float, drop_path: float = 0.0) -> None:
        super().__init__()
        self.position = ResidualDepthwise(channels, initial_scale=initial_scale, drop_path=drop_path)
        self.mlp = ConvFeedForward(channels, hidden)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Maps) -> Maps:
        """Neighbours first, then channels."""
        x = self.position(x)
        return self.drop_path(self.mlp(x)).add_(x)


class PatchMerging(nn.Module):
    """An inverted bottleneck that halves the map: widen by 4, 3x3 depth-wise of stride 2, gate the channels, narrow.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        gate: gate on `4 * in_channels` channels, in the papers squeeze-and-excitation `gate_width` wide.
    """

    def __init__(self, in_channels: int, out_channels: int, *, gate: nn.Module) -> None:
        super().__init__()
        hidden = 4 * in_channels
        self.up_proj = ConvNorm(in_channels, hidden)
        self.depthwise = ConvNorm(hidden, hidden, kernel_size=3, stride=2, groups=hidden)
        self.gate = gate
        self.down_proj = ConvNorm(hidden, out_channels)

    def forward(self, x: Maps) -> Float[Tensor, "batch out_channels y_half x_half"]:
        """Sizes are halved, rounding up."""
        x = self.depthwise(self.up_proj(x).relu_()).relu_()
        return self.down_proj(self.gate(x))


def gate_width(channels: int) -> int:
    """Width inside the gate of a merging whose input has `channels`: a quarter of the gated, at a multiple of 8."""
    return max(GATE_DIVISOR, (channels + GATE_DIVISOR // 2) // GATE_DIVISOR * GATE_DIVISOR)


class StageTransition(nn.Module):
    """From one stage to the next: a convolutional block, a merging, and another block of the new width.

    Args:
        in_channels: width of the stage before.
        out_channels: width of the stage after.
        mlp_ratio: width inside the perceptrons over that of their stage.
        gate: as for `PatchMerging`.
    """

    def __init__(self, in_channels: int, out_channels: int, *, mlp_ratio: float, gate: nn.Module) -> None:
        super().__init__()
        self.before = DepthwiseFeedForward(in_channels, hidden=int(in_channels * mlp_ratio), initial_scale=1.0)
        self.merging = PatchMerging(in_channels, out_channels, gate=gate)
        self.after = DepthwiseFeedForward(out_channels, hidden=int(out_channels * mlp_ratio), initial_scale=1.0)

    def forward(self, x: Maps) -> Float[Tensor, "batch out_channels y_half x_half"]:
        """Sizes are halved, rounding up."""
        return self.after(self.merging(self.before(x)))


class DistilledHead(Foldable):
    """Two classifiers, one trained on labels and one on a teacher's answers, averaged in evaluation.

    Source: "Training data-efficient image transformers & distillation through attention", Touvron et al., ICML 2021,
    https://arxiv.org/abs/2012.12877.

    Args:
        in_features: width of the pooled features.
        num_classes: number of classes.
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.labels = NormLinear(in_features, num_classes)
        self.teacher = NormLinear(in_features, num_classes)

    def forward(self, x: Float[Tensor, "batch in_features"]) -> Tensor | tuple[Tensor, Tensor]:
        """The mean of both scores; in training both, the labels' first."""
        labels, teacher = self.labels(x), self.teacher(x)
        return (labels, teacher) if self.training else (labels + teacher) / 2

    def folded(self) -> nn.Linear:
        """The mean of both linear maps."""
        labels, teacher = self.labels.folded(), self.teacher.folded()
        weight = (labels.weight.double() + teacher.weight.double()) / 2
        return linear_map(weight, (labels.bias.double() + teacher.bias.double()) / 2, like=self.labels.linear)
