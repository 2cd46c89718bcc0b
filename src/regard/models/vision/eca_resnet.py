"""ResNet with a gate on channels in every block: ECA-Net, and, to compare, plain ResNet and any other feature mixer.

Paper: "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks", Wang et al., CVPR 2020,
https://arxiv.org/abs/1910.03151, section 4.1 and table 3.
Compared with BangguWu/ECANet@b332f6b3, `models/eca_resnet.py`: parameters are counted on that code.
The paper's M and G are 2^20 and 2^30, since its counter divides by powers of 1024; its operations are contractions and
about five for every value that a batch norm and an activation see, which is 0.5 to 1.4 % above contractions alone.
Different from the code: the last pooling takes any image size (it equals the code's at 224 x 224). The released
networks set the number of taps by hand for each stage (3, 5, 5, 7 in ECA-ResNet50), which is not what the paper's
formula gives (5 for the 256 channels of that network's first stage).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import Model, load_strictly
from regard.layers.residual_blocks import (
    BasicBlock,
    Bottleneck,
    initialise_convolutions,
    name_mixers,
    recomputed,
)
from regard.metadata import Reported, Variant
from regard.mixers.channel.eca import ECA_PAPER
from regard.registry import create, get_class, register

BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}
MEGA, GIGA = 2**20, 2**30


@dataclass(frozen=True, kw_only=True)
class ECAResNetConfig:
    """A residual network.

    Args:
        block: "basic" (two 3x3 convolutions) or "bottleneck".
        depths: blocks in each stage.
        widths: inner width of the blocks of each stage; a bottleneck's output is four times as wide.
        channel_mixer: public name of the feature mixer at the end of each block; None = none, a plain ResNet.
        kernel_sizes: taps in each stage; None = adaptive. Without effect on mixers that have no `kernel_size`.
        stem: "imagenet" (7x7 with stride 2, then a maximum over 3x3 with stride 2) or "small" (3x3, no stride).
        in_channels: channels of the images.
        num_classes: number of classes.
        gradient_checkpointing: in training, compute the activations inside blocks again instead of keeping them.
    """

    block: Literal["basic", "bottleneck"] = "bottleneck"
    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    channel_mixer: str | None = "eca"
    kernel_sizes: tuple[int | None, ...] | None = None
    stem: Literal["imagenet", "small"] = "imagenet"
    in_channels: int = 3
    num_classes: int = 1000
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.block not in BLOCKS:
            raise ValueError(f"block must be one of {', '.join(BLOCKS)}, got {self.block!r}")
        if self.stem not in ("imagenet", "small"):
            raise ValueError(f"stem must be imagenet or small, got {self.stem!r}")
        if not self.depths or min(*self.depths, *self.widths, self.in_channels, self.num_classes) < 1:
            raise ValueError("depths, widths, in_channels and num_classes must be positive, and there must be a stage")
        if len(self.depths) != len(self.widths):
            raise ValueError(
                f"there are {len(self.depths)} depths and {len(self.widths)} widths: one of each per stage is needed"
            )
        if self.kernel_sizes is not None and len(self.kernel_sizes) != len(self.depths):
            raise ValueError(
                f"there are {len(self.kernel_sizes)} kernel_sizes and {len(self.depths)} stages: they must be equal"
            )


def make_channel_mixer(name: str | None, *, channels: int, kernel_size: int | None) -> nn.Module | None:
    """A registered feature mixer; the kernel size goes to those that have one.

    Args:
        name: its public name; None = none.
        channels: number of channels.
        kernel_size: number of taps; None = the mixer's own choice.

    Raises:
        UnknownSystemError: no such name.
        ValueError: not a feature mixer, or a size that it refuses.
    """
    if name is None:
        return None
    cls = get_class(name)
    if getattr(cls, "kind", "") != "feature":
        raise ValueError(f"channel_mixer must name a feature mixer, got {name!r}, which is a {cls.__name__}")
    has_kernel = kernel_size is not None and "kernel_size" in inspect.signature(cls).parameters
    return create(name, channels=channels, **({"kernel_size": kernel_size} if has_kernel else {}))


def _variant(
    block: Literal["basic", "bottleneck"],
    depths: tuple[int, ...],
    kernel_sizes: tuple[int, ...],
    *,
    params: int,
    paper_params_m: float,
    paper_macs_g: float,
) -> Variant:
    return Variant(
        config=ECAResNetConfig(block=block, depths=depths, kernel_sizes=kernel_sizes),
        reported=Reported(
            params=params,
            macs=paper_macs_g * GIGA,
            where=f"tables 2 and 3: {paper_params_m} M of 2^20 parameters and {paper_macs_g} G of 2^30 MACs; "
            "the exact number of parameters is that of the authors' code",
            params_tolerance=0.0,
            macs_tolerance=0.05,
        ),
    )


@register(name="eca_resnet", system="eca", paper=replace(ECA_PAPER, where="section 4.1 and tables 2 and 3"))
class ECAResNet(Model):
    """ResNet with efficient channel attention at the end of every residual branch.

    Args:
        config: sizes, and which mixer.
    """

    VARIANTS: ClassVar[dict[str, Variant]] = {
        "eca_resnet18": _variant(
            "basic", (2, 2, 2, 2), (3, 5, 7, 7), params=11_689_556, paper_params_m=11.15, paper_macs_g=1.70
        ),
        "eca_resnet34": _variant(
            "basic", (3, 4, 6, 3), (3, 3, 5, 7), params=21_797_744, paper_params_m=20.79, paper_macs_g=3.43
        ),
        "eca_resnet50": _variant(
            "bottleneck", (3, 4, 6, 3), (3, 5, 5, 7), params=25_557_112, paper_params_m=24.37, paper_macs_g=3.86
        ),
        "eca_resnet101": _variant(
            "bottleneck", (3, 4, 23, 3), (3, 3, 5, 7), params=44_549_317, paper_params_m=42.49, paper_macs_g=7.35
        ),
        "eca_resnet152": _variant(
            "bottleneck", (3, 8, 36, 3), (3, 3, 5, 7), params=60_193_042, paper_params_m=57.41, paper_macs_g=10.83
        ),
    }

    def __init__(self, config: ECAResNetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.widths[0]
        small = config.stem == "small"
        kernel, stride = (3, 1) if small else (7, 2)
        self.conv1 = nn.Conv2d(config.in_channels, width, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.ModuleList()
        for stage in range(len(config.depths)):
            blocks = self._make_stage(stage, width)
            self.stages.append(blocks)
            width = config.widths[stage] * BLOCKS[config.block].expansion
        self.fc = nn.Linear(width, config.num_classes)
        initialise_convolutions(self)

    def _make_stage(self, stage: int, in_channels: int) -> nn.Sequential:
        config = self.config
        block = BLOCKS[config.block]
        width = config.widths[stage]
        kernel_size = None if config.kernel_sizes is None else config.kernel_sizes[stage]
        blocks = []
        for number in range(config.depths[stage]):
            mixer = make_channel_mixer(config.channel_mixer, channels=width * block.expansion, kernel_size=kernel_size)
            stride = 2 if stage and number == 0 else 1
            blocks.append(block(in_channels, width, stride=stride, mixer=mixer))
            in_channels = width * block.expansion
        return nn.Sequential(*blocks)

    def features(self, images: Float[Tensor, "batch in_channels y x"]) -> tuple[Tensor, ...]:
        """The output of every stage, finest first: what a detector builds upon.

        Raises:
            ValueError: images that are not `(batch, in_channels, y, x)`.
        """
        if images.ndim != 4 or images.shape[1] != self.config.in_channels:
            raise ValueError(
                f"images must have shape (batch, {self.config.in_channels}, y, x), got {tuple(images.shape)}"
            )
        x = self.maxpool(self.bn1(self.conv1(images)).relu_())
        outputs = []
        recompute = self.config.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for stage in self.stages:
            assert isinstance(stage, nn.Sequential)
            for block in stage:
                x = recomputed(block, x) if recompute else block(x)
            outputs.append(x)
        return tuple(outputs)

    def forward(self, images: Float[Tensor, "batch in_channels y x"]) -> Float[Tensor, "batch num_classes"]:
        """Scores of the classes.

        Raises:
            ValueError: images that are not `(batch, in_channels, y, x)`.
        """
        return self.fc(self.features(images)[-1].mean(dim=(2, 3)))

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load ECANet's layout, with or without the prefix of `DataParallel`; for a plain ResNet, torchvision's.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, name_mixers(self, {name: (_own_name(name), state_dict[name]) for name in state_dict}))


def without_parallel_prefix(name: str) -> str:
    """`module.conv1.weight`, as `DataParallel` stores it, as `conv1.weight`."""
    return name.removeprefix("module.")


def _own_name(name: str) -> str:
    """`layer1.0.conv1.weight` as `stages.0.0.conv1.weight`."""
    return re.sub(r"^layer([1-9]\d*)\.", lambda found: f"stages.{int(found[1]) - 1}.", without_parallel_prefix(name))
