"""HaloNet: a residual network whose 3x3 convolutions are halo attention, H0 to H7, and hybrids with convolutions.

Paper: "Scaling Local Self-Attention for Parameter Efficient Visual Backbones", Vaswani et al., CVPR 2021,
https://arxiv.org/abs/2103.12731, attention downsampling and the table of configurations.
The authors published no code. Compared with huggingface/pytorch-image-models@v1.0.31, `timm/models/byoanet.py`, whose
layout it loads. `halonet_h1` there has ReLU and 8 heads in every stage, where the family has SiLU and 4, 8, 8 and 8
heads; the hybrids are timm's. Of those, `haloregnetz_b`, `halo2botnet50ts` and `lamhalobotnet50ts` are not here: they
need inverted bottlenecks, global attention on a fixed size, and lambda layers.
Any image size is taken: zeros below and at the right fill the blocks. H7, at 600 pixels, so attends on maps of 150, 75,
38 and 19 positions per side in blocks of 10.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import load_strictly
from regard.layers.channel_gate import ChannelGate, taps_of_conv
from regard.layers.conv_norm import ConvNorm
from regard.layers.drop_path import linear_rates
from regard.layers.halo_attention import HALO_NAMES, HaloAttention, as_matrices
from regard.layers.reference_names import rename_all
from regard.layers.residual_blocks import initialise_convolutions
from regard.layers.spatial_bottleneck import ACTIVATIONS, SpatialBottleneck
from regard.metadata import Variant
from regard.mixers.channel.eca import ECA
from regard.mixers.channel.squeeze_excitation import SqueezeExcitation
from regard.mixers.spatial.halo import HALONET_PAPER
from regard.models.vision.backbone import Backbone, Images, Maps
from regard.models.vision.halonet_config import HALO, STEMS, VARIANTS, HaloNetConfig
from regard.registry import register


@register(
    name="halonet",
    system="halonet",
    paper=replace(HALONET_PAPER, where="attention downsampling and the table of configurations"),
)
class HaloNet(Backbone):
    """Stages of residual bottlenecks around halo attention, around 3x3 convolutions, or around both in some order.

    Args:
        config: its sizes.

    Raises:
        ValueError: sizes that do not fit one another.
    """

    SMALL: ClassVar[HaloNetConfig] = HaloNetConfig(
        in_channels=1,
        num_classes=10,
        stem="small",
        stem_channels=32,
        blocks=("hh", "hh"),
        widths=(32, 64),
        out_channels=(32, 64),
        num_heads=(2, 4),
        block_size=4,
        halo_size=1,
    )
    VARIANTS: ClassVar[dict[str, Variant]] = VARIANTS

    def __init__(self, config: HaloNetConfig) -> None:
        super().__init__(config)
        self.activation = ACTIVATIONS[config.activation]
        self.stem, self.stem_pool = _make_stem(config)
        stages = range(len(config.blocks))
        rates = iter(linear_rates(config.drop_path, sum(len(kinds) for kinds in config.blocks)))
        channels = (config.stem_channels, *config.out_channels)
        self.stages = nn.ModuleList(_make_stage(config, stage, channels[stage], rates) for stage in stages)
        self.stage_channels = config.out_channels
        self.stage_strides = tuple((1 if config.stem == "small" else 4) << stage for stage in stages)
        final = config.final_channels
        self.final_conv = None if final is None else ConvNorm(channels[-1], final)
        self.head = nn.Linear(channels[-1] if final is None else final, config.num_classes)
        initialise_convolutions(self)

    def features(self, images: Images) -> tuple[Maps, ...]:
        """The output of every stage, finest first."""
        self.check_images(images)
        x = images
        for layer in self.stem:
            x = self.activation(layer(x))
        x = self.stem_pool(x)
        outputs = []
        for stage in self.stages:
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                x = self.run(block, x)
            outputs.append(x)
        return tuple(outputs)

    def pool(self, last: Maps) -> Float[Tensor, "batch channels"]:
        """The mean over positions, after the final convolution where there is one."""
        if self.final_conv is not None:
            last = self.activation(self.final_conv(last))
        return last.mean(dim=(2, 3))

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load timm's layout: `stem`, `stages` with `self_attn`, `final_conv`, `head.fc`.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        renamed = as_matrices(self, rename_all(state_dict, HALONET_NAMES))
        own = dict(self.named_parameters())
        for name in renamed:
            if name.endswith(".gate.taps") and name in own:
                renamed[name] = taps_of_conv(renamed[name], like=own[name])
        load_strictly(self, renamed)


def _make_stem(config: HaloNetConfig) -> tuple[nn.ModuleList, nn.Module]:
    kind = STEMS[config.stem]
    layers, channels = nn.ModuleList(), config.in_channels
    for stride, eighths in zip(kind.strides, kind.eighths, strict=True):
        wider = config.stem_channels * eighths // 8
        layers.append(ConvNorm(channels, wider, kernel_size=kind.kernel_size, stride=stride))
        channels = wider
    return layers, nn.MaxPool2d(3, stride=2, padding=1) if kind.pools else nn.Identity()


def _make_stage(config: HaloNetConfig, stage: int, channels: int, rates: Iterator[float]) -> nn.ModuleList:
    width, blocks = config.widths[stage], nn.ModuleList()
    for number, kind in enumerate(config.blocks[stage]):
        stride = 2 if stage and number == 0 else 1
        spatial = _halo(config, stage, stride) if kind == HALO else _convolution(config, width, stride)
        block = SpatialBottleneck(
            channels,
            width=width,
            spatial=spatial,
            spatial_channels=_value_channels(config, stage) if kind == HALO else width,
            out_channels=config.out_channels[stage],
            stride=stride,
            gate=None if kind == HALO else _gate(config, width),
            activation=config.activation,
            drop_path=next(rates),
        )
        blocks.append(block)
        channels = config.out_channels[stage]
    return blocks


def _value_channels(config: HaloNetConfig, stage: int) -> int:
    return round(config.widths[stage] * config.value_ratio)


def _halo(config: HaloNetConfig, stage: int, stride: int) -> HaloAttention:
    width, heads = config.widths[stage], config.num_heads[stage]
    return HaloAttention(
        width,
        out_channels=_value_channels(config, stage),
        num_heads=heads,
        head_dim=width // heads if config.head_dim is None else config.head_dim,
        block_size=config.block_size,
        halo_size=config.halo_size,
        stride=stride,
        scale_pos_embed=config.scale_pos_embed,
    )


def _convolution(config: HaloNetConfig, width: int, stride: int) -> nn.Conv2d:
    groups = 1 if config.group_width is None else width // config.group_width
    return nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=groups, bias=False)


def _gate(config: HaloNetConfig, width: int) -> ChannelGate | None:
    if config.gate == "se":
        # a sixteenth, rounded to a multiple of 8, as timm's weights have it
        return SqueezeExcitation(width, hidden=max(8, (width + 64) // 128 * 8), bias=True)
    return ECA(width) if config.gate == "eca" else None


HALONET_NAMES = (
    (r"^stem\.conv1\.", "stem.0."),
    (r"^stem\.conv2\.", "stem.1."),
    (r"^stem\.conv3\.", "stem.2."),
    (r"\.conv1_1x1\.", ".reduce."),
    (r"\.conv2_kxk\.conv\.", ".spatial."),
    (r"\.conv2_kxk\.bn\.", ".spatial_norm."),
    (r"\.self_attn\.", ".spatial."),
    (r"\.post_attn\.", ".spatial_norm."),
    (r"\.attn\.fc1\.", ".gate.down_proj."),
    (r"\.attn\.fc2\.", ".gate.up_proj."),
    (r"\.attn\.conv\.weight$", ".gate.taps"),
    (r"\.conv3_1x1\.", ".expand."),
    (r"\.bn\.", ".norm."),
    (r"^head\.fc\.", "head."),
    *HALO_NAMES,
)
"""timm's names as ours."""
