"""Agent-DeiT: the plain Vision Transformer of DeiT, all or the first of its blocks with agent attention.

Papers: "Agent Attention: On the Integration of Softmax and Linear Attention", Han et al., ECCV 2024,
https://arxiv.org/abs/2312.08874, ImageNet classification; "Training data-efficient image transformers", Touvron et al.,
ICML 2021, https://arxiv.org/abs/2012.12877.
Compared with LeapLabTHU/Agent-Attention@207ce3eb, `agent_transformer/models/agent_deit.py:VisionTransformer`; without
agent blocks it is timm's `deit_*`. Different: images of any size and aspect ratio are taken, padded at the bottom and
at the right to whole patches, with positions (bicubically) and biases (bilinearly) interpolated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regard.contract import Model, load_strictly
from regard.layers.agent_bias import without_first_axis
from regard.layers.agent_class_attention import AGENT_CLASS_NAMES, AgentClassAttention
from regard.layers.drop_path import linear_rates
from regard.layers.pre_norm_block import PRE_NORM_NAMES, PreNormBlock, initialise_linear
from regard.layers.reference_names import rename_all
from regard.metadata import Reported, Variant
from regard.mixers.sequence.agent import AGENT_PAPER
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.models.vision.agent_stages import MACS_TOLERANCE, attention_names
from regard.ops.resized_positions import Size, resized_positions
from regard.ops.windows import pad_to_multiple
from regard.registry import register

NORM_EPS = 1e-6

Images = Float[Tensor, "batch in_channels y x"]


@dataclass(frozen=True, kw_only=True)
class AgentDeiTConfig:
    """The network's sizes.

    Args:
        image_size: pixels per side of the images that positions and biases are made for; others interpolate them.
        in_channels: channels of the images.
        num_classes: number of classes.
        patch_size: pixels per side of a patch.
        dim: width.
        num_layers: number of blocks.
        num_heads: heads of every attention; must divide `dim`.
        agent_layers: number of first blocks that have agent attention.
        num_agents: number of agents; a square.
        mlp_ratio: width inside the perceptrons over `dim`.
        qkv_bias: biases in the projections of queries, keys and values.
        drop_path: rate of stochastic depth at the last block; it rises linearly from 0.
        checkpointing: in training, compute the activations inside blocks again instead of keeping them.
    """

    image_size: int = 224
    in_channels: int = 3
    num_classes: int = 1000
    patch_size: int = 16
    dim: int = 192
    num_layers: int = 12
    num_heads: int = 3
    agent_layers: int = 12
    num_agents: int = 49
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    drop_path: float = 0.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("image_size", "in_channels", "num_classes", "patch_size", "dim", "num_layers", "mlp_ratio"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.agent_layers <= self.num_layers:
            raise ValueError(f"agent_layers must be from 0 to num_layers={self.num_layers}, got {self.agent_layers}")


def _variant(
    dim: int,
    *,
    params: int,
    macs: float,
    drop_path: float = 0.0,
    agent_layers: int = 12,
    num_agents: int = 49,
    image_size: int = 224,
) -> Variant:
    config = AgentDeiTConfig(
        image_size=image_size,
        dim=dim,
        num_heads=dim // 64,
        agent_layers=agent_layers,
        num_agents=num_agents,
        drop_path=drop_path,
    )
    reported = Reported(
        params=params,
        macs=macs,
        where="table of Agent-DeiT; the exact number of parameters is that of the authors' code",
        params_tolerance=0.0,
        # the table has one digit after the point
        macs_tolerance=max(MACS_TOLERANCE, 0.05e9 / macs),
    )
    return Variant(config=config, reported=reported)


@register(name="agent_deit", system="agent", paper=replace(AGENT_PAPER, where="ImageNet classification"))
class AgentDeiT(Model):
    """A Transformer on image patches after a class token, which is classified.

    Args:
        config: its sizes.

    Raises:
        ValueError: heads that do not divide the width, or agents that form no grid.
    """

    task: ClassVar[str] = "classification"
    SMALL: ClassVar[AgentDeiTConfig] = AgentDeiTConfig(
        image_size=8,
        in_channels=1,
        num_classes=10,
        patch_size=2,
        dim=64,
        num_layers=3,
        num_heads=4,
        agent_layers=2,
        num_agents=4,
        mlp_ratio=2.0,
    )
    VARIANTS: ClassVar[dict[str, Variant]] = {
        "agent_deit_tiny": _variant(192, params=6_015_640, macs=1.2e9),
        "agent_deit_small": _variant(384, params=22_647_112, macs=4.4e9, drop_path=0.1),
        "agent_deit_base": _variant(768, params=87_204_904, macs=17.6e9, drop_path=0.3, agent_layers=4, num_agents=81),
        "agent_deit_small_448": _variant(384, params=23_070_472, macs=17.7e9, image_size=448),
    }

    def __init__(self, config: AgentDeiTConfig) -> None:
        super().__init__()
        self.config = config
        self.side = -(-config.image_size // config.patch_size)
        dim = config.dim
        self.patches = nn.Conv2d(config.in_channels, dim, config.patch_size, stride=config.patch_size)
        self.class_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02))
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1 + self.side**2, dim), std=0.02))
        self.blocks = nn.ModuleList(
            PreNormBlock(
                self._attention(has_agents=number < config.agent_layers),
                channels=dim,
                hidden=round(dim * config.mlp_ratio),
                drop_path=rate,
                norm_eps=NORM_EPS,
            )
            for number, rate in enumerate(linear_rates(config.drop_path, config.num_layers))
        )
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.head = nn.Linear(dim, config.num_classes)
        self.apply(initialise_linear)

    def forward(self, images: Images) -> Float[Tensor, "batch num_classes"]:
        """Scores of the classes.

        Raises:
            ValueError: images that are not `(batch, in_channels, y, x)`.
        """
        return self.head(self.norm(self.tokens(images)[0][:, 0]))

    def tokens(self, images: Images) -> tuple[Float[Tensor, "batch tokens dim"], Size]:
        """The output of the last block, class token first, and rows and columns of the patches.

        Raises:
            ValueError: images that are not `(batch, in_channels, y, x)`.
        """
        channels, patch = self.config.in_channels, self.config.patch_size
        if images.ndim != 4 or images.shape[1] != channels or min(images.shape[2:]) < 1:
            raise ValueError(f"images must have shape (batch, {channels}, y, x), got {tuple(images.shape)}")
        padded = pad_to_multiple(images.permute(0, 2, 3, 1), (patch, patch)).permute(0, 3, 1, 2)
        maps = self.patches(padded)
        space = (maps.shape[2], maps.shape[3])
        grid = resized_positions(self.positions[:, 1:], (self.side, self.side), space, mode="bicubic")
        x = maps.flatten(2).transpose(1, 2) + grid.flatten(1, 2)
        first = (self.class_token + self.positions[:, :1]).expand(x.shape[0], -1, -1)
        x = torch.cat((first.to(x.dtype), x), dim=1)
        recompute = self.config.checkpointing and self.training and torch.is_grad_enabled()
        for number, block in enumerate(self.blocks):
            inputs = (x, space) if number < self.config.agent_layers else (x,)
            x = checkpoint(block, *inputs, use_reentrant=False) if recompute else block(*inputs)
        return x, space

    def _attention(self, *, has_agents: bool) -> nn.Module:
        config = self.config
        if not has_agents:
            return SoftmaxAttention(config.dim, num_heads=config.num_heads, qkv_bias=config.qkv_bias)
        return AgentClassAttention(
            config.dim,
            num_heads=config.num_heads,
            num_agents=config.num_agents,
            size=(self.side, self.side),
            qkv_bias=config.qkv_bias,
        )

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout: `cls_token`, `pos_embed`, `patch_embed.proj`, `blocks.0.attn.qkv`, ..., `head`.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, self._apart(without_first_axis(rename_all(state_dict, AGENT_DEIT_NAMES))))

    def _apart(self, renamed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ordinary attention has a projection each for queries, keys and values."""
        made: dict[str, Tensor] = {}
        for name, tensor in renamed.items():
            packed = re.fullmatch(r"(blocks\.(\d+)\.mixer)\.qkv\.(weight|bias)", name)
            if packed is None or int(packed[2]) < self.config.agent_layers:
                made[name] = tensor
            else:
                parts: Any = zip("qkv", tensor.chunk(3), strict=False)
                made |= {f"{packed[1]}.{kind}_proj.{packed[3]}": part for kind, part in parts}
        return made


AGENT_DEIT_NAMES = (
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "positions"),
    (r"^patch_embed\.proj\.", "patches."),
    *PRE_NORM_NAMES,
    *attention_names(AGENT_CLASS_NAMES),
)
"""Parts of the network in the authors' layout as ours, but for packed projections of ordinary attention."""
