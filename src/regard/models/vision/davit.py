"""DaViT: a hierarchical image network whose blocks attend between positions and between channels in turn.

Paper: "DaViT: Dual Attention Vision Transformers", Ding et al., ECCV 2022, https://arxiv.org/abs/2204.03645, section 3.
Compared with dingmyu/davit@fc79470d, `timm/models/davit.py:DaViT`, and with timm's `davit_*`, whose layouts it loads.
The norm follows the first embedding's convolution and precedes those between stages; the head pools, then norms. The
paper's sizes for Huge and Giant (362 M and 1.437 B) are 3.6 % and 2.2 % above what their configurations give here and
in timm, so the counts of timm stand as reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import FeatureMixer, load_strictly
from regard.layers.conditional_position import ConditionalPosition
from regard.layers.drop_path import DropPath, linear_rates
from regard.layers.feed_forward import FeedForward
from regard.layers.reference_names import rename_all
from regard.metadata import Reported, Variant
from regard.mixers.channel.davit_channel import DaViTChannelAttention
from regard.mixers.spatial.davit_window import DAVIT_PAPER, DaViTWindowAttention
from regard.models.vision.backbone import Backbone, Images, Maps, check_stages
from regard.ops.windows import pad_to_multiple
from regard.registry import register

Kind = Literal["spatial", "channel"]
KINDS: tuple[Kind, ...] = ("spatial", "channel")


@dataclass(frozen=True, kw_only=True)
class DaViTConfig:
    """The network's sizes.

    Args:
        in_channels: channels of the images.
        num_classes: number of classes.
        dims: width of each stage.
        num_heads: heads, and groups of channels, of each stage.
        depths: of each stage the number of rounds through `kinds`.
        kinds: the blocks of a round, "spatial" or "channel".
        window_size: positions per side of a window.
        mlp_ratio: width inside the perceptrons over the stage's.
        qkv_bias: biases in the projections of queries, keys and values.
        patch_size: stride of the first embedding, in pixels.
        overlapped_patch: 3x3 kernels instead of 2x2 ones between stages.
        drop_path: rate of stochastic depth at the last block; it rises linearly from 0.
        checkpointing: in training, compute the activations inside blocks again instead of keeping them.
    """

    in_channels: int = 3
    num_classes: int = 1000
    dims: tuple[int, ...] = (96, 192, 384, 768)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    depths: tuple[int, ...] = (1, 1, 3, 1)
    kinds: tuple[Kind, ...] = KINDS
    window_size: int = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    patch_size: int = 4
    overlapped_patch: bool = False
    drop_path: float = 0.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        check_stages(self, "dims", "num_heads", "depths")
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise ValueError(f"kinds must be a list of {' and '.join(KINDS)}, got {self.kinds}")
        if self.patch_size < 1 or self.mlp_ratio <= 0:
            raise ValueError(f"patch_size and mlp_ratio must be positive, got {self.patch_size} and {self.mlp_ratio}")


def _variant(
    dims: int,
    heads: int,
    depths: tuple[int, ...],
    *,
    window_size: int = 7,
    params: int,
    macs: float | None,
    where: str,
    image_size: int | None = None,
) -> Variant:
    config = DaViTConfig(
        dims=tuple(dims << stage for stage in range(4)),
        num_heads=tuple(heads << stage for stage in range(4)),
        depths=depths,
        window_size=window_size,
    )
    reported = Reported(
        params=params, macs=macs, where=where, params_tolerance=0.0, macs_tolerance=0.01, image_size=image_size
    )
    return Variant(config=config, reported=reported)


_COUNTED = "table 3; the exact number of parameters is that of the authors' code"
_BY_TIMM = "the exact number of parameters is that of timm's network"


@register(name="davit", system="davit", paper=replace(DAVIT_PAPER, where="section 3 and table 1"))
class DaViT(Backbone):
    """Four stages of blocks with window attention and channel attention in turn.

    Images of any size are taken: embeddings and windows pad at the bottom and at the right.

    Args:
        config: its sizes.
    """

    SMALL: ClassVar[DaViTConfig] = DaViTConfig(
        in_channels=1,
        num_classes=10,
        dims=(32, 64),
        num_heads=(2, 4),
        depths=(1, 1),
        window_size=4,
        patch_size=1,
        mlp_ratio=2.0,
    )
    VARIANTS: ClassVar[dict[str, Variant]] = {
        "davit_tiny": _variant(96, 3, (1, 1, 3, 1), params=28_360_168, macs=4.54e9, where=_COUNTED),
        "davit_small": _variant(96, 3, (1, 1, 9, 1), params=49_745_896, macs=8.80e9, where=_COUNTED),
        "davit_base": _variant(128, 4, (1, 1, 9, 1), params=87_954_408, macs=15.51e9, where=_COUNTED),
        "davit_large": _variant(
            192, 6, (1, 1, 9, 1), window_size=12, params=196_811_752, macs=102.97e9, where=_COUNTED, image_size=384
        ),
        "davit_huge": _variant(256, 8, (1, 1, 9, 1), window_size=12, params=348_922_856, macs=None, where=_BY_TIMM),
        "davit_giant": _variant(
            384, 12, (1, 1, 12, 3), window_size=12, params=1_406_470_120, macs=None, where=_BY_TIMM
        ),
    }

    def __init__(self, config: DaViTConfig) -> None:
        super().__init__(config)
        rates = linear_rates(config.drop_path, len(config.kinds) * sum(config.depths))
        self.stages = nn.ModuleList()
        for stage in range(len(config.dims)):
            blocks = len(config.kinds) * config.depths[stage]
            self.stages.append(_Stage(config, stage, rates[:blocks]))
            rates = rates[blocks:]
        self.stage_channels = config.dims
        self.stage_strides = tuple(config.patch_size << stage for stage in range(len(config.dims)))
        self.head_norm = nn.LayerNorm(config.dims[-1])
        self.head = nn.Linear(config.dims[-1], config.num_classes)
        self.apply(_initialise)

    def features(self, images: Images) -> tuple[Maps, ...]:
        """The output of every stage, finest first."""
        self.check_images(images)
        x, outputs = images, []
        for stage in self.stages:
            assert isinstance(stage, _Stage)
            x = stage.embedding(x)
            for block in stage.in_turn():
                x = self.run(block, x)
            outputs.append(x)
        return tuple(outputs)

    def pool(self, last: Maps) -> Float[Tensor, "batch channels"]:
        """The mean over positions, normed."""
        return self.head_norm(last.mean(dim=(2, 3)))

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout (`patch_embeds`, `main_blocks`) or timm's (`stem`, `stages`).

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        is_timms = any(name.startswith("stem.") for name in state_dict)
        load_strictly(self, rename_all(state_dict, (*(_TIMM_NAMES if is_timms else DAVIT_NAMES), *BLOCK_NAMES)))


class _Embedding(nn.Module):
    """A strided convolution with a norm, after it for images and before it between stages; pads to its stride."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, kernel_size: int, norm_first: bool) -> None:
        super().__init__()
        padding = kernel_size // 2 if kernel_size > stride else 0
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding)
        self.norm = nn.LayerNorm(in_channels if norm_first else out_channels)
        self.stride = stride
        self.norm_first = norm_first

    def forward(self, x: Maps) -> Maps:
        """Norm over channels, padding, convolution; or padding, convolution, norm."""
        rows = x.permute(0, 2, 3, 1)
        if self.norm_first:
            rows = self.norm(rows)
        x = self.conv(pad_to_multiple(rows, (self.stride, self.stride)).permute(0, 3, 1, 2))
        return x if self.norm_first else self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Stage(nn.Module):
    """An embedding, and blocks of the config's kinds in turn."""

    def __init__(self, config: DaViTConfig, stage: int, rates: list[float]) -> None:
        super().__init__()
        dim = config.dims[stage]
        first = stage == 0
        kernel = (2 * config.patch_size - 1 if config.patch_size > 1 else 3) if first else 2 + config.overlapped_patch
        self.embedding = _Embedding(
            config.in_channels if first else config.dims[stage - 1],
            dim,
            stride=config.patch_size if first else 2,
            kernel_size=kernel,
            norm_first=not first,
        )
        self.blocks = nn.ModuleList()
        remaining = iter(rates)
        for _ in range(config.depths[stage]):
            turn = (
                DaViTBlock(
                    _mixer(kind, config, stage),
                    channels=dim,
                    hidden=round(dim * config.mlp_ratio),
                    drop_path=next(remaining),
                )
                for kind in config.kinds
            )
            self.blocks.append(nn.ModuleList(turn))

    def in_turn(self) -> Iterator[nn.Module]:
        """All blocks in order."""
        for turn in self.blocks:
            assert isinstance(turn, nn.ModuleList)
            yield from turn


def _mixer(kind: Kind, config: DaViTConfig, stage: int) -> FeatureMixer:
    dim, heads = config.dims[stage], config.num_heads[stage]
    if kind == "channel":
        return DaViTChannelAttention(dim, num_groups=heads, qkv_bias=config.qkv_bias)
    return DaViTWindowAttention(dim, num_heads=heads, window_size=config.window_size, qkv_bias=config.qkv_bias)


class DaViTBlock(nn.Module):
    """Positions, attention, positions, perceptron: each added to what comes in.

    Args:
        mixer: the attention, on maps.
        channels: width.
        hidden: width inside the perceptron.
        drop_path: rate of stochastic depth of both branches.
    """

    def __init__(self, mixer: FeatureMixer, *, channels: int, hidden: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.mixer_position = ConditionalPosition(channels)
        self.mixer_norm = nn.LayerNorm(channels)
        self.mixer = mixer
        self.mlp_position = ConditionalPosition(channels)
        self.mlp_norm = nn.LayerNorm(channels)
        self.mlp = FeedForward(channels, hidden)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Maps) -> Maps:
        """Norms and perceptron see the channels last; a map whose memory is so ordered is never copied for it."""
        x = self.mixer_position(x)
        normed = self.mixer_norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.mlp_position(x + self.drop_path(self.mixer(normed)))
        return x + self.drop_path(self.mlp(self.mlp_norm(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout of a block: `cpe`, `norm1`, `attn`, `norm2`, `mlp`.

        Raises:
            KeyError: an unknown or a missing key, named.
        """
        load_strictly(self, rename_all(state_dict, BLOCK_NAMES))


BLOCK_NAMES = (
    (r"(^|\.)cpe(\.0|1)\.(?:proj|conv)\.", r"\1mixer_position.conv."),
    (r"(^|\.)cpe(\.1|2)\.(?:proj|conv)\.", r"\1mlp_position.conv."),
    (r"(^|\.)norm1\.", r"\1mixer_norm."),
    (r"(^|\.)attn\.qkv\.", r"\1mixer.qkv."),
    (r"(^|\.)attn\.proj\.", r"\1mixer.o_proj."),
    (r"(^|\.)norm2\.", r"\1mlp_norm."),
    (r"(^|\.)mlp\.fc1\.", r"\1mlp.up_proj."),
    (r"(^|\.)mlp\.fc2\.", r"\1mlp.down_proj."),
)
"""Parts of a block, in both layouts, as ours."""
DAVIT_NAMES = (
    (r"^patch_embeds\.(\d+)\.proj\.", r"stages.\1.embedding.conv."),
    (r"^patch_embeds\.(\d+)\.", r"stages.\1.embedding."),
    (r"^main_blocks\.(\d+)\.", r"stages.\1.blocks."),
    (r"^norms\.", "head_norm."),
)
"""Parts of the network in the authors' layout as ours."""
_TIMM_NAMES = (
    (r"^stem\.", "stages.0.embedding."),
    (r"^stages\.(\d+)\.downsample\.", r"stages.\1.embedding."),
    (r"^head\.norm\.", "head_norm."),
    (r"^head\.fc\.", "head."),
)


def _initialise(part: nn.Module) -> None:
    if isinstance(part, nn.Linear):
        nn.init.trunc_normal_(part.weight, std=0.02)
        if part.bias is not None:
            nn.init.zeros_(part.bias)
