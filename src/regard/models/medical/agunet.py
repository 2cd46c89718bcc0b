"""AGUNet: a U-Net for whole volumes whose skip connections pass through attention gates.

Paper: "Meningioma segmentation in T1-weighted MRI leveraging global context and attention mechanisms", Bouget et al.,
Frontiers in Radiology 2021, https://arxiv.org/abs/2101.07715.
Compared with dbouget/mri_brain_tumor_segmentation@7af4e77a,
`src/Models/UNet/AttentionGatedUNet.py:AttentionGatedUnet`; parameters are counted on that code.
As there: the gates keep their batch norms when the blocks have none. Different: every concept can be switched off, the
gates included, which leaves a plain U-Net; sides that cannot be halved are refused instead of pooled unevenly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.layers.any_batch_norm import AnyBatchNorm, grown
from regard.layers.same_transposed import SameConvTranspose3d
from regard.layers.volume_blocks import EPS, VolumeBlock
from regard.metadata import Reported, Variant
from regard.mixers.spatial.attention_gate import MENINGIOMA_PAPER, AttentionGate
from regard.models.medical.volume_unet import Order, Volumes, VolumeUNet, VolumeUNetConfig
from regard.registry import register

WIDE, NARROW = (16, 32, 128, 256, 256), (8, 16, 32, 64, 128)
"""The authors' usual channels in their later papers, and a lighter network's."""


@dataclass(frozen=True, kw_only=True)
class AGUNetConfig(VolumeUNetConfig):
    """AGUNet's sizes.

    Args:
        attention_gates: a gate on every skip connection.
    """

    attention_gates: bool = True


def _variant(filters: tuple[int, ...], params: int, *, full: bool) -> Variant:
    return Variant(
        config=AGUNetConfig(filters=filters, multi_scale_input=full, deep_supervision=full),
        reported=Reported(params=params, where="counted on the authors' code", params_tolerance=0.0),
    )


@register(name="agunet", system="meningioma", paper=MENINGIOMA_PAPER)
class AGUNet(VolumeUNet):
    """A 3-D U-Net with attention gates, and, where asked for, an input pyramid and deep supervision.

    Args:
        config: its sizes.
    """

    SMALL: ClassVar[AGUNetConfig] = AGUNetConfig(
        filters=(8, 16, 32, 32), multi_scale_input=True, deep_supervision=True, norm_momentum=0.1
    )
    VARIANTS: ClassVar[dict[str, Variant]] = {
        "agunet_full": _variant(WIDE, 18_657_716, full=True),
        "agunet_full_plain": _variant(WIDE, 16_405_742, full=False),
        "agunet_small": _variant(NARROW, 1_774_660, full=True),
        "agunet_small_plain": _variant(NARROW, 1_626_142, full=False),
    }
    recipe: ClassVar[Mapping[str, Any]] = {"steps": 400, "batch": 2, "learning_rate": 1e-2}

    def __init__(self, config: AGUNetConfig) -> None:
        super().__init__(config)

    def build_decoder(self) -> None:
        """A level for every skip connection, the coarsest first."""
        config: AGUNetConfig = self.config
        self.joins, self.blocks = nn.ModuleList(), nn.ModuleList()
        previous = config.filters[-1]
        for channels in self.decoded_filters:
            self.joins.append(GatedJoin(previous, channels, config))
            self.blocks.append(VolumeBlock(2 * channels, channels, norm=config.block_momentum, dropout=config.dropout))
            previous = channels

    def decoded(self, maps: Sequence[Volumes]) -> list[Volumes]:
        """Level by level, each with the encoder's map of its resolution."""
        x, found = maps[-1], []
        for join, block, skip in zip(self.joins, self.blocks, maps[-2::-1], strict=True):
            x = self.run(block, join(x, skip))
            found.append(x)
        return found

    def decoder_order(self, order: Order) -> None:
        """Growing, gating, convolving."""
        for number in range(len(self.joins)):
            name = f"joins.{number}"
            order["conv3d_transpose"].append(f"{name}.grow")
            if self.config.batch_norm:
                order["batch_normalization"].append(f"{name}.norm")
            if self.config.attention_gates:
                order["conv3d"] += [f"{name}.gate.{part}" for part in ("context_proj", "skip_proj", "score")]
                order["batch_normalization"] += [
                    f"{name}.gate.{part}" for part in ("context_norm", "skip_norm", "score_norm")
                ]
            self.block_order(order, f"blocks.{number}")


class GatedJoin(nn.Module):
    """What a level of the decoder begins with: the coarser map grown, and the skip connection, gated by it.

    Args:
        in_channels: channels of the coarser map.
        channels: channels of the level.
        config: of the network.
    """

    def __init__(self, in_channels: int, channels: int, config: AGUNetConfig) -> None:
        super().__init__()
        self.grow = SameConvTranspose3d(in_channels, channels)
        momentum = config.norm_momentum
        self.norm = AnyBatchNorm(channels, eps=EPS, momentum=momentum) if config.batch_norm else None
        self.gate = AttentionGate(channels, eps=EPS, momentum=momentum) if config.attention_gates else None

    def forward(self, x: Volumes, skip: Volumes) -> Float[Tensor, "batch channels_twice x_fine y_fine z_fine"]:
        """The grown map before the gated skip connection."""
        coarse = grown(x, self.grow, self.norm).relu()
        return torch.cat((coarse, skip if self.gate is None else self.gate(skip, context=coarse)), dim=1)
