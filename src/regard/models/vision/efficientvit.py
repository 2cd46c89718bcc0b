"""EfficientViT: a light image network that sandwiches one cascaded group attention between cheap layers.

Paper: "EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention", Liu et al., CVPR 2023,
https://arxiv.org/abs/2305.07027, section 3.2. Not the EfficientViT of Cai et al. (ICCV 2023), whose attention is
linear.
Compared with microsoft/Cream@4a13c409, `EfficientViT/classification/model/efficientvit.py:EfficientViT`, and with
timm's `efficientvit_m*`, whose layouts it loads.
There images have the size that the network was built for. Here `image_size` only decides how large the windows are
where the map is smaller than them; images of other sizes are cut into the same windows, and a map that is smaller still
is one window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from regard.contract import FeatureMixer, load_strictly
from regard.layers.drop_path import DropPath
from regard.layers.light_backbone import DepthwiseFeedForward
from regard.layers.reference_names import rename_all
from regard.metadata import Reported, Variant
from regard.mixers.spatial.cascaded_group import (
    CASCADED_GROUP_NAMES,
    EFFICIENTVIT_PAPER,
    CascadedGroupAttention,
    fit_biases,
)
from regard.models.vision.backbone import Maps, check_stages
from regard.models.vision.light_network import PART_NAMES, LightNetwork, fit_pointwise, stage_names
from regard.registry import register


@dataclass(frozen=True, kw_only=True)
class EfficientViTConfig:
    """The network's sizes.

    Args:
        in_channels: channels of the images.
        num_classes: number of classes.
        image_size: pixels per side of the images that the windows are made for.
        dims: width of each stage.
        depths: blocks of each stage.
        num_heads: heads of each stage.
        kernel_sizes: taps per side of the convolution of the queries, by head.
        window_size: positions per side of a window; in a stage whose map is smaller, those of the map.
        head_dim: width of queries and keys.
        mlp_ratio: width inside the perceptrons over the stage's.
        cascade: heads hand their outputs on; False = they do not depend on each other.
        patch_size: stride of the stem, a power of two.
        distillation: a second classifier for a teacher's answers.
        drop_path: rate of stochastic depth at the last block; it rises linearly from 0.
        checkpointing: in training, compute the activations inside blocks again instead of keeping them.
    """

    in_channels: int = 3
    num_classes: int = 1000
    image_size: int = 224
    dims: tuple[int, ...] = (64, 128, 192)
    depths: tuple[int, ...] = (1, 2, 3)
    num_heads: tuple[int, ...] = (4, 4, 4)
    kernel_sizes: tuple[int, ...] = (5, 5, 5, 5)
    window_size: int = 7
    head_dim: int = 16
    mlp_ratio: float = 2.0
    cascade: bool = True
    patch_size: int = 16
    distillation: bool = False
    drop_path: float = 0.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        check_stages(self, "dims", "depths", "num_heads")
        for name in ("image_size", "window_size", "mlp_ratio"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


def _variant(
    dims: tuple[int, ...],
    depths: tuple[int, ...],
    num_heads: tuple[int, ...],
    kernel_sizes: tuple[int, ...] = (7, 5, 3, 3),
    *,
    params: int,
    macs: float,
) -> Variant:
    reported = Reported(
        params=params,
        macs=macs,
        where="results on ImageNet-1K; the exact number of parameters is that of the authors' code",
        params_tolerance=0.0,
        macs_tolerance=0.01,
    )
    config = EfficientViTConfig(dims=dims, depths=depths, num_heads=num_heads, kernel_sizes=kernel_sizes)
    return Variant(config=config, reported=reported)


@register(name="efficientvit", system="efficientvit", paper=replace(EFFICIENTVIT_PAPER, where="section 3.2"))
class EfficientViT(LightNetwork):
    """Three stages on maps of 1/16, 1/32 and 1/64: attention in windows between convolutions and perceptrons.

    Images of any size are taken: windows pad at the bottom and at the right.

    Args:
        config: its sizes.

    Raises:
        ValueError: channels that the stem cannot halve, heads that do not divide a stage's channels, or fewer kernels
            than heads.
    """

    SMALL: ClassVar[EfficientViTConfig] = EfficientViTConfig(
        in_channels=1,
        num_classes=10,
        image_size=8,
        dims=(32, 48),
        depths=(1, 1),
        num_heads=(2, 3),
        kernel_sizes=(3, 3, 3),
        head_dim=8,
        patch_size=2,
    )
    VARIANTS: ClassVar[dict[str, Variant]] = {
        "efficientvit_m0": _variant((64, 128, 192), (1, 2, 3), (4, 4, 4), (5, 5, 5, 5), params=2_349_436, macs=79e6),
        "efficientvit_m1": _variant((128, 144, 192), (1, 2, 3), (2, 3, 3), params=2_980_560, macs=167e6),
        "efficientvit_m2": _variant((128, 192, 224), (1, 2, 3), (4, 3, 2), params=4_187_554, macs=201e6),
        "efficientvit_m3": _variant((128, 240, 320), (1, 2, 3), (4, 3, 4), (5, 5, 5, 5), params=6_900_722, macs=263e6),
        "efficientvit_m4": _variant((128, 256, 384), (1, 2, 3), (4, 4, 4), params=8_804_228, macs=299e6),
        "efficientvit_m5": _variant((192, 288, 384), (1, 3, 4), (3, 3, 4), params=12_473_772, macs=522e6),
    }

    def __init__(self, config: EfficientViTConfig) -> None:
        super().__init__(config)

    def block(self, stage: int, drop_path: float) -> nn.Module:
        """Windows are as large as the map that images of `image_size` give, where that is smaller."""
        config: EfficientViTConfig = self.config
        channels, side = config.dims[stage], -(-config.image_size // (config.patch_size << stage))
        mixer = CascadedGroupAttention(
            channels,
            num_heads=config.num_heads[stage],
            window_size=min(config.window_size, side),
            head_dim=config.head_dim,
            kernel_sizes=config.kernel_sizes,
            cascade=config.cascade,
        )
        return EfficientViTBlock(mixer, channels=channels, hidden=int(channels * config.mlp_ratio), drop_path=drop_path)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout (`blocks1` ...) or timm's (`stages`); biases of other windows are resized.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape, or biases in another order.
        """
        own = self.state_dict()
        renamed = rename_all(state_dict, reference_names(self.config))
        load_strictly(self, fit_pointwise(fit_biases(renamed, own), own))


class EfficientViTBlock(nn.Module):
    """Convolution and perceptron, attention, convolution and perceptron: each added to what comes in.

    Args:
        mixer: the attention, on maps.
        channels: width.
        hidden: width inside the perceptrons.
        drop_path: rate of stochastic depth of all branches.
    """

    def __init__(self, mixer: FeatureMixer, *, channels: int, hidden: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.before = DepthwiseFeedForward(channels, hidden=hidden, initial_scale=0.0, drop_path=drop_path)
        self.mixer = mixer
        self.after = DepthwiseFeedForward(channels, hidden=hidden, initial_scale=0.0, drop_path=drop_path)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Maps) -> Maps:
        """A sandwich."""
        x = self.before(x)
        return self.after(x + self.drop_path(self.mixer(x)))


BLOCK_NAMES = (
    (r"(^|\.)dw0\.m\.", r"\1before.position.branch."),
    (r"(^|\.)ffn0\.m\.", r"\1before.mlp."),
    (r"(^|\.)mixer\.m\.", r"\1mixer."),
    (r"(^|\.)dw1\.m\.", r"\1after.position.branch."),
    (r"(^|\.)ffn1\.m\.", r"\1after.mlp."),
    *CASCADED_GROUP_NAMES,
    *PART_NAMES,
)
"""Parts of a block, in both layouts, as ours."""
_TIMM_TRANSITIONS = (
    (r"^(stages\.\d+)\.downsample\.res1\.0\.m\.", r"\1.transition.before.position.branch."),
    (r"^(stages\.\d+)\.downsample\.res1\.1\.m\.", r"\1.transition.before.mlp."),
    (r"^(stages\.\d+)\.downsample\.patchmerge\.", r"\1.transition.merging."),
    (r"^(stages\.\d+)\.downsample\.res2\.0\.m\.", r"\1.transition.after.position.branch."),
    (r"^(stages\.\d+)\.downsample\.res2\.1\.m\.", r"\1.transition.after.mlp."),
)


def reference_names(config: EfficientViTConfig) -> tuple[tuple[str, str], ...]:
    """Parts of the network, in both layouts, as ours."""
    return (*stage_names(config), *_TIMM_TRANSITIONS, *BLOCK_NAMES)
