"""Agent-CSwin: the CSWin Transformer whose first stages attend globally, through agents, instead of in stripes.

Papers: "Agent Attention: On the Integration of Softmax and Linear Attention", Han et al., ECCV 2024,
https://arxiv.org/abs/2312.08874, ImageNet classification; "CSWin Transformer", Dong et al., CVPR 2022,
https://arxiv.org/abs/2107.00652.
Compared with LeapLabTHU/Agent-Attention@207ce3eb, `agent_transformer/models/agent_cswin.py:CSWinTransformer`. As there,
a stripe as wide as the map, and every block of the last stage, is the whole map with all heads at once.
Different: images of any size and aspect ratio are taken, padded at the bottom and at the right where needed. Blocks
that are global at `image_size` are so at every size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from regard.contract import load_strictly
from regard.layers.agent_bias import without_first_axis
from regard.layers.agent_stripes import AGENT_STRIPE_NAMES, AgentStripeAttention
from regard.layers.cswin_stripes import CrossShapedAttention, Stripe, StripeAttention
from regard.layers.normed_patches import NormedPatches
from regard.layers.pre_norm_block import PRE_NORM_NAMES, PreNormBlock
from regard.layers.reference_names import Rules, rename_all
from regard.metadata import Variant
from regard.mixers.sequence.agent import AGENT_PAPER
from regard.models.vision.agent_stages import AgentBackbone, Stage, check_agents, reported_sizes
from regard.models.vision.backbone import check_stages
from regard.registry import register


@dataclass(frozen=True, kw_only=True)
class AgentCSwinConfig:
    """The network's sizes.

    Args:
        image_size: pixels per side of the images that stripes and biases are made for; others interpolate biases.
        in_channels: channels of the images.
        num_classes: number of classes.
        dims: width of each stage.
        num_heads: heads of each stage; even where blocks have two branches.
        depths: blocks of each stage.
        agent_depths: of each stage the number of first blocks that have agent attention.
        num_agents: agents of each stage; squares.
        agent_stripe_widths: width of the stripes of each stage in agent blocks.
        stripe_widths: the same in ordinary blocks.
        mlp_ratio: width inside the perceptrons over the stage's.
        qkv_bias: biases in the projections of queries, keys and values.
        patch_size: stride of the first embedding, in pixels.
        drop_path: rate of stochastic depth at the last block; it rises linearly from 0.
        checkpointing: in training, compute the activations inside blocks again instead of keeping them.
    """

    image_size: int = 224
    in_channels: int = 3
    num_classes: int = 1000
    dims: tuple[int, ...] = (64, 128, 256, 512)
    num_heads: tuple[int, ...] = (2, 4, 8, 16)
    depths: tuple[int, ...] = (2, 4, 18, 1)
    agent_depths: tuple[int, ...] = (2, 4, 0, 0)
    num_agents: tuple[int, ...] = (9, 16, 49, 49)
    agent_stripe_widths: tuple[int, ...] = (56, 28, 14, 7)
    stripe_widths: tuple[int, ...] = (1, 2, 7, 7)
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    patch_size: int = 4
    drop_path: float = 0.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        check_stages(self, "dims", "num_heads", "depths", "num_agents", "agent_stripe_widths", "stripe_widths")
        check_agents(self.depths, self.agent_depths, self.image_size, self.patch_size, (self.mlp_ratio,))


def _variant(
    dim: int,
    depths: tuple[int, ...],
    *,
    params: float,
    macs: float,
    drop_path: float,
    heads: int = 2,
    image_size: int = 224,
    params_tolerance: float = 0.0,
) -> Variant:
    local = image_size // 32
    config = AgentCSwinConfig(
        image_size=image_size,
        dims=tuple(dim << stage for stage in range(4)),
        num_heads=tuple(heads << stage for stage in range(4)),
        depths=depths,
        agent_depths=(*depths[:2], 0, 0),
        agent_stripe_widths=tuple(image_size // 4 >> stage for stage in range(4)),
        stripe_widths=(1, 2, local, local),
        drop_path=drop_path,
    )
    return Variant(config=config, reported=reported_sizes("CSwin", params, macs, params_tolerance))


@register(name="agent_cswin", system="agent", paper=replace(AGENT_PAPER, where="ImageNet classification"))
class AgentCSwin(AgentBackbone):
    """Four stages of global agent attention and of attention in crossing stripes.

    Args:
        config: its sizes.

    Raises:
        ValueError: heads that do not divide the width of a branch.
    """

    SMALL: ClassVar[AgentCSwinConfig] = AgentCSwinConfig(
        image_size=8,
        in_channels=1,
        num_classes=10,
        dims=(32, 64),
        num_heads=(2, 4),
        depths=(2, 1),
        agent_depths=(1, 0),
        num_agents=(9, 4),
        agent_stripe_widths=(8, 4),
        stripe_widths=(2, 4),
        mlp_ratio=2.0,
        patch_size=1,
    )
    VARIANTS: ClassVar[dict[str, Variant]] = {
        "agent_cswin_tiny": _variant(64, (2, 4, 18, 1), params=20_458_672, macs=4.315e9, drop_path=0.2),
        "agent_cswin_small": _variant(64, (3, 6, 29, 2), params=32_814_100, macs=6.778e9, drop_path=0.4),
        "agent_cswin_base": _variant(96, (3, 6, 29, 2), params=73_249_696, macs=14.923e9, drop_path=0.5, heads=4),
        "agent_cswin_base_384": _variant(
            96,
            (3, 6, 29, 2),
            params=73e6,
            macs=46.3e9,
            drop_path=0.7,
            heads=4,
            image_size=384,
            params_tolerance=0.5 / 73,
        ),
    }

    def make_stage(self, stage: int, side: int, rates: list[float]) -> Stage:
        """An overlapping embedding, and blocks."""
        config, dim, patch = self.config, self.config.dims[stage], self.config.patch_size
        if stage == 0:
            embedding = NormedPatches(
                config.in_channels, dim, stride=patch, kernel_size=2 * patch - 1, padding=patch // 2
            )
        else:
            embedding = NormedPatches(config.dims[stage - 1], dim, stride=2, kernel_size=3, padding=1)
        blocks = (
            PreNormBlock(
                _attention(config, stage, side, has_agents=number < config.agent_depths[stage]),
                channels=dim,
                hidden=round(dim * config.mlp_ratio),
                drop_path=rate,
            )
            for number, rate in enumerate(rates)
        )
        return Stage(embedding, blocks)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout: `stage1_conv_embed`, `stage1.0`, `merge1`, ..., `norm`, `head`.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, without_first_axis(rename_all(state_dict, self._names())))

    def _names(self) -> Rules:
        """The authors' name the convolution of agent blocks and of ordinary ones alike, ours lies elsewhere."""
        rules = [*AGENT_CSWIN_NAMES]
        for stage, depth in enumerate(self.config.agent_depths):
            for number in range(depth):
                prefix = rf"^(stages\.{stage}\.blocks\.{number}\.mixer\.branches\.\d\.)"
                rules += [(pattern.replace(r"(^|\.)", prefix), made) for pattern, made in AGENT_STRIPE_NAMES]
        return (*rules, (r"\.get_v\.", ".local."))


def _attention(config: AgentCSwinConfig, stage: int, side: int, *, has_agents: bool) -> CrossShapedAttention:
    width = (config.agent_stripe_widths if has_agents else config.stripe_widths)[stage]
    is_whole = width >= side or stage == len(config.dims) - 1
    stripes: tuple[Stripe, ...] = ("whole",) if is_whole else ("columns", "rows")
    dim, heads = config.dims[stage], config.num_heads[stage]
    if heads % len(stripes):
        raise ValueError(f"num_heads of a stage with two branches must be even, got {heads} in stage {stage + 1}")
    channels, heads = dim // len(stripes), heads // len(stripes)
    branches: list[nn.Module] = []
    for stripe in stripes:
        if has_agents:
            agents = config.num_agents[stage]
            branch: nn.Module = AgentStripeAttention(
                channels, num_heads=heads, num_agents=agents, stripe=stripe, width=width, size=(side, side)
            )
        else:
            branch = StripeAttention(channels, num_heads=heads, stripe=stripe, width=width)
        branches.append(branch)
    return CrossShapedAttention(dim, branches, qkv_bias=config.qkv_bias)


AGENT_CSWIN_NAMES = (
    (r"^stage1_conv_embed\.0\.", "stages.0.embedding.conv."),
    (r"^stage1_conv_embed\.2\.", "stages.0.embedding.norm."),
    *((rf"^merge{stage}\.", f"stages.{stage}.embedding.") for stage in (1, 2, 3)),
    *((rf"^stage{stage + 1}\.(\d+)\.", rf"stages.{stage}.blocks.\1.") for stage in range(4)),
    (r"^norm\.", "head_norm."),
    (r"\.qkv\.", ".mixer.qkv."),
    (r"\.proj\.", ".mixer.o_proj."),
    (r"\.attns\.", ".mixer.branches."),
    *PRE_NORM_NAMES,
)
"""Parts of the network in the authors' layout as ours, but for those of the branches."""
