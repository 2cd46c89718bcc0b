"""SHViT: a light image network with a stem of stride 16, convolution early and single-head attention late.

Paper: "SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design", Yun and Ro, CVPR 2024,
https://arxiv.org/abs/2401.16456.
Compared with ysj9909/SHViT@6a729ccf, `model/shvit.py:SHViT`, and with timm's `shvit_*`, whose layouts it loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor, nn

from regard.contract import load_strictly
from regard.layers.conv_norm import ResidualDepthwise
from regard.layers.drop_path import DropPath
from regard.layers.light_backbone import ConvFeedForward
from regard.layers.reference_names import rename_all
from regard.metadata import Reported, Variant
from regard.mixers.spatial.shsa import SHSA_NAMES, SHVIT_PAPER, SingleHeadAttention
from regard.models.vision.backbone import Maps, check_stages
from regard.models.vision.light_network import PART_NAMES, LightNetwork, fit_pointwise, stage_names
from regard.registry import register

BlockType = Literal["i", "s"]


@dataclass(frozen=True, kw_only=True)
class SHViTConfig:
    """The network's sizes.

    Args:
        in_channels: channels of the images.
        num_classes: number of classes.
        dims: width of each stage.
        depths: blocks of each stage.
        partial_dims: channels of each stage that are attended to; unused in stages without attention.
        types: "i" = without attention, "s" = with single-head attention, for each stage.
        head_dim: width of queries and keys.
        mlp_ratio: width inside the perceptrons over the stage's.
        patch_size: stride of the stem, a power of two.
        distillation: a second classifier for a teacher's answers.
        drop_path: rate of stochastic depth at the last block; it rises linearly from 0.
        checkpointing: in training, compute the activations inside blocks again instead of keeping them.
    """

    in_channels: int = 3
    num_classes: int = 1000
    dims: tuple[int, ...] = (128, 224, 320)
    depths: tuple[int, ...] = (2, 4, 5)
    partial_dims: tuple[int, ...] = (32, 48, 68)
    types: tuple[BlockType, ...] = ("i", "s", "s")
    head_dim: int = 16
    mlp_ratio: float = 2.0
    patch_size: int = 16
    distillation: bool = False
    drop_path: float = 0.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        check_stages(self, "dims", "depths", "partial_dims")
        if len(self.types) != len(self.dims) or not set(self.types) <= {"i", "s"}:
            raise ValueError(f"types must be i or s for each of the {len(self.dims)} stages, got {self.types}")
        if self.mlp_ratio <= 0:
            raise ValueError(f"mlp_ratio must be positive, got {self.mlp_ratio}")


def _variant(
    dims: tuple[int, ...],
    depths: tuple[int, ...],
    partial_dims: tuple[int, ...],
    *,
    params: int,
    macs: float,
    image_size: int | None = None,
) -> Variant:
    reported = Reported(
        params=params,
        macs=macs,
        where="results on ImageNet-1K; the exact number of parameters is that of the authors' code",
        image_size=image_size,
        params_tolerance=0.0,
        macs_tolerance=0.01,
    )
    return Variant(config=SHViTConfig(dims=dims, depths=depths, partial_dims=partial_dims), reported=reported)


@register(name="shvit", system="shvit", paper=replace(SHVIT_PAPER, where="the network and its variants"))
class SHViT(LightNetwork):
    """Three stages on maps of 1/16, 1/32 and 1/64: depth-wise convolution, single-head attention, perceptron.

    Images of any size are taken: convolutions alone cut them.

    Args:
        config: its sizes.

    Raises:
        ValueError: channels that the stem cannot halve, or more attended channels than a stage has.
    """

    SMALL: ClassVar[SHViTConfig] = SHViTConfig(
        in_channels=1,
        num_classes=10,
        dims=(32, 48),
        depths=(1, 1),
        partial_dims=(8, 12),
        types=("i", "s"),
        patch_size=2,
    )
    VARIANTS: ClassVar[dict[str, Variant]] = {
        "shvit_s1": _variant((128, 224, 320), (2, 4, 5), (32, 48, 68), params=6_330_808, macs=241e6),
        "shvit_s2": _variant((128, 308, 448), (2, 4, 5), (32, 66, 96), params=11_483_072, macs=366e6),
        "shvit_s3": _variant((192, 352, 448), (3, 5, 5), (48, 75, 96), params=14_245_273, macs=601e6),
        "shvit_s4": _variant((224, 336, 448), (4, 7, 6), (48, 72, 96), params=16_588_484, macs=986e6, image_size=256),
    }

    def __init__(self, config: SHViTConfig) -> None:
        super().__init__(config)

    def block(self, stage: int, drop_path: float) -> nn.Module:
        """With or without attention, as the stage's type says."""
        config: SHViTConfig = self.config
        channels = config.dims[stage]
        mixer = None
        if config.types[stage] == "s":
            mixer = SingleHeadAttention(channels, partial_dim=config.partial_dims[stage], head_dim=config.head_dim)
        return SHViTBlock(mixer, channels=channels, hidden=int(channels * config.mlp_ratio), drop_path=drop_path)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout (`blocks1` ...) or timm's (`stages`).

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        renamed = rename_all(state_dict, reference_names(self.config))
        load_strictly(self, fit_pointwise(renamed, self.state_dict()))


class SHViTBlock(nn.Module):
    """A depth-wise convolution, attention where the block has it, and a perceptron: each added to what comes in.

    Args:
        mixer: the attention, on maps; None = without.
        channels: width.
        hidden: width inside the perceptron.
        drop_path: rate of stochastic depth of all branches.
    """

    def __init__(self, mixer: nn.Module | None, *, channels: int, hidden: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.position = ResidualDepthwise(channels, initial_scale=0.0, drop_path=drop_path)
        self.mixer = mixer
        self.mlp = ConvFeedForward(channels, hidden)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Maps) -> Maps:
        """Neighbours, positions, channels."""
        x = self.position(x)
        if self.mixer is not None:
            x = x + self.drop_path(self.mixer(x))
        return self.drop_path(self.mlp(x)).add_(x)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout of a block: `conv`, `mixer`, `ffn`.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, rename_all(state_dict, BLOCK_NAMES))


BLOCK_NAMES = (
    (r"(^|\.)conv\.m\.", r"\1position.branch."),
    (r"(^|\.)mixer\.m\.", r"\1mixer."),
    (r"(^|\.)ffn\.m\.", r"\1mlp."),
    *SHSA_NAMES,
    *PART_NAMES,
)
"""Parts of a block, in both layouts, as ours."""
_TIMM_TRANSITIONS = (
    (r"^(stages\.\d+)\.downsample\.0\.m\.", r"\1.transition.before.position.branch."),
    (r"^(stages\.\d+)\.downsample\.1\.m\.", r"\1.transition.before.mlp."),
    (r"^(stages\.\d+)\.downsample\.2\.", r"\1.transition.merging."),
    (r"^(stages\.\d+)\.downsample\.3\.m\.", r"\1.transition.after.position.branch."),
    (r"^(stages\.\d+)\.downsample\.4\.m\.", r"\1.transition.after.mlp."),
)


def reference_names(config: SHViTConfig) -> tuple[tuple[str, str], ...]:
    """Parts of the network, in both layouts, as ours."""
    return (*stage_names(config), *_TIMM_TRANSITIONS, *BLOCK_NAMES)
