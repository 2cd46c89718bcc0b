"""DAUNet: a U-Net for whole volumes with position and channel attention at its bottleneck, which may guide the decoder.

Paper: "Meningioma segmentation in T1-weighted MRI leveraging global context and attention mechanisms", Bouget et al.,
Frontiers in Radiology 2021, https://arxiv.org/abs/2101.07715.
Compared with dbouget/mri_brain_tumor_segmentation@7af4e77a,
`src/Models/UNet/DualAttentionUNet.py:DualAttentionUnet`; parameters are counted on that code, with the projections of
the position attention, which it makes anew in every call and neither trains nor stores. Here they are parameters.
Different: each attention can be switched off; without both of them the bottleneck is the encoder's last map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.layers.any_batch_norm import AnyBatchNorm
from regard.layers.same_transposed import SameConvTranspose3d
from regard.layers.tensorflow_names import Leaves
from regard.layers.volume_blocks import EPS, NormedConv, VolumeBlock
from regard.metadata import Reported, Variant
from regard.mixers.channel.channel_attention import DANetChannelAttention
from regard.mixers.spatial.attention_gate import MENINGIOMA_PAPER
from regard.mixers.spatial.position_attention import PositionAttention
from regard.models.medical.volume_unet import Order, Volumes, VolumeUNet, VolumeUNetConfig, check_rate
from regard.registry import register

_POINTWISE = (4, 3, 0, 1, 2)
_ATTENTIONS: Mapping[str, Leaves] = {
    "pam": {
        "gamma": ("gamma", (0,)),
        "b.kernel": ("k_proj.weight", _POINTWISE),
        "c.kernel": ("q_proj.weight", _POINTWISE),
        "d.kernel": ("v_proj.weight", _POINTWISE),
    },
    "cam": {"gamma": ("gamma", (0,))},
}


@dataclass(frozen=True, kw_only=True)
class DAUNetConfig(VolumeUNetConfig):
    """DAUNet's sizes.

    Args:
        filters: channels of each level, the finest first; between two of them sides are halved.
        position_attention: attention between all positions of the bottleneck.
        channel_attention: attention between all of its channels.
        guided: the bottleneck's map, grown, enters at every level of the decoder.
        attention_dropout: rate at which the bottleneck drops whole channels.
    """

    filters: tuple[int, ...] = (8, 16, 32, 64, 128)
    position_attention: bool = True
    channel_attention: bool = True
    guided: bool = False
    attention_dropout: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rate("attention_dropout", self.attention_dropout)


def _variant(params: int, *, full: bool) -> Variant:
    return Variant(
        config=DAUNetConfig(multi_scale_input=full, deep_supervision=full),
        reported=Reported(params=params, where="counted on the authors' code", params_tolerance=0.0),
    )


@register(name="daunet", system="meningioma", paper=MENINGIOMA_PAPER)
class DAUNet(VolumeUNet):
    """A 3-D U-Net with dual attention at its bottleneck, and, where asked for, pyramid, supervision and guiding.

    Args:
        config: its sizes.

    Raises:
        ValueError: position attention on fewer than 8 channels.
    """

    SMALL: ClassVar[DAUNetConfig] = DAUNetConfig(
        filters=(8, 16, 32, 32), multi_scale_input=True, deep_supervision=True, norm_momentum=0.1
    )
    VARIANTS: ClassVar[dict[str, Variant]] = {
        "daunet_small": _variant(3_576_714, full=True),
        "daunet_small_plain": _variant(3_428_196, full=False),
    }
    recipe: ClassVar[Mapping[str, Any]] = {"steps": 400, "batch": 2, "learning_rate": 1e-2}

    def __init__(self, config: DAUNetConfig) -> None:
        super().__init__(config)

    def build_decoder(self) -> None:
        """The bottleneck, and a level for every skip connection, the coarsest first."""
        config: DAUNetConfig = self.config
        deepest = config.filters[-1]
        self.bottleneck = DualAttention(deepest, config) if _attends(config) else None
        self.joins, self.blocks = nn.ModuleList(), nn.ModuleList()
        previous, width = deepest, 3 if config.guided else 2
        for number, channels in enumerate(self.decoded_filters):
            stride = 2 ** (number + 1) if config.guided else None
            join = GuidedJoin(previous, channels, norm=config.block_momentum, guide=deepest, guide_stride=stride)
            block = VolumeBlock(width * channels, channels, norm=config.block_momentum, dropout=config.dropout)
            self.joins.append(join)
            self.blocks.append(block)
            previous = channels

    def decoded(self, maps: Sequence[Volumes]) -> list[Volumes]:
        """Level by level, each with the encoder's map of its resolution and the bottleneck's as a guide."""
        bottom = maps[-1] if self.bottleneck is None else self.bottleneck(maps[-1])
        x, found = bottom, []
        for join, block, skip in zip(self.joins, self.blocks, maps[-2::-1], strict=True):
            x = self.run(block, join(x, skip, bottom))
            found.append(x)
        return found

    def decoder_order(self, order: Order) -> None:
        """Branches, sum, and the levels."""
        config: DAUNetConfig = self.config
        if _attends(config):
            kinds = {"position": ("pam", config.position_attention), "channel": ("cam", config.channel_attention)}
            for name, (kind, present) in kinds.items():
                if present:
                    order[kind] = [f"bottleneck.{name}.attention"]
                    order["conv3d"] += [f"bottleneck.{name}.first.conv", f"bottleneck.{name}.last"]
                    order["batch_normalization"].append(f"bottleneck.{name}.first.norm")
            order["conv3d"].append("bottleneck.sum.conv")
            order["batch_normalization"].append("bottleneck.sum.norm")
        for number in range(len(self.joins)):
            name = f"joins.{number}"
            order["conv3d_transpose"] += [f"{name}.grow", *([f"{name}.guide"] if config.guided else [])]
            if config.batch_norm:
                order["batch_normalization"].append(f"{name}.norm")
            self.block_order(order, f"blocks.{number}")

    def reference_leaves(self) -> Mapping[str, Leaves]:
        """Of the two attentions; `pam.b.kernel`, `pam.c.kernel` and `pam.d.kernel` are the position attention's maps,
        which the authors' files lack.
        """
        return _ATTENTIONS


def _attends(config: DAUNetConfig) -> bool:
    return config.position_attention or config.channel_attention


class DualAttention(nn.Module):
    """The sum of a branch of position and a branch of channel attention, through a 1x1 convolution and batch norm.

    Its batch norms are there in networks without, too.

    Args:
        channels: number of channels.
        config: of the network; has at least one of the attentions.
    """

    def __init__(self, channels: int, config: DAUNetConfig) -> None:
        super().__init__()
        position = PositionAttention(channels) if config.position_attention else None
        channel = DANetChannelAttention(channels) if config.channel_attention else None
        self.position = None if position is None else AttentionBranch(position, channels, config)
        self.channel = None if channel is None else AttentionBranch(channel, channels, config)
        self.dropout = nn.Dropout3d(config.attention_dropout)
        self.sum = NormedConv(channels, channels, kernel_size=1, norm=config.norm_momentum, activation=False)

    def forward(self, x: Volumes) -> Volumes:
        """Both branches of the same map."""
        branches = [branch(x) for branch in (self.position, self.channel) if branch is not None]
        total: Tensor = branches[0] if len(branches) == 1 else branches[0] + branches[1]
        return self.sum(self.dropout(total))


class AttentionBranch(nn.Module):
    """An attention, then convolution, batch norm, ReLU, dropout of whole channels, convolution.

    Args:
        attention: a feature mixer.
        channels: number of channels.
        config: of the network.
    """

    def __init__(self, attention: nn.Module, channels: int, config: DAUNetConfig) -> None:
        super().__init__()
        self.attention = attention
        self.first = NormedConv(channels, channels, norm=config.norm_momentum)
        self.dropout = nn.Dropout3d(config.attention_dropout)
        self.last = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: Volumes) -> Volumes:
        """Attended and convolved."""
        made: Tensor = self.last(self.dropout(self.first(self.attention(x))))
        return made


class GuidedJoin(nn.Module):
    """What a level of the decoder begins with: the guide if there is one, the skip connection, the coarser map grown.

    Args:
        in_channels: channels of the coarser map.
        channels: channels of the level.
        norm: momentum of the batch norm of all of them; None = without.
        guide: channels of the guide.
        guide_stride: factor by which the guide grows; None = without a guide.
    """

    def __init__(
        self, in_channels: int, channels: int, *, norm: float | None, guide: int, guide_stride: int | None
    ) -> None:
        super().__init__()
        self.grow = SameConvTranspose3d(in_channels, channels)
        self.guide = None if guide_stride is None else SameConvTranspose3d(guide, channels, stride=guide_stride)
        width = channels * (2 if guide_stride is None else 3)
        self.norm = None if norm is None else AnyBatchNorm(width, eps=EPS, momentum=norm)

    def forward(
        self, x: Volumes, skip: Volumes, bottom: Volumes
    ) -> Float[Tensor, "batch joined_channels x_fine y_fine z_fine"]:
        """All maps of the level's resolution, normed and rectified together."""
        guides = [] if self.guide is None else [self.guide(bottom)]
        maps = torch.cat((*guides, skip, self.grow(x)), dim=1)
        if self.norm is not None:
            maps = self.norm(maps)
        return maps.relu_()
