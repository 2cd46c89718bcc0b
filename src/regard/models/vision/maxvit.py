"""MaxViT: a hierarchical image network whose every block convolves, attends nearby, and attends across the map.

Paper: "MaxViT: Multi-Axis Vision Transformer", Tu et al., ECCV 2022, https://arxiv.org/abs/2204.01697, section 3.3 and
table 1. Compared with google-research/maxvit@70a47072, `maxvit/models/maxvit.py:MaxViT`, and with timm's
`maxvit_*_tf_*`; both layouts are loaded. The authors refuse images whose maps windows do not fill; here they are padded
(see `regard.layers.relative_attention`). Blocks run on maps whose memory has the channels last, whatever the images'.
Not settled by the paper, and as in the code: GELU is the tanh approximation, batch norms have an epsilon of 1e-3, and
the head has a hidden layer with a tanh. The rates of stochastic depth for training from scratch on ImageNet-1K are 0.2,
0.3, 0.4 and 0.6 for Tiny, Small, Base and Large; configs start without.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu

from regard.contract import FeatureMixer, load_strictly
from regard.layers.mbconv import NORM_MOMENTUM, MBConv, batch_norm
from regard.layers.norm_folding import convolve
from regard.layers.reference_names import rename_all
from regard.layers.relative_attention import INITIAL_SPREAD, MAXVIT_PAPER, RelativeAttention, base_size
from regard.layers.same_padding import SameConv2d
from regard.layers.tensorflow_names import arranged
from regard.metadata import Reported, Variant
from regard.mixers.channel.squeeze_excitation import SqueezeExcitation
from regard.mixers.spatial.maxvit_block import MaxViTBlockAttention
from regard.mixers.spatial.maxvit_grid import MaxViTGridAttention
from regard.models.vision.backbone import Backbone, Images, Maps, check_stages
from regard.models.vision.maxvit_blocks import MaxViTBlock
from regard.models.vision.maxvit_names import TIMM_RULES, network_place
from regard.registry import register

Kind = Literal["block", "grid"]
KINDS: tuple[Kind, ...] = ("block", "grid")
GATE_RATIO = 0.25


@dataclass(frozen=True, kw_only=True)
class MaxViTConfig:
    """The network's sizes.

    Args:
        in_channels: channels of the images.
        num_classes: number of classes.
        stem_channels: width of the stem.
        dims: width of each stage.
        depths: number of blocks of each stage.
        kinds: the attentions of a block, "block" or "grid".
        window_size: positions per side of a window of block attention.
        grid_size: positions per side of a comb of grid attention; None = `window_size`.
        scale_ratio: where larger images follow a training on smaller ones, the ratio of their sizes ("384/224"): the
            tables of biases keep the size for the smaller windows of that training.
        head_dim: width of a head.
        expand_ratio: width inside the convolutions over the stage's.
        mlp_ratio: width inside the perceptrons over the stage's.
        stem_stride: stride of the stem.
        strides: stride of each stage's first block.
        drop_path: stochastic depth: block number i of n has the rate `drop_path * i / n`, from 0 on.
        norm_momentum: share of a batch in the batch norms' running statistics; the authors' takes hundreds of steps.
        checkpointing: in training, compute the activations inside blocks again instead of keeping them.
    """

    in_channels: int = 3
    num_classes: int = 1000
    stem_channels: int = 64
    dims: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 5, 2)
    kinds: tuple[Kind, ...] = KINDS
    window_size: int = 7
    grid_size: int | None = None
    scale_ratio: str | None = None
    head_dim: int = 32
    expand_ratio: int = 4
    mlp_ratio: float = 4.0
    stem_stride: int = 2
    strides: tuple[int, ...] = (2, 2, 2, 2)
    drop_path: float = 0.0
    norm_momentum: float = NORM_MOMENTUM
    checkpointing: bool = False

    def __post_init__(self) -> None:
        check_stages(self, "dims", "depths", "strides")
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise ValueError(f"kinds must be a list of {' and '.join(KINDS)}, got {self.kinds}")
        for name in ("stem_channels", "head_dim", "expand_ratio", "mlp_ratio", "stem_stride", "window_size"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.grid_size is not None and self.grid_size < 1:
            raise ValueError(f"grid_size must be positive, got {self.grid_size}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be in [0, 1), got {self.drop_path}")
        if not 0 < self.norm_momentum <= 1:
            raise ValueError(f"norm_momentum must be in (0, 1], got {self.norm_momentum}")
        odd = [dim for dim in self.dims if dim % self.head_dim]
        if odd:
            raise ValueError(f"head_dim={self.head_dim} must divide the width of every stage, got {odd[0]}")
        for size in (self.window_size, self.grid_size or self.window_size):
            base_size(size, self.scale_ratio)


_SIZES = (224, 384, 512)
_WHERE = (
    "experiments; the number of parameters is that of the authors' code; the paper's MACs count elementwise work, too"
)


def _variants(
    name: str,
    stem_channels: int,
    dims: int,
    depths: tuple[int, ...],
    *,
    params: int,
    macs: tuple[float, float, float],
) -> dict[str, Variant]:
    """One size for images of 224, 384 and 512 pixels: windows grow with them, tables of biases do not."""
    config = MaxViTConfig(stem_channels=stem_channels, dims=tuple(dims << stage for stage in range(4)), depths=depths)
    made = {}
    for side, count in zip(_SIZES, macs, strict=True):
        larger = {} if side == _SIZES[0] else {"window_size": side // 32, "scale_ratio": f"{side}/{_SIZES[0]}"}
        made[f"maxvit_{name}" + (f"_{side}" if larger else "")] = Variant(
            config=replace(config, **larger),  # type: ignore[arg-type]
            reported=Reported(
                params=params,
                macs=count * 1e9,
                where=_WHERE,
                image_size=side,
                params_tolerance=0.0,
            ),
        )
    return made


@register(name="maxvit", system="maxvit", paper=replace(MAXVIT_PAPER, where="section 3.3 and table 1"))
class MaxViT(Backbone):
    """Stages of blocks that convolve, attend inside windows, and attend inside combs that span the map.

    Images of any size are taken: convolutions round up, and windows pad at the bottom and at the right.

    Args:
        config: its sizes.
    """

    SMALL: ClassVar[MaxViTConfig] = MaxViTConfig(
        in_channels=1,
        num_classes=10,
        stem_channels=16,
        dims=(32, 64),
        depths=(1, 1),
        window_size=4,
        head_dim=16,
        expand_ratio=2,
        mlp_ratio=2.0,
        stem_stride=1,
        strides=(1, 2),
        norm_momentum=0.1,
    )
    VARIANTS: ClassVar[dict[str, Variant]] = {
        **_variants("tiny", 64, 64, (2, 2, 5, 2), params=30_916_528, macs=(5.6, 17.7, 33.7)),
        **_variants("small", 64, 96, (2, 2, 5, 2), params=68_927_956, macs=(11.7, 36.1, 67.6)),
        **_variants("base", 64, 96, (2, 6, 14, 2), params=119_467_708, macs=(24.2, 74.2, 138.5)),
        **_variants("large", 128, 128, (2, 6, 14, 2), params=211_785_560, macs=(43.9, 133.1, 245.4)),
        **_variants("xlarge", 192, 192, (2, 6, 14, 2), params=474_951_952, macs=(97.8, 293.7, 535.2)),
    }

    def __init__(self, config: MaxViTConfig) -> None:
        super().__init__(config)
        self.stem = _Stem(config)
        total = sum(config.depths)
        rates = iter(config.drop_path * number / total for number in range(total))
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(config.depths):
            blocks = (block_of(config, stage, first=number == 0, drop_path=next(rates)) for number in range(depth))
            self.stages.append(nn.ModuleList(blocks))
        self.stage_channels = config.dims
        self.stage_strides = tuple(itertools.accumulate(config.strides, operator.mul, initial=config.stem_stride))[1:]
        self.head_norm = nn.LayerNorm(config.dims[-1])
        self.head_proj = nn.Linear(config.dims[-1], config.dims[-1])
        self.head = nn.Linear(config.dims[-1], config.num_classes)
        self.apply(initialise)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = config.norm_momentum

    def features(self, images: Images) -> tuple[Maps, ...]:
        """The output of every stage, finest first."""
        self.check_images(images)
        # norms and linear maps read the channels of a position together, and convolutions are no slower for it
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        x = x.contiguous(memory_format=torch.channels_last)
        outputs = []
        for stage in self.stages:
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                x = self.run(block, x)
            outputs.append(x)
        return tuple(outputs)

    def pool(self, last: Maps) -> Float[Tensor, "batch channels"]:
        """The mean over positions, normed, and a hidden layer."""
        return self.head_proj(self.head_norm(last.mean(dim=(2, 3)))).tanh()

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout (TensorFlow's variables) or timm's (`maxvit_*_tf_*`).

        timm resizes the tables of biases when weights are converted: where they come in the size of the windows, ours
        take that size, and the config's `scale_ratio` becomes None.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        if any("/" in name for name in state_dict):
            load_strictly(self, arranged(state_dict, network_place, self.state_dict()))
            return
        tensors = rename_all(state_dict, TIMM_RULES)
        for name, own in self.state_dict().items():
            if ".gate." in name and name.endswith("weight") and name in tensors:
                tensors[name] = _without_taps(tensors[name], like=own)
        if self.config.scale_ratio is not None:
            self._take_resized_tables(tensors)
        load_strictly(self, tensors)

    def _take_resized_tables(self, tensors: Mapping[str, Tensor]) -> None:
        layers = {
            name: layer
            for name, layer in self.named_modules()
            if isinstance(layer, RelativeAttention) and f"{name}.bias_table" in tensors
        }
        for name, layer in layers.items():
            if tensors[f"{name}.bias_table"].shape != (layer.num_heads, 2 * layer.size - 1, 2 * layer.size - 1):
                return
        for name, layer in layers.items():
            layer.bias_table = nn.Parameter(layer.bias_table.new_empty(tensors[f"{name}.bias_table"].shape))
        self.config = replace(self.config, scale_ratio=None)


class _Stem(nn.Module):
    """A strided 3 x 3 convolution, norm, GELU, and another."""

    def __init__(self, config: MaxViTConfig) -> None:
        super().__init__()
        width = config.stem_channels
        self.conv1 = SameConv2d(config.in_channels, width, 3, stride=config.stem_stride)
        self.norm = batch_norm(width)
        self.conv2 = SameConv2d(width, width, 3)

    def forward(self, images: Images) -> Float[Tensor, "batch channels y_out x_out"]:
        """With TensorFlow's SAME padding."""
        return self.conv2(gelu(convolve(images, self.conv1, after=self.norm), approximate="tanh"))


def block_of(config: MaxViTConfig, stage: int, *, first: bool, drop_path: float) -> MaxViTBlock:
    """A block of a stage.

    Args:
        config: the network's sizes.
        stage: number of the stage.
        first: whether it is the stage's first, which strides and widens.
        drop_path: rate of stochastic depth.
    """
    dim = config.dims[stage]
    before = (config.stem_channels, *config.dims)[stage]
    gate = SqueezeExcitation(
        config.expand_ratio * dim, hidden=max(1, math.floor(GATE_RATIO * dim)), activation="silu", bias=True
    )
    conv = MBConv(
        before if first else dim,
        dim,
        stride=config.strides[stage] if first else 1,
        expand_ratio=config.expand_ratio,
        gate=gate,
        drop_path=drop_path,
    )
    mixers = [_mixer(kind, config, dim) for kind in config.kinds]
    return MaxViTBlock(conv, mixers, channels=dim, hidden=round(dim * config.mlp_ratio), drop_path=drop_path)


def _mixer(kind: Kind, config: MaxViTConfig, dim: int) -> FeatureMixer:
    heads = dim // config.head_dim
    if kind == "block":
        base = base_size(config.window_size, config.scale_ratio)
        return MaxViTBlockAttention(dim, num_heads=heads, window_size=config.window_size, base_size=base)
    size = config.grid_size or config.window_size
    return MaxViTGridAttention(dim, num_heads=heads, grid_size=size, base_size=base_size(size, config.scale_ratio))


def initialise(part: nn.Module) -> None:
    """Weights from N(0, 0.02^2) and biases 0, as the authors'."""
    if isinstance(part, nn.Linear | nn.Conv2d):
        nn.init.normal_(part.weight, std=INITIAL_SPREAD)
        if part.bias is not None:
            nn.init.zeros_(part.bias)


def _without_taps(weight: Tensor, *, like: Tensor) -> Tensor:
    """A 1 x 1 convolution as a matrix; another shape stays as it is, for the strict loader to name."""
    return weight[:, :, 0, 0] if weight.shape == (*like.shape, 1, 1) else weight
