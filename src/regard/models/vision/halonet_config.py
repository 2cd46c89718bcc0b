"""The sizes of HaloNet: a config for networks of halo attention, of convolutions, and of both; and the published ones.

Paper: "Scaling Local Self-Attention for Parameter Efficient Visual Backbones", Vaswani et al., CVPR 2021,
https://arxiv.org/abs/2103.12731, the table of configurations (H0 to H7). The hybrids are those of
huggingface/pytorch-image-models@v1.0.31, `timm/models/byoanet.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from regard.layers.spatial_bottleneck import ACTIVATIONS, Activation
from regard.metadata import Reported, Variant
from regard.models.vision.backbone import check_stages


class Stem(NamedTuple):
    """Convolutions one after the other, and what follows them.

    Args:
        kernel_size: taps per side of each.
        strides: of each.
        eighths: channels of each, in eighths of the last one's.
        pools: whether a maximum over 3x3 with stride 2 follows.
    """

    kernel_size: int
    strides: tuple[int, ...]
    eighths: tuple[int, ...]
    pools: bool


STEMS = {
    "7x7": Stem(7, (2,), (8,), pools=True),
    "tiered": Stem(3, (2, 1, 1), (3, 4, 8), pools=True),
    "tiered_strided": Stem(3, (2, 1, 2), (3, 4, 8), pools=False),
    "small": Stem(3, (1,), (8,), pools=False),
}
GATES = ("se", "eca")
HALO, CONVOLUTION = "h", "c"


@dataclass(frozen=True, kw_only=True)
class HaloNetConfig:
    """The network's sizes.

    Args:
        in_channels: channels of the images.
        num_classes: number of classes.
        stem: "7x7" or "tiered" (three of 3x3), both with a maximum, or "tiered_strided" (a stride in its place), all
            of which leave a quarter of the image's size; or "small" (one of 3x3), which leaves the size.
        stem_channels: channels after the stem.
        blocks: of each stage its blocks in order, a letter each: h = halo attention, c = 3x3 convolution.
        widths: of each stage the channels between the narrowing and the widening convolution of a block.
        out_channels: of each stage the channels between blocks.
        value_ratio: channels of halo attention's values over the stage's width.
        num_heads: heads of halo attention in each stage.
        head_dim: width of a query and of a key; None = the stage's width over its heads.
        block_size: positions per side of a block of halo attention.
        halo_size: positions by which the window of keys extends the block in each direction.
        scale_pos_embed: divide relative logits by the square root of a query's width, as the other logits are.
        group_width: channels of a group of the 3x3 convolutions; None = one group.
        gate: gate on channels after the 3x3 convolutions, "se" or "eca"; None = none.
        activation: "relu" or "silu".
        final_channels: channels of a 1x1 convolution before the pooling; None = no such convolution.
        drop_path: rate of stochastic depth at the last block; it rises linearly from 0.
        checkpointing: in training, compute the activations inside blocks again instead of keeping them.
    """

    in_channels: int = 3
    num_classes: int = 1000
    stem: Literal["7x7", "tiered", "tiered_strided", "small"] = "7x7"
    stem_channels: int = 64
    blocks: tuple[str, ...] = ("hhh", "hhh", "hhhhhhhhhh", "hhh")
    widths: tuple[int, ...] = (64, 128, 256, 512)
    out_channels: tuple[int, ...] = (64, 128, 256, 512)
    value_ratio: float = 1.0
    num_heads: tuple[int, ...] = (4, 8, 8, 8)
    head_dim: int | None = None
    block_size: int = 8
    halo_size: int = 3
    scale_pos_embed: bool = False
    group_width: int | None = None
    gate: Literal["se", "eca"] | None = None
    activation: Activation = "silu"
    final_channels: int | None = None
    drop_path: float = 0.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        check_stages(self, "widths", "out_channels", "num_heads")
        _check_blocks(self.blocks, len(self.widths))
        for name, allowed in (("stem", STEMS), ("activation", ACTIVATIONS), ("gate", (*GATES, None))):
            if getattr(self, name) not in allowed:
                known = ", ".join(str(value) for value in allowed)
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        for name in ("stem_channels", "value_ratio", "final_channels", "group_width"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        for width in self.widths:
            if self.group_width is not None and width % self.group_width:
                raise ValueError(f"group_width must divide the width {width}, got {self.group_width}")


def _check_blocks(blocks: tuple[str, ...], stages: int) -> None:
    if len(blocks) != stages or not all(kinds and set(kinds) <= {HALO, CONVOLUTION} for kinds in blocks):
        raise ValueError(f"blocks must have letters h and c for each of the {stages} stages, got {blocks}")


def _pure(
    third: int,
    *,
    out_ratio: float,
    value_ratio: float = 1.0,
    block_size: int = 8,
    halo_size: int = 3,
    final_channels: int | None = None,
    image: int = 256,
    params: int,
) -> Variant:
    """One of H0 to H7, by the number of blocks in its third stage and its ratios."""
    config = HaloNetConfig(
        blocks=("hhh", "hhh", HALO * third, "hhh"),
        out_channels=tuple(round(width * out_ratio) for width in HaloNetConfig.widths),
        value_ratio=value_ratio,
        block_size=block_size,
        halo_size=halo_size,
        final_channels=final_channels,
    )
    where = f"the table of configurations, for images of {image}; the exact number of parameters is what its sizes give"
    return Variant(config=config, reported=Reported(params=params, where=where, params_tolerance=0.0))


def _hybrid(config: HaloNetConfig, *, params: int) -> Variant:
    where = "not in the paper; the number of parameters is that of timm's network"
    return Variant(config=config, reported=Reported(params=params, where=where, params_tolerance=0.0))


_TIMM = HaloNetConfig(
    stem="tiered",
    blocks=("cc", "cc", "ch", "hh"),
    out_channels=(256, 512, 1024, 2048),
    num_heads=(8, 8, 8, 8),
)

VARIANTS = {
    "halonet_h0": _pure(7, out_ratio=0.5, params=5_502_248),
    "halonet_h1": _pure(10, out_ratio=1.0, params=8_101_352),
    "halonet_h2": _pure(11, out_ratio=1.25, params=9_405_608),
    "halonet_h3": _pure(12, out_ratio=1.5, block_size=10, final_channels=1024, image=320, params=11_842_792),
    "halonet_h4": _pure(
        12, out_ratio=3.0, block_size=12, halo_size=2, final_channels=1280, image=384, params=19_103_464
    ),
    "halonet_h5": _pure(
        23,
        out_ratio=2.0,
        value_ratio=2.5,
        block_size=14,
        halo_size=2,
        final_channels=1536,
        image=448,
        params=30_718_952,
    ),
    "halonet_h6": _pure(
        24, out_ratio=2.75, value_ratio=3.0, halo_size=4, final_channels=1536, image=512, params=43_458_280
    ),
    "halonet_h7": _pure(
        26, out_ratio=3.5, value_ratio=4.0, block_size=10, final_channels=2048, image=600, params=67_434_728
    ),
    "halonet26t": _hybrid(replace(_TIMM, halo_size=2, activation="relu"), params=12_480_288),
    "halonet50ts": _hybrid(
        replace(_TIMM, blocks=("ccc", "ccch", "chchch", "chc"), num_heads=(8, 4, 8, 8)), params=22_733_280
    ),
    "sehalonet33ts": _hybrid(
        replace(
            _TIMM,
            stem="tiered_strided",
            blocks=("cc", "cch", "cch", "hh"),
            out_channels=(256, 512, 1024, 1536),
            gate="se",
            final_channels=1280,
        ),
        params=13_691_712,
    ),
    "eca_halonext26ts": _hybrid(
        replace(_TIMM, halo_size=2, head_dim=16, group_width=16, gate="eca"), params=10_756_885
    ),
}
"""H0 to H7, and the hybrids that timm has weights for."""
