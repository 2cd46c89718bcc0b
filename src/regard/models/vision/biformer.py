"""BiFormer: a hierarchical image network whose blocks attend inside the regions that a region's content asks for.

Paper: "BiFormer: Vision Transformer with Bi-Level Routing Attention", Zhu et al., CVPR 2023,
https://arxiv.org/abs/2303.08810, section 3.3.
Compared with rayleizhu/BiFormer@1697bbbe, `models/biformer.py:BiFormer` and `models/biformer_stl.py:BiFormerSTL`, whose
layouts it loads. The latter has Swin-T's layout; its published configuration has batch norms between stages, where the
class by itself would have layer norms.
Different: images of any size are taken, which the classifiers there refuse where the regions do not fill a map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import load_strictly
from regard.layers.biformer_block import BLOCK_NAMES, NORM_EPS, BiFormerBlock
from regard.layers.drop_path import linear_rates
from regard.layers.lepe_attention import LePEAttention
from regard.layers.reference_names import rename_all
from regard.metadata import Reported, Variant
from regard.mixers.spatial.bilevel_routing import BIFORMER_PAPER, ROUTING_NAMES, BiLevelRoutingAttention
from regard.models.vision.backbone import Backbone, Images, Maps, check_stages
from regard.ops.windows import pad_to_multiple
from regard.registry import register

Embedding = Literal["overlapped", "patches"]
EMBEDDINGS: tuple[Embedding, ...] = get_args(Embedding)
Norm = Literal["batch", "layer"]
NORMS: tuple[Norm, ...] = get_args(Norm)
CONVOLUTIONS, FULL, FULL_WITH_LEPE = 0, -1, -2
"""Numbers in `topks` that stand for another mixer."""
FULL_ATTENTION_HEADS = 8


@dataclass(frozen=True, kw_only=True)
class BiFormerConfig:
    """The network's sizes.

    Args:
        in_channels: channels of the images.
        num_classes: number of classes.
        dims: width of each stage.
        depths: blocks of each stage.
        topks: regions that a region attends to, for each stage; -2 = full attention with LePE, -1 = without, always of
            8 heads; 0 = a 1x1, a depth-wise 5x5 and a 1x1 convolution in attention's place.
        regions_per_side: regions per side of the map, for each stage.
        qk_dims: width of queries and keys of each stage; None = `dims`.
        head_dim: width of a head's queries.
        mlp_ratio: width inside the perceptrons over the stage's.
        lepe_kernel_size: taps per side of the convolution inside attention; 0 = none.
        conditional_position: a depth-wise convolution at the beginning of every block.
        embedding: "overlapped" = 3x3 convolutions of stride 2 with a norm after each, two of them first; "patches" =
            one convolution whose kernel is its stride, the norm after the first and before the others.
        norm: "batch" or "layer", of the embeddings and of the head.
        patch_size: stride of the first embedding, in pixels; 1, 2 or 4 for "overlapped".
        norm_first: norm what the branches of a block read; else what its additions give.
        layer_scale: where a factor on each channel of the branches starts; None = no factors.
        mlp_conv: a depth-wise convolution inside the perceptrons.
        drop_path: rate of stochastic depth at the last block; it rises linearly from 0.
        checkpointing: in training, compute the activations inside blocks again instead of keeping them.
    """

    in_channels: int = 3
    num_classes: int = 1000
    dims: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 8, 2)
    topks: tuple[int, ...] = (1, 4, 16, FULL_WITH_LEPE)
    regions_per_side: tuple[int, ...] = (7, 7, 7, 7)
    qk_dims: tuple[int, ...] | None = None
    head_dim: int = 32
    mlp_ratio: float = 3.0
    lepe_kernel_size: int = 5
    conditional_position: bool = True
    embedding: Embedding = "overlapped"
    norm: Norm = "batch"
    patch_size: int = 4
    norm_first: bool = True
    layer_scale: float | None = None
    mlp_conv: bool = False
    drop_path: float = 0.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        per_stage = ("dims", "depths", "regions_per_side", *(["qk_dims"] if self.qk_dims is not None else []))
        check_stages(self, *per_stage)
        if len(self.topks) != len(self.dims) or min(self.topks) < FULL_WITH_LEPE:
            raise ValueError(
                f"topks must have a number from {FULL_WITH_LEPE} on for each of the {len(self.dims)} stages, "
                f"got {self.topks}"
            )
        if self.head_dim < 1 or self.mlp_ratio <= 0:
            raise ValueError(f"head_dim and mlp_ratio must be positive, got {self.head_dim} and {self.mlp_ratio}")
        if self.embedding not in EMBEDDINGS or self.norm not in NORMS:
            raise ValueError(
                f"embedding must be one of {', '.join(EMBEDDINGS)} and norm one of {', '.join(NORMS)}, "
                f"got {self.embedding!r} and {self.norm!r}"
            )
        if self.patch_size < 1 or (self.embedding == "overlapped" and self.patch_size not in (1, 2, 4)):
            raise ValueError(f"patch_size must be positive, and 1, 2 or 4 if overlapped, got {self.patch_size}")


_SMALL_BLOCKS = (4, 4, 18, 4)
_WIDE = (96, 192, 384, 768)
_COUNTED = "experiments on ImageNet-1K; the exact number of parameters is that of the authors' code"


def _variant(config: BiFormerConfig, params: float, macs: float) -> Variant:
    reported = Reported(params=params, macs=macs, where=_COUNTED, params_tolerance=0.0, macs_tolerance=0.01)
    return Variant(config=config, reported=reported)


@register(name="biformer", system="biformer", paper=replace(BIFORMER_PAPER, where="section 3.3"))
class BiFormer(Backbone):
    """Stages of blocks with bi-level routing attention, the last with full attention.

    Images of any size are taken: embeddings round up and regions pad at the bottom and at the right.

    Args:
        config: its sizes.
    """

    SMALL: ClassVar[BiFormerConfig] = BiFormerConfig(
        in_channels=1,
        num_classes=10,
        dims=(32, 64),
        depths=(1, 1),
        topks=(4, FULL_WITH_LEPE),
        regions_per_side=(4, 4),
        head_dim=16,
        mlp_ratio=2.0,
        patch_size=1,
    )
    VARIANTS: ClassVar[dict[str, Variant]] = {
        "biformer_tiny": _variant(BiFormerConfig(), 13_142_760, 2.228e9),
        "biformer_small": _variant(BiFormerConfig(depths=_SMALL_BLOCKS), 25_536_232, 4.487e9),
        "biformer_base": _variant(BiFormerConfig(depths=_SMALL_BLOCKS, dims=_WIDE), 56_804_968, 9.795e9),
        "biformer_stl": _variant(
            BiFormerConfig(
                dims=_WIDE, depths=(2, 2, 6, 2), mlp_ratio=4.0, embedding="patches", conditional_position=False
            ),
            28_372_552,
            4.6e9,
        ),
    }

    def __init__(self, config: BiFormerConfig) -> None:
        super().__init__(config)
        rates = iter(linear_rates(config.drop_path, sum(config.depths)))
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(config.depths):
            self.stages.append(_Stage(config, stage, [next(rates) for _ in range(depth)]))
        self.stage_channels = config.dims
        self.stage_strides = tuple(config.patch_size << stage for stage in range(len(config.dims)))
        self.head_norm = _norm(config.norm, config.dims[-1])
        self.head = nn.Linear(config.dims[-1], config.num_classes)
        self.apply(_initialise)

    def features(self, images: Images) -> tuple[Maps, ...]:
        """The output of every stage, finest first."""
        self.check_images(images)
        x, outputs = images, []
        for stage in self.stages:
            assert isinstance(stage, _Stage)
            x = stage.embedding(x)
            for block in stage.blocks:
                x = self.run(block, x)
            outputs.append(x)
        return tuple(outputs)

    def pool(self, last: Maps) -> Float[Tensor, "batch channels"]:
        """The mean over positions of the normed map."""
        return self.head_norm(last).mean(dim=(2, 3))

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout: `downsample_layers`, `stages` (in Swin-T's layout with `blocks`), `norm`, `head`.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, rename_all(state_dict, BIFORMER_NAMES))


BIFORMER_NAMES = (
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.embedding."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"^norm\.", "head_norm."),
    *BLOCK_NAMES,
    *ROUTING_NAMES,
)
"""Parts of the network in the authors' layouts as ours."""


class _Stage(nn.Module):
    """An embedding and its blocks."""

    def __init__(self, config: BiFormerConfig, stage: int, rates: list[float]) -> None:
        super().__init__()
        channels = config.dims[stage]
        self.embedding = _embedding(config, stage)
        self.blocks = nn.ModuleList(
            BiFormerBlock(
                _mixer(config, stage),
                channels=channels,
                hidden=int(channels * config.mlp_ratio),
                conditional_position=config.conditional_position,
                norm_first=config.norm_first,
                layer_scale=config.layer_scale,
                mlp_conv=config.mlp_conv,
                drop_path=rate,
            )
            for rate in rates
        )


def _mixer(config: BiFormerConfig, stage: int) -> nn.Module:
    channels, topk, taps = config.dims[stage], config.topks[stage], config.lepe_kernel_size
    if topk in (FULL, FULL_WITH_LEPE):
        taps = taps if topk == FULL_WITH_LEPE else 0
        return LePEAttention(channels, num_heads=FULL_ATTENTION_HEADS, lepe_kernel_size=taps)
    if topk == CONVOLUTIONS:
        return nn.Sequential(
            nn.Conv2d(channels, channels, 1),
            nn.Conv2d(channels, channels, 5, padding=2, groups=channels),
            nn.Conv2d(channels, channels, 1),
        )
    qk_dim = channels if config.qk_dims is None else config.qk_dims[stage]
    return BiLevelRoutingAttention(
        channels,
        num_heads=qk_dim // config.head_dim,
        regions_per_side=config.regions_per_side[stage],
        topk=topk,
        qk_dim=qk_dim,
        lepe_kernel_size=taps,
    )


def _embedding(config: BiFormerConfig, stage: int) -> nn.Sequential:
    """Parts in the order of the authors', so that their numbers agree."""
    channels, kind = config.dims[stage], config.norm
    before = config.dims[stage - 1] if stage else config.in_channels
    if config.embedding == "patches":
        conv = _PatchConv(before, channels, config.patch_size if stage == 0 else 2)
        return nn.Sequential(conv, _norm(kind, channels)) if stage == 0 else nn.Sequential(_norm(kind, before), conv)
    if stage:
        return nn.Sequential(nn.Conv2d(before, channels, 3, stride=2, padding=1), _norm(kind, channels))
    return nn.Sequential(
        nn.Conv2d(before, channels // 2, 3, stride=2 if config.patch_size > 1 else 1, padding=1),
        _norm(kind, channels // 2),
        nn.GELU(),
        nn.Conv2d(channels // 2, channels, 3, stride=2 if config.patch_size > 2 else 1, padding=1),
        _norm(kind, channels),
    )


class _PatchConv(nn.Conv2d):
    """A convolution whose kernel is its stride; pads at the bottom and at the right."""

    def __init__(self, in_channels: int, out_channels: int, side: int) -> None:
        super().__init__(in_channels, out_channels, side, stride=side)

    def forward(self, x: Maps) -> Maps:
        """One position per patch."""
        side = self.kernel_size[0]
        return super().forward(pad_to_multiple(x.permute(0, 2, 3, 1), (side, side)).permute(0, 3, 1, 2))


class _ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of every position of a map."""

    def forward(self, x: Maps) -> Maps:
        """Position by position."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _norm(kind: Norm, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if kind == "batch" else _ChannelNorm(channels, eps=NORM_EPS)


def _initialise(part: nn.Module) -> None:
    if isinstance(part, nn.Linear):
        nn.init.trunc_normal_(part.weight, std=0.02)
        if part.bias is not None:
            nn.init.zeros_(part.bias)
