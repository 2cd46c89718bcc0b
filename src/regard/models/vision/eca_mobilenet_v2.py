"""MobileNetV2 with a gate on channels at the end of every inverted residual.

Papers: "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks", Wang et al., CVPR 2020,
https://arxiv.org/abs/1910.03151, section 4.1; the network: "MobileNetV2: Inverted Residuals and Linear Bottlenecks",
Sandler et al., CVPR 2018, https://arxiv.org/abs/1801.04381, table 2.
Compared with BangguWu/ECANet@b332f6b3, `models/eca_mobilenetv2.py`: parameters are counted on that code.
The gate has 1 tap where a block has fewer than 96 output channels, else 3 (not what the paper's formula gives); as in
the code, the channels before scaling by `width_mult` decide.
The paper's 319.9 M (of 2^20) count about five operations for every value that a batch norm and an activation see,
besides contractions, which alone are 286.8 M.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import Model, load_strictly
from regard.layers.residual_blocks import (
    InvertedResidual,
    conv_bn_relu6,
    initialise_convolutions,
    name_mixers,
    recomputed,
)
from regard.metadata import Reported, Variant
from regard.mixers.channel.eca import ECA_PAPER
from regard.models.vision.eca_resnet import MEGA, make_channel_mixer, without_parallel_prefix
from regard.registry import register

STAGES = (
    # expansion, channels, blocks, stride
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM_CHANNELS, LAST_CHANNELS = 32, 1280
WIDE = 96
"""From this number of output channels on, a block's gate has the second of the two kernel sizes."""


@dataclass(frozen=True, kw_only=True)
class ECAMobileNetV2Config:
    """A MobileNetV2.

    Args:
        channel_mixer: public name of the feature mixer in each block; None = none, a plain MobileNetV2.
        kernel_sizes: taps of blocks with fewer than 96 output channels, and of the others. Without effect on mixers
            that have no `kernel_size`.
        width_mult: factor on all widths (the last convolution's only where it is above 1); products are rounded down.
        in_channels: channels of the images.
        num_classes: number of classes.
        dropout: rate before the classifier, in training.
        gradient_checkpointing: in training, compute the activations inside blocks again instead of keeping them.
    """

    channel_mixer: str | None = "eca"
    kernel_sizes: tuple[int, int] = (1, 3)
    width_mult: float = 1.0
    in_channels: int = 3
    num_classes: int = 1000
    dropout: float = 0.25
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if int(16 * self.width_mult) < 1:
            raise ValueError(f"width_mult must leave a channel of 16, got {self.width_mult}: at least 0.0625 is needed")
        if len(self.kernel_sizes) != 2:
            raise ValueError(f"kernel_sizes must be two numbers, for narrow and wide blocks, got {self.kernel_sizes}")
        if min(self.in_channels, self.num_classes) < 1:
            raise ValueError(
                f"in_channels and num_classes must be positive, got {self.in_channels} and {self.num_classes}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")


@register(name="eca_mobilenet", system="eca", paper=replace(ECA_PAPER, where="section 4.1 and table 4"))
class ECAMobileNetV2(Model):
    """MobileNetV2 with efficient channel attention at the end of every inverted residual.

    Args:
        config: sizes, and which mixer.
    """

    VARIANTS: ClassVar[dict[str, Variant]] = {
        "eca_mobilenet_v2": Variant(
            config=ECAMobileNetV2Config(),
            reported=Reported(
                params=3_504_903,
                macs=319.9 * MEGA,
                where="table 4: 3.34 M of 2^20 parameters and 319.9 M of 2^20 MACs, batch norms and activations "
                "included; the exact number of parameters is that of the authors' code",
                params_tolerance=0.0,
                macs_tolerance=0.11,
            ),
        )
    }

    def __init__(self, config: ECAMobileNetV2Config) -> None:
        super().__init__()
        self.config = config
        width = int(STEM_CHANNELS * config.width_mult)
        layers: list[nn.Module] = [conv_bn_relu6(config.in_channels, width, kernel_size=3, stride=2)]
        for expand_ratio, channels, blocks, stage_stride in STAGES:
            out_channels = int(channels * config.width_mult)
            for number in range(blocks):
                mixer = make_channel_mixer(
                    config.channel_mixer, channels=out_channels, kernel_size=config.kernel_sizes[channels >= WIDE]
                )
                stride = stage_stride if number == 0 else 1
                layers.append(
                    InvertedResidual(width, out_channels, stride=stride, expand_ratio=expand_ratio, mixer=mixer)
                )
                width = out_channels
        last = int(LAST_CHANNELS * max(1.0, config.width_mult))
        layers.append(conv_bn_relu6(width, last, kernel_size=1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(last, config.num_classes))
        initialise_convolutions(self)
        head = self.classifier[1]
        assert isinstance(head, nn.Linear)
        nn.init.normal_(head.weight, 0.0, 0.01)
        nn.init.zeros_(head.bias)

    def forward(self, images: Float[Tensor, "batch in_channels y x"]) -> Float[Tensor, "batch num_classes"]:
        """Scores of the classes.

        Raises:
            ValueError: images that are not `(batch, in_channels, y, x)`.
        """
        if images.ndim != 4 or images.shape[1] != self.config.in_channels:
            raise ValueError(
                f"images must have shape (batch, {self.config.in_channels}, y, x), got {tuple(images.shape)}"
            )
        x = images
        recompute = self.config.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for layer in self.features:
            x = recomputed(layer, x) if recompute and isinstance(layer, InvertedResidual) else layer(x)
        return self.classifier(x.mean(dim=(2, 3)))

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load ECANet's layout, with or without the prefix of `DataParallel`; for a plain network, torchvision's.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, name_mixers(self, {name: (self._own_name(name), state_dict[name]) for name in state_dict}))

    def _own_name(self, name: str) -> str:
        """The gate, which the reference keeps as the last entry of `conv`, apart from the convolutions."""
        own = without_parallel_prefix(name)
        found = re.fullmatch(r"features\.(\d+)\.conv\.(\d+)\.conv\.weight", own)
        if found is None or int(found[1]) >= len(self.features):
            return own
        block = self.features[int(found[1])]
        is_gate = isinstance(block, InvertedResidual) and int(found[2]) == len(block.conv)
        return f"features.{found[1]}.eca.conv.weight" if is_gate else own
