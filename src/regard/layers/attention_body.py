"""The global attention body of MEDUSA: an encoder-decoder on the image, whose one map serves every scale of a network.

Papers: "MEDUSA: Multi-scale Encoder-Decoder Self-Attention Deep Neural Network Architecture for Medical Image
Analysis", Aboutalebi et al., Frontiers in Medicine 2022, https://arxiv.org/abs/2110.06063 (one body, many heads);
"U-Net: Convolutional Networks for Biomedical Image Segmentation", Ronneberger et al., MICCAI 2015,
https://arxiv.org/abs/1505.04597 (the encoder-decoder).
There is no public code of MEDUSA's architecture: outputs and gradients are compared with independent evaluations of the
equations below.
Where the paper is silent: the image is halved first, sides that pooling cannot halve are padded by reflection at the
bottom and on the right, the decoder joins [skip, upsampled], and the map is the last convolution's output as it is.
"Attention" is a learned gate on positions here: there are no queries and keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from regard.contract import load_strictly
from regard.layers.conv_norm import ConvNorm
from regard.layers.reference_names import rename_all
from regard.layers.residual_blocks import initialise_convolutions

Images = Float[Tensor, "batch in_channels y x"]
Maps = Float[Tensor, "batch channels y x"]
GlobalMap = Float[Tensor, "batch out_channels y_out x_out"]
Apply = Callable[[nn.Module, Tensor], Tensor]
"""Applies a layer to a map; recomputation of activations comes in here."""

BODY_NAMES = (
    (r"((?:^|\.)(?:inc|down\.\d+|dec\.\d+))\.0\.", r"\1.first.conv."),
    (r"((?:^|\.)(?:inc|down\.\d+|dec\.\d+))\.1\.", r"\1.first.norm."),
    (r"((?:^|\.)(?:inc|down\.\d+|dec\.\d+))\.3\.", r"\1.second.conv."),
    (r"((?:^|\.)(?:inc|down\.\d+|dec\.\d+))\.4\.", r"\1.second.norm."),
)
"""Layers of a body that are numbered inside a sequence, as ours."""


def plainly(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)`."""
    return layer(x)


class DoubleConv(nn.Module):
    """relu(norm(W2 * relu(norm(W1 * x)))): two 3x3 convolutions without bias that keep the size.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, and between.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = ConvNorm(in_channels, out_channels, kernel_size=3)
        self.second = ConvNorm(out_channels, out_channels, kernel_size=3)

    def forward(self, x: Maps) -> Float[Tensor, "batch out_channels y x"]:
        """Both, rectified in place."""
        return self.second(self.first(x).relu_()).relu_()


class AttentionBody(nn.Module):
    """A^G = G(x): a U-Net on the image gives the map that all scales share, before any activation.

    With x' the image at 1 / `downscale` of its size (bilinear, without a low-pass filter): e_0 = D(x'), e_i = D(pool(
    e_{i-1})) with twice the channels, then upwards d_i = D([e_i, up(d_{i+1})]) with half of them, and A^G = W d_0 + b,
    where D is `DoubleConv`, pool a maximum over 2 x 2 and up a transposed convolution of 2 x 2 with stride 2.

    Args:
        in_channels: channels of the images.
        width: channels of the finest level, w; level i has 2^i w.
        levels: how often the map is halved, L.
        out_channels: channels of the global map.
        downscale: the image's side over the map's.

    Raises:
        ValueError: a number that is not positive (`levels` may be 0).

    Cost: with L = 4 about 7,580 w^2 parameters, and for N positions of the map about 180 w^2 N MACs.
    """

    def __init__(
        self, in_channels: int = 3, *, width: int = 28, levels: int = 4, out_channels: int = 1, downscale: int = 2
    ) -> None:
        super().__init__()
        sizes = {"in_channels": in_channels, "width": width, "out_channels": out_channels, "downscale": downscale}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be positive, got {size}")
        if levels < 0:
            raise ValueError(f"levels must not be negative, got {levels}")
        self.in_channels, self.levels, self.downscale = in_channels, levels, downscale
        widths = [width * 2**level for level in range(levels + 1)]
        self.inc = DoubleConv(in_channels, width)
        self.down = nn.ModuleList(DoubleConv(fine, 2 * fine) for fine in widths[:-1])
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * fine, fine, 2, stride=2) for fine in reversed(widths[:-1]))
        self.dec = nn.ModuleList(DoubleConv(2 * fine, fine) for fine in reversed(widths[:-1]))
        self.out = nn.Conv2d(width, out_channels, 1)
        initialise_convolutions(self)
        # on the CPU the convolutions then take two thirds of the time
        self.to(memory_format=torch.channels_last)

    @property
    def smallest(self) -> int:
        """The shortest side of an image that can be padded."""
        multiple = 2**self.levels
        # n positions can be reflected to at most 2 n - 1
        return self.downscale * (multiple // 2 + 1 if multiple > 1 else 1)

    def forward(self, images: Images, *, apply: Apply = plainly) -> GlobalMap:
        """The global map, `side // downscale` positions per side.

        Args:
            images: of any size from `smallest` on.
            apply: how layers are applied.

        Raises:
            ValueError: images that are not `(batch, in_channels, y, x)`, or too small to be padded.
        """
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ValueError(f"images must have shape (batch, {self.in_channels}, y, x), got {tuple(images.shape)}")
        if min(images.shape[2:]) < self.smallest:
            raise ValueError(
                f"images must have at least {self.smallest} pixels per side for {self.levels} levels behind a "
                f"reduction by {self.downscale}, got {tuple(images.shape[2:])}"
            )
        x = reduced(images, self.downscale)
        height, width = x.shape[2:]
        x = apply(self.inc, padded(x, 2**self.levels))
        skips = [x]
        for down in self.down:
            x = apply(down, F.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for up, dec in zip(self.up, self.dec, strict=True):
            x = apply(dec, torch.cat((skips.pop(), up(x)), dim=1))
        return self.out(x)[:, :, :height, :width]

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the layout in which the layers of a double convolution are numbered 0, 1, 3 and 4.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, rename_all(state_dict, BODY_NAMES))


def reduced(images: Images, downscale: int) -> Float[Tensor, "batch in_channels y_out x_out"]:
    """Images at `side // downscale` pixels per side, interpolated between neighbours alone."""
    if downscale == 1:
        return images
    height, width = (side // downscale for side in images.shape[2:])
    return F.interpolate(images, size=(height, width), mode="bilinear", align_corners=False)


def padded(x: Maps, multiple: int) -> Float[Tensor, "batch channels y_out x_out"]:
    """The map mirrored beyond its last row and column until both sides are multiples."""
    below, right = (-side % multiple for side in x.shape[2:])
    return F.pad(x, (0, right, 0, below), mode="reflect") if below or right else x


def mask_loss(global_map: GlobalMap, masks: Tensor) -> Float[Tensor, ""]:
    """Binary cross-entropy in nats of the global map's first channel against masks such as those of the lungs.

    Args:
        global_map: of a body.
        masks: `(batch, 1, y, x)` from 0 to 1 or of truth values; means over areas bring them to the map's size.

    Raises:
        ValueError: masks that are not `(batch, 1, y, x)`.
    """
    if masks.ndim != 4 or masks.shape[1] != 1 or len(masks) != len(global_map):
        raise ValueError(f"masks must have shape ({len(global_map)}, 1, y, x), got {tuple(masks.shape)}")
    height, width = global_map.shape[2:]
    shares = F.adaptive_avg_pool2d(masks.to(global_map.dtype), (height, width))
    return F.binary_cross_entropy_with_logits(global_map[:, :1], shares)
