"""A residual U-Net for tumours on slices: a pretrained EfficientNet encodes, gates on channels choose, ASPP looks wide.

Paper: "Enhancing Brain Tumor Segmentation Using Channel Attention and Transfer learning", Behzadpour et al., 2025,
https://arxiv.org/abs/2501.11196.
No code was published. The encoder is compared with timm's, its parts with torchvision's ASPP, timm's channel attention
of CBAM and independent evaluations in float64. What the abstract leaves open is a field of the config: where the gates
stand (on every skip and behind ASPP), their kind, the rates, the widths of the decoder and how it enlarges maps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from regard.contract import load_strictly
from regard.layers.aspp import ASPP
from regard.layers.resunet_decoder import UPSAMPLINGS, ResUNetDecoderBlock, Upsampling
from regard.layers.sibling_norms import folded_copy
from regard.metadata import Paper, Variant
from regard.mixers.channel.cbam_channel import CBAMChannel, cbam_hidden
from regard.mixers.channel.squeeze_excitation import SqueezeExcitation
from regard.models.medical.efficientnet_encoder import STEM, STRIDES, EfficientNetEncoder
from regard.models.medical.segmenter import Features, Scores, Segmenter
from regard.registry import register

Attention = Literal["none", "se", "cbam"]
ATTENTIONS: tuple[Attention, ...] = ("none", "se", "cbam")
TUMOUR_PAPER = Paper(
    title="Enhancing Brain Tumor Segmentation Using Channel Attention and Transfer learning",
    authors="Behzadpour et al.",
    venue="arXiv",
    year=2025,
    url="https://arxiv.org/abs/2501.11196",
    where="abstract",
)


@dataclass(frozen=True, kw_only=True)
class TumourResUNetConfig:
    """The network's sizes.

    Args:
        in_channels: channels of the slices.
        num_classes: regions, each with a score of its own; or exclusive classes.
        encoder: timm's name of an EfficientNet.
        pretrained: whether the encoder starts from timm's weights for ImageNet, which are downloaded when the network
            is built for the first time.
        freeze_encoder: whether the encoder's weights and statistics stay as they are.
        attention: the gates on channels: "none", "se" (from the mean) or "cbam" (from mean and maximum).
        reduction: channels over the inner width of a gate, which is at least 4.
        aspp: atrous spatial pyramid pooling on the coarsest map.
        aspp_rates: positions from tap to tap of its kernels.
        aspp_channels: width of each of its branches and of its output.
        aspp_dropout: probability with which a number of its output is 0 in training.
        decoder_widths: width of the decoder at 1/16, 1/8, 1/4, 1/2 and the whole of the image's size.
        upsampling: "bilinear" or "transposed".
        drop_path: rate of stochastic depth at the encoder's last block; it rises linearly from 0.
        checkpointing: in training, compute the activations inside stages again instead of keeping them.
    """

    in_channels: int = 3
    num_classes: int = 1
    encoder: str = "efficientnet_b0"
    pretrained: bool = False
    freeze_encoder: bool = False
    attention: Attention = "cbam"
    reduction: int = 16
    aspp: bool = True
    aspp_rates: tuple[int, ...] = (6, 12, 18)
    aspp_channels: int = 256
    aspp_dropout: float = 0.5
    decoder_widths: tuple[int, ...] = (256, 128, 64, 32, 16)
    upsampling: Upsampling = "bilinear"
    drop_path: float = 0.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention must be one of {', '.join(ATTENTIONS)}, got {self.attention!r}")
        if self.upsampling not in UPSAMPLINGS:
            raise ValueError(f"upsampling must be one of {', '.join(UPSAMPLINGS)}, got {self.upsampling!r}")
        if len(self.decoder_widths) != len(STRIDES) or min(self.decoder_widths) < 1:
            raise ValueError(f"decoder_widths must be {len(STRIDES)} positive numbers, got {self.decoder_widths}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be in [0, 1), got {self.drop_path}")


_FULL = TumourResUNetConfig()


@register(name="tumour_resunet", system="braintumor", paper=TUMOUR_PAPER)
class TumourResUNet(Segmenter):
    """EfficientNet's maps, gated, go up a residual decoder from an atrous pyramid.

    Args:
        config: its sizes.

    Raises:
        ValueError: an encoder that is no EfficientNet, or a size that a part refuses.
    """

    spatial_dims: ClassVar[int] = 2
    task_settings: ClassVar[Mapping[str, str]] = {"view": "slices", "targets": "regions", "size": "96"}
    recipe: ClassVar[Mapping[str, Any]] = {"steps": 400, "batch": 8, "learning_rate": 5e-3}
    SMALL: ClassVar[TumourResUNetConfig] = TumourResUNetConfig(
        aspp_rates=(1, 2, 3), aspp_channels=128, decoder_widths=(128, 64, 32, 16, 8)
    )
    VARIANTS: ClassVar[dict[str, Variant]] = {
        "resunet_b0": Variant(config=TumourResUNetConfig(attention="none", aspp=False)),
        "tumour_resunet_lgg": Variant(config=_FULL),
        "tumour_resunet_brats": Variant(config=TumourResUNetConfig(in_channels=4, num_classes=3)),
    }

    def __init__(self, config: TumourResUNetConfig) -> None:
        super().__init__(config)
        self.encoder = EfficientNetEncoder(config.encoder, in_channels=config.in_channels, drop_path=config.drop_path)
        *skips, deepest = self.encoder.channels
        self.aspp: ASPP | None = None
        if config.aspp:
            self.aspp = ASPP(deepest, config.aspp_rates, out_channels=config.aspp_channels, dropout=config.aspp_dropout)
            deepest = config.aspp_channels
        self.skip_gates = nn.ModuleList(_gate(config, channels) for channels in skips)
        # behind the pyramid, hence absent without it: it would be a gate on the encoder's own output
        self.aspp_gate = _gate(config, deepest) if config.aspp else nn.Identity()
        self.decoder = nn.ModuleList()
        for width, skip in zip(config.decoder_widths, (*reversed(skips), 0), strict=True):
            self.decoder.append(ResUNetDecoderBlock(deepest, skip, width, upsampling=config.upsampling))
            deepest = width
        self.head = nn.Conv2d(deepest, config.num_classes, 1)
        if config.pretrained and not self.head.weight.is_meta:
            self.encoder.load_pretrained()
        self.encoder.freeze(config.freeze_encoder)

    @property
    def stride(self) -> int:
        """The encoder's: 32."""
        return STRIDES[-1]

    @property
    def fewest_rows(self) -> int:
        """With the pyramid 2: its mean of a map is normed over rows."""
        return 2 if self.config.aspp else 1

    def outputs(self, x: Features) -> tuple[Scores, ...]:
        """Scores at every pixel."""
        self.check_input(x)
        *skips, x = self.encoder(x.contiguous(memory_format=torch.channels_last), self.run)
        if self.aspp is not None:
            x = self.aspp_gate(self.aspp(x))
        gated = [gate(skip) for gate, skip in zip(self.skip_gates, skips, strict=True)]
        for block, skip in zip(self.decoder, (*reversed(gated), None), strict=True):
            x = block(x, skip, self.run)
        return (self.head(x),)

    def fused(self) -> Self:
        """A copy for inference, whose batch norms are folded into the convolutions before them."""
        return folded_copy(self)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load our own layout, or timm's EfficientNet into the encoder alone: weights to start from.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        if STEM in state_dict:
            self.encoder.load_reference(state_dict)
        else:
            load_strictly(self, state_dict)


def _gate(config: TumourResUNetConfig, channels: int) -> nn.Module:
    if config.attention == "none":
        return nn.Identity()
    hidden = cbam_hidden(channels, config.reduction)
    if config.attention == "se":
        return SqueezeExcitation(channels, hidden=hidden)
    return CBAMChannel(channels, hidden=hidden)
