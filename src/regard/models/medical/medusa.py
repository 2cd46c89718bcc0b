"""MEDUSA: a residual network whose stages are all modulated by heads on one shared attention body.

Paper: "MEDUSA: Multi-scale Encoder-Decoder Self-Attention Deep Neural Network Architecture for Medical Image Analysis",
Aboutalebi et al., Frontiers in Medicine 2022, https://arxiv.org/abs/2110.06063.
There is no public code of the architecture. The released model, COVIDNet-CXR-3 (lindawangg/COVID-Net@e4e1ab46,
`docs/models.md`), is a TensorFlow graph of which size and cost are listed; the body's width is chosen to meet them.
Where the paper is silent, the choices are options of the config: the body's sizes, whether it is shared, what a head
is, and which stages have one.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from regard.contract import Model, load_strictly
from regard.layers.attention_body import BODY_NAMES, AttentionBody, plainly
from regard.layers.conv_norm import fold_norms
from regard.layers.reference_names import rename_all
from regard.layers.residual_blocks import BasicBlock, Bottleneck, recomputed
from regard.layers.scale_heads import HEAD_NAMES, ScaleHead, ScaleHeads, Scaling
from regard.metadata import Paper, Reported, Variant
from regard.mixers.channel.cbam_channel import CBAMChannel
from regard.mixers.channel.squeeze_excitation import SqueezeExcitation
from regard.mixers.spatial.cbam_spatial import CBAMSpatial
from regard.models.vision.eca_resnet import BLOCKS, ECAResNet, ECAResNetConfig
from regard.registry import register

Attention = Literal["none", "se", "cbam", "medusa", "medusa_local"]
ATTENTIONS = ("none", "se", "cbam", "medusa", "medusa_local")
Images = Float[Tensor, "batch in_channels y x"]
Maps = Float[Tensor, "batch channels y x"]

MEDUSA_PAPER = Paper(
    title="MEDUSA: Multi-scale Encoder-Decoder Self-Attention Deep Neural Network Architecture for Medical Image "
    "Analysis",
    authors="Aboutalebi et al.",
    venue="Frontiers in Medicine",
    year=2022,
    url="https://arxiv.org/abs/2110.06063",
    where="single body, multi-scale heads",
)
PAPER_SIZE = 480
"""Pixels per side of the released model's images."""
CHANNELS_LAST_FROM = 16
"""Channels from which a trunk is laid out with channels last, which is faster. On narrower maps oneDNN's gradient of a
strided 1x1 convolution in this layout was seen to write beyond its memory: the process ends (PyTorch 2.14, AVX2)."""


@dataclass(frozen=True, kw_only=True)
class MedusaConfig:
    """A residual network and its attention.

    Args:
        block: "basic" (two 3x3 convolutions) or "bottleneck".
        depths: blocks in each stage.
        widths: inner width of the blocks of each stage; a bottleneck's output is four times as wide.
        stem: "imagenet" (7x7 with stride 2, then a maximum over 3x3 with stride 2) or "small" (3x3, no stride).
        attention: "medusa" (a body and heads), "medusa_local" (heads that see their own features alone), "cbam" or
            "se" (in every block), or "none".
        heads_at: the stages behind which a head stands, counted from 0; unused without heads.
        shared_body: one body for all heads; False = each head has a body of its own.
        body_width: channels of the body's finest level.
        body_levels: how often the body halves its map.
        body_channels: channels of the global map.
        body_downscale: the image's side over the global map's.
        head_width: channels inside a head.
        per_channel: an attention map for every channel instead of one for all.
        residual: heads scale by 1 + M instead of M.
        scaling: how heads resize the global map, "bilinear" or "means".
        in_channels: channels of the images.
        num_classes: number of classes.
        checkpointing: in training, compute the activations inside blocks again instead of keeping them.
    """

    block: Literal["basic", "bottleneck"] = "bottleneck"
    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem: Literal["imagenet", "small"] = "imagenet"
    attention: Attention = "medusa"
    heads_at: tuple[int, ...] = (0, 1, 2, 3)
    shared_body: bool = True
    body_width: int = 28
    body_levels: int = 4
    body_channels: int = 1
    body_downscale: int = 2
    head_width: int = 8
    per_channel: bool = False
    residual: bool = False
    scaling: Scaling = "bilinear"
    in_channels: int = 3
    num_classes: int = 2
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention must be one of {', '.join(ATTENTIONS)}, got {self.attention!r}")
        stages = len(self.depths)
        in_order = list(self.heads_at) == sorted(set(self.heads_at))
        if self.has_heads and not (in_order and self.heads_at and 0 <= self.heads_at[0] <= self.heads_at[-1] < stages):
            raise ValueError(
                f"heads_at must name some of the {stages} stages 0 to {stages - 1} in order, got {self.heads_at}"
            )

    @property
    def has_heads(self) -> bool:
        """Whether there are heads at all."""
        return self.attention in ("medusa", "medusa_local")

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels behind every stage."""
        return tuple(width * BLOCKS[self.block].expansion for width in self.widths)

    @property
    def trunk(self) -> ECAResNetConfig:
        """The residual network without attention."""
        return ECAResNetConfig(
            block=self.block,
            depths=self.depths,
            widths=self.widths,
            channel_mixer=None,
            stem=self.stem,
            in_channels=self.in_channels,
            num_classes=self.num_classes,
        )


class AttentionMaps(NamedTuple):
    """What the network attends to.

    Args:
        global_maps: of the shared body, or of each head's own; none for local heads.
        scales: of every head, finest first, from 0 to 1.
    """

    global_maps: tuple[Maps, ...]
    scales: tuple[Maps, ...]


_COMPARED = Reported(where="comparison, without figures of the released model")
_RESNET50 = MedusaConfig()
_VARIANTS = {
    "medusa_resnet50_separate": replace(_RESNET50, shared_body=False, body_width=14),
    "medusa_resnet50_one_scale": replace(_RESNET50, heads_at=(3,)),
    "medusa_resnet50_local": replace(_RESNET50, attention="medusa_local"),
    "medusa_resnet50_cbam": replace(_RESNET50, attention="cbam"),
    "medusa_resnet50_se": replace(_RESNET50, attention="se"),
    "medusa_resnet50_plain": replace(_RESNET50, attention="none"),
}


@register(name="medusa", system="medusa", paper=MEDUSA_PAPER)
class Medusa(Model):
    """F'_j = F_j M_j for the features F_j of every stage j with a head, M_j = sigmoid(h_j([resized(A^G), F_j])).

    The body runs once for all heads, A^G = G(image), and what a head modulates is what the next stage sees.

    Args:
        config: sizes, and which attention.

    Raises:
        ValueError: a size that is not positive.
    """

    task: ClassVar[str] = "medical_classification"
    task_settings: ClassVar[Mapping[str, str]] = {}
    """Settings of the task that suit the network, as texts; the user's own come before them."""
    recipe: ClassVar[Mapping[str, Any]] = {"steps": 600}
    """Fields of the recipe that suit the network; the user's own come before them."""
    SMALL: ClassVar[MedusaConfig] = MedusaConfig(
        block="basic",
        depths=(1, 1, 1, 1),
        widths=(16, 24, 32, 64),
        body_width=6,
        body_levels=3,
        in_channels=1,
    )
    VARIANTS: ClassVar[dict[str, Variant]] = {
        "medusa_resnet50": Variant(
            config=_RESNET50,
            reported=Reported(
                params=29.2e6,
                macs=29.1e9,
                where="the list of released models, COVIDNet-CXR-3: 29.2 M parameters and 29.1 G MACs",
                image_size=PAPER_SIZE,
                params_tolerance=0.03,
                macs_tolerance=0.10,
            ),
        ),
        **{
            name: Variant(config=config, reported=replace(_COMPARED, image_size=PAPER_SIZE))
            for name, config in _VARIANTS.items()
        },
    }

    def __init__(self, config: MedusaConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = ECAResNet(config.trunk)
        for stage, channels in zip(self.trunk.stages, config.stage_channels, strict=True):
            for block in stage.children():
                assert isinstance(block, BasicBlock | Bottleneck)
                block.mixer = comparator(config.attention, channels)
        heads_at = config.heads_at if config.has_heads else ()
        has_body = config.attention == "medusa"
        self.heads = ScaleHeads(
            [config.stage_channels[stage] for stage in heads_at],
            global_channels=config.body_channels if has_body else 0,
            head_width=config.head_width,
            per_channel=config.per_channel,
            residual=config.residual,
            scaling=config.scaling,
        )
        count = 0 if not has_body else 1 if config.shared_body else len(heads_at)
        self.bodies = nn.ModuleList(
            AttentionBody(
                config.in_channels,
                width=config.body_width,
                levels=config.body_levels,
                out_channels=config.body_channels,
                downscale=config.body_downscale,
            )
            for _ in range(count)
        )
        if min(config.stage_channels) >= CHANNELS_LAST_FROM:
            self.trunk.to(memory_format=torch.channels_last)

    @property
    def body(self) -> AttentionBody:
        """The shared body, which can be trained on masks alone before the whole network is trained.

        Raises:
            ValueError: there is none, or each head has its own.
        """
        if len(self.bodies) != 1:
            raise ValueError(f"there are {len(self.bodies)} bodies, not one that is shared: see `bodies`")
        body = self.bodies[0]
        assert isinstance(body, AttentionBody)
        return body

    @property
    def stride(self) -> int:
        """Pixels per position of the last stage, and the shortest side of an image."""
        return (4 if self.config.stem == "imagenet" else 1) * 2 ** (len(self.config.depths) - 1)

    def global_maps(self, images: Images) -> tuple[Maps, ...]:
        """The global map of each body."""
        apply = recomputed if self._recomputes else plainly
        return tuple(body(images, apply=apply) for body in self.bodies)

    def features(self, images: Images) -> tuple[Maps, ...]:
        """The modulated output of every stage, finest first.

        Raises:
            ValueError: images that are not `(batch, in_channels, y, x)`, or too small.
        """
        return tuple(modulated for modulated, _ in self._stages(images, keep=False))

    def attention_maps(self, images: Images) -> AttentionMaps:
        """The global map and the map of every scale.

        Raises:
            ValueError: as `features`.
        """
        found = self._stages(images, keep=True)
        return AttentionMaps(
            self.global_maps(images), tuple(attention for _, attention in found if attention is not None)
        )

    def forward(self, images: Images) -> Float[Tensor, "batch num_classes"]:
        """Scores of the classes.

        Raises:
            ValueError: as `features`.
        """
        return self.trunk.fc(self.features(images)[-1].mean(dim=(2, 3)))

    def _stages(self, images: Images, *, keep: bool) -> list[tuple[Maps, Maps | None]]:
        """Behind every stage the modulated features, and, where they are kept, the attention."""
        self._check(images)
        maps = self.global_maps(images)
        places = {stage: number for number, stage in enumerate(self.config.heads_at)} if len(self.heads) else {}
        trunk, found = self.trunk, []
        x = trunk.maxpool(trunk.bn1(trunk.conv1(images)).relu_())
        for stage, blocks in enumerate(trunk.stages):
            for block in blocks.children():
                x = recomputed(block, x) if self._recomputes else block(x)
            attention = None
            if stage in places:
                head = self.heads[places[stage]]
                assert isinstance(head, ScaleHead)
                global_map = maps[places[stage] if len(maps) > 1 else 0] if maps else None
                if keep:
                    attention, x = head(global_map, x)
                else:
                    x = head.modulate(global_map, x)
            found.append((x, attention))
        return found

    @property
    def _recomputes(self) -> bool:
        return self.config.checkpointing and self.training and torch.is_grad_enabled()

    def _check(self, images: Tensor) -> None:
        channels = self.config.in_channels
        if images.ndim != 4 or images.shape[1] != channels or min(images.shape[2:]) < 1:
            raise ValueError(f"images must have shape (batch, {channels}, y, x), got {tuple(images.shape)}")
        if min(images.shape[2:]) < self.stride:
            raise ValueError(
                f"images must have at least as many pixels per side as the total stride {self.stride}, got "
                f"{tuple(images.shape[2:])}"
            )

    def fused(self) -> Medusa:
        """A copy for inference whose batch norms are folded into the convolutions before them."""
        folded = copy.deepcopy(self).eval().requires_grad_(False)
        fold_norms(folded)
        _fold_pairs(folded.trunk)
        return folded

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the whole network: torchvision's names for the trunk, and `body.` and `heads.` with numbered layers.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, rename_all(state_dict, _NAMES))

    def load_trunk(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load torchvision's or timm's ResNet into the trunk, all but its classifier; the rest stays as it is.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape, or blocks with attention, which such a ResNet lacks.
        """
        if self.config.attention in ("se", "cbam"):
            raise ValueError(f"a plain ResNet has no attention in its blocks, and this one has {self.config.attention}")
        own = {f"fc.{name}": tensor for name, tensor in self.trunk.fc.state_dict().items()}
        theirs = {name: tensor for name, tensor in state_dict.items() if not re.match(r"(module\.)?fc\.", name)}
        self.trunk.load_reference({**theirs, **own})


_NAMES = (
    (r"^module\.", ""),
    (r"^(conv1|bn1|fc)\.", r"trunk.\1."),
    (r"^layer1\.", "trunk.stages.0."),
    (r"^layer2\.", "trunk.stages.1."),
    (r"^layer3\.", "trunk.stages.2."),
    (r"^layer4\.", "trunk.stages.3."),
    (r"^body\.", "bodies.0."),
    *BODY_NAMES,
    *HEAD_NAMES,
)


def comparator(attention: Attention, channels: int) -> nn.Module | None:
    """What stands at the end of every block of the networks that are compared with; None in the others.

    Args:
        attention: as in the config.
        channels: behind the block.
    """
    if attention == "se":
        return SqueezeExcitation(channels)
    if attention == "cbam":
        return nn.Sequential(CBAMChannel(channels), CBAMSpatial(channels))
    return None


def _fold_pairs(module: nn.Module) -> None:
    """Fold every batch norm that follows a convolution as a neighbour, such as `bn1` after `conv1`."""
    before: tuple[str, nn.Module] | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and before is not None and isinstance(before[1], nn.Conv2d):
            setattr(module, before[0], fuse_conv_bn_eval(before[1], child))
            setattr(module, name, nn.Identity())
        else:
            _fold_pairs(child)
        before = name, child
