"""ResUNet: a U-Net of residual units with the norm first, and strides in place of pooling.

Paper: "Road Extraction by Deep Residual U-Net", Zhang et al., GRSL 2018, https://arxiv.org/abs/1711.10684, section II
and table I. It is what the tumour network of "Enhancing Brain Tumor Segmentation Using Channel Attention and Transfer
learning", Behzadpour et al., 2025, https://arxiv.org/abs/2501.11196, starts from.
The authors published no code for PyTorch; the units are compared with independent evaluations in float64. Maps are
enlarged bilinearly, corners not aligned; the first unit sees the images as they are, without norm and activation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from regard.contract import load_strictly
from regard.layers.residual_unit import ResidualUnit
from regard.layers.resunet_decoder import UPSAMPLINGS, ResUNetDecoderBlock, Upsampling
from regard.layers.sibling_norms import folded_copy
from regard.metadata import Paper, Variant
from regard.models.medical.segmenter import Features, Scores, Segmenter
from regard.registry import register

RESUNET_PAPER = Paper(
    title="Road Extraction by Deep Residual U-Net",
    authors="Zhang et al.",
    venue="IEEE Geoscience and Remote Sensing Letters",
    year=2018,
    url="https://arxiv.org/abs/1711.10684",
    where="section II and table I",
)


@dataclass(frozen=True, kw_only=True)
class ResUNetConfig:
    """The network's sizes.

    Args:
        in_channels: channels of the slices.
        num_classes: regions, each with a score of its own; or exclusive classes.
        widths: width of each level, the finest first; every level but the first halves the map.
        upsampling: "bilinear" or "transposed".
        checkpointing: in training, compute the activations inside units again instead of keeping them.
    """

    in_channels: int = 3
    num_classes: int = 1
    widths: tuple[int, ...] = (64, 128, 256, 512)
    upsampling: Upsampling = "bilinear"
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or min(self.widths) < 1:
            raise ValueError(f"widths must be at least 2 positive numbers, got {self.widths}")
        if self.upsampling not in UPSAMPLINGS:
            raise ValueError(f"upsampling must be one of {', '.join(UPSAMPLINGS)}, got {self.upsampling!r}")


@register(name="resunet", system="braintumor", paper=RESUNET_PAPER)
class ResUNet(Segmenter):
    """Residual units down to 1/8 of the image's size and up again, beside the maps of the way down.

    Args:
        config: its sizes.
    """

    spatial_dims: ClassVar[int] = 2
    task_settings: ClassVar[Mapping[str, str]] = {"view": "slices", "targets": "regions", "size": "96"}
    recipe: ClassVar[Mapping[str, Any]] = {"steps": 400, "batch": 8, "learning_rate": 5e-3}
    SMALL: ClassVar[ResUNetConfig] = ResUNetConfig(widths=(8, 16, 32, 64))
    VARIANTS: ClassVar[dict[str, Variant]] = {"resunet_residual": Variant(config=ResUNetConfig())}

    def __init__(self, config: ResUNetConfig) -> None:
        super().__init__(config)
        widths = config.widths
        units = [ResidualUnit(config.in_channels, widths[0], activate_input=False)]
        units += [ResidualUnit(fine, coarse, stride=2) for fine, coarse in pairwise(widths)]
        self.encoder = nn.ModuleList(units)
        self.decoder = nn.ModuleList(
            ResUNetDecoderBlock(coarse, fine, fine, upsampling=config.upsampling)
            for coarse, fine in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(widths[0], config.num_classes, 1)

    @property
    def stride(self) -> int:
        """2 for every level but the first."""
        return 1 << (len(self.config.widths) - 1)

    def outputs(self, x: Features) -> tuple[Scores, ...]:
        """Scores at every pixel."""
        self.check_input(x)
        x, maps = x.contiguous(memory_format=torch.channels_last), []
        for unit in self.encoder:
            x = self.run(unit, x)
            maps.append(x)
        for block, skip in zip(self.decoder, maps[-2::-1], strict=True):
            x = block(x, skip, self.run)
        return (self.head(x),)

    def fused(self) -> Self:
        """A copy for inference, whose batch norms are folded into the convolutions before them."""
        return folded_copy(self)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load our own layout: none was published.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, state_dict)
