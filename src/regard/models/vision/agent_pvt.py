"""Agent-PVT: the Pyramid Vision Transformer with agent attention, which makes reducing keys and values superfluous.

Papers: "Agent Attention: On the Integration of Softmax and Linear Attention", Han et al., ECCV 2024,
https://arxiv.org/abs/2312.08874, ImageNet classification; "Pyramid Vision Transformer", Wang et al., ICCV 2021,
https://arxiv.org/abs/2102.12122.
Compared with LeapLabTHU/Agent-Attention@207ce3eb, `agent_transformer/models/agent_pvt.py:PyramidVisionTransformer`.
As there: no class token, and neither a norm nor anything else between the mean of the last map and the classes; norms
in the embeddings have the usual epsilon, those in the blocks 1e-6. Different: images of any size and aspect ratio are
taken, padded at the bottom and at the right to whole patches, with positions and biases interpolated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import load_strictly
from regard.layers.agent_bias import without_first_axis
from regard.layers.agent_reduced_attention import AGENT_REDUCED_NAMES, AgentReducedAttention
from regard.layers.normed_patches import NormedPatches
from regard.layers.pre_norm_block import PRE_NORM_NAMES, PreNormBlock
from regard.layers.reduced_attention import ReducedAttention
from regard.layers.reference_names import rename_all
from regard.metadata import Variant
from regard.mixers.sequence.agent import AGENT_PAPER
from regard.models.vision.agent_stages import AgentBackbone, Stage, attention_names, check_agents, reported_sizes
from regard.models.vision.backbone import check_stages
from regard.ops.resized_positions import resized_positions
from regard.registry import register


@dataclass(frozen=True, kw_only=True)
class AgentPVTConfig:
    """The network's sizes.

    Args:
        image_size: pixels per side of the images that positions and biases are made for; others interpolate them.
        in_channels: channels of the images.
        num_classes: number of classes.
        dims: width of each stage.
        num_heads: heads of each stage.
        depths: blocks of each stage.
        agent_depths: of each stage the number of first blocks that have agent attention.
        num_agents: agents of each stage; squares.
        agent_reductions: positions per side that become one key, in agent blocks.
        reductions: the same in ordinary blocks.
        mlp_ratios: width inside the perceptrons over each stage's.
        qkv_bias: biases in the projections of queries, keys and values.
        patch_size: pixels per side of a patch.
        norm_eps: added to the variance in the blocks' norms.
        drop_path: rate of stochastic depth at the last block; it rises linearly from 0.
        checkpointing: in training, compute the activations inside blocks again instead of keeping them.
    """

    image_size: int = 224
    in_channels: int = 3
    num_classes: int = 1000
    dims: tuple[int, ...] = (64, 128, 320, 512)
    num_heads: tuple[int, ...] = (1, 2, 5, 8)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    agent_depths: tuple[int, ...] = (2, 2, 2, 2)
    num_agents: tuple[int, ...] = (9, 16, 49, 49)
    agent_reductions: tuple[int, ...] = (1, 1, 1, 1)
    reductions: tuple[int, ...] = (8, 4, 2, 1)
    mlp_ratios: tuple[float, ...] = (8, 8, 4, 4)
    qkv_bias: bool = True
    patch_size: int = 4
    norm_eps: float = 1e-6
    drop_path: float = 0.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        check_stages(self, "dims", "num_heads", "depths", "num_agents", "agent_reductions", "reductions")
        if len(self.mlp_ratios) != len(self.dims):
            raise ValueError(
                f"mlp_ratios must have a number for each of the {len(self.dims)} stages, got {self.mlp_ratios}"
            )
        check_agents(self.depths, self.agent_depths, self.image_size, self.patch_size, self.mlp_ratios)


def _variant(
    depths: tuple[int, ...],
    *,
    params: float,
    macs: float,
    drop_path: float,
    image_size: int = 224,
    params_tolerance: float = 0.0,
) -> Variant:
    config = AgentPVTConfig(image_size=image_size, depths=depths, agent_depths=depths, drop_path=drop_path)
    return Variant(config=config, reported=reported_sizes("PVT", params, macs, params_tolerance))


@register(name="agent_pvt", system="agent", paper=replace(AGENT_PAPER, where="ImageNet classification"))
class AgentPVT(AgentBackbone):
    """Four stages of agent attention on ever coarser maps, with learned positions in each.

    Args:
        config: its sizes.
    """

    has_head_norm: ClassVar[bool] = False
    SMALL: ClassVar[AgentPVTConfig] = AgentPVTConfig(
        image_size=8,
        in_channels=1,
        num_classes=10,
        dims=(32, 64),
        num_heads=(2, 4),
        depths=(1, 2),
        agent_depths=(1, 1),
        num_agents=(9, 4),
        agent_reductions=(1, 1),
        reductions=(2, 1),
        mlp_ratios=(2, 2),
        patch_size=1,
    )
    VARIANTS: ClassVar[dict[str, Variant]] = {
        "agent_pvt_tiny": _variant((2, 2, 2, 2), params=11_570_352, macs=2.000e9, drop_path=0.1),
        "agent_pvt_small": _variant((3, 4, 6, 3), params=20_635_066, macs=3.978e9, drop_path=0.1),
        "agent_pvt_medium": _variant((3, 4, 18, 3), params=35_921_746, macs=7.035e9, drop_path=0.3),
        "agent_pvt_large": _variant((3, 8, 27, 3), params=48_738_180, macs=10.390e9, drop_path=0.3),
        "agent_pvt_medium_256": _variant(
            (3, 4, 18, 3),
            params=36.1e6,
            macs=9.2e9,
            drop_path=0.3,
            image_size=256,
            params_tolerance=0.05 / 36.1,
        ),
    }

    def make_stage(self, stage: int, side: int, rates: list[float]) -> Stage:
        """Patches with positions, and blocks."""
        config, dim = self.config, self.config.dims[stage]
        embedding = PositionedPatches(
            config.in_channels if stage == 0 else config.dims[stage - 1],
            dim,
            stride=config.patch_size if stage == 0 else 2,
            side=side,
        )
        blocks = (
            PreNormBlock(
                _attention(config, stage, side, has_agents=number < config.agent_depths[stage]),
                channels=dim,
                hidden=round(dim * config.mlp_ratios[stage]),
                drop_path=rate,
                norm_eps=config.norm_eps,
            )
            for number, rate in enumerate(rates)
        )
        return Stage(embedding, blocks)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout: `patch_embed1`, `pos_embed1`, `block1`, ..., `head`.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, without_first_axis(rename_all(state_dict, AGENT_PVT_NAMES)))


class PositionedPatches(nn.Module):
    """Patches of a map, normed, with learned positions that are interpolated where the map has another size.

    Args:
        in_channels: channels of the map.
        dim: channels afterwards.
        stride: positions per side that become one.
        side: rows and columns that the positions are made for.
    """

    def __init__(self, in_channels: int, dim: int, *, stride: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.patches = NormedPatches(in_channels, dim, stride=stride)
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, side**2, dim), std=0.02))

    def forward(self, x: Float[Tensor, "batch y x in_channels"]) -> Float[Tensor, "batch sy sx dim"]:
        """One position per patch."""
        embedded = self.patches(x)
        space = (embedded.shape[1], embedded.shape[2])
        return embedded + resized_positions(self.positions, (self.side, self.side), space)


def _attention(config: AgentPVTConfig, stage: int, side: int, *, has_agents: bool) -> nn.Module:
    dim, heads = config.dims[stage], config.num_heads[stage]
    if has_agents:
        return AgentReducedAttention(
            dim,
            num_heads=heads,
            num_agents=config.num_agents[stage],
            size=(side, side),
            reduction=config.agent_reductions[stage],
            qkv_bias=config.qkv_bias,
        )
    return ReducedAttention(dim, num_heads=heads, reduction=config.reductions[stage], qkv_bias=config.qkv_bias)


def _stage_names(stage: int) -> tuple[tuple[str, str], ...]:
    return (
        (rf"^patch_embed{stage + 1}\.proj\.", f"stages.{stage}.embedding.patches.conv."),
        (rf"^patch_embed{stage + 1}\.norm\.", f"stages.{stage}.embedding.patches.norm."),
        (rf"^pos_embed{stage + 1}$", f"stages.{stage}.embedding.positions"),
        (rf"^block{stage + 1}\.", f"stages.{stage}.blocks."),
    )


AGENT_PVT_NAMES = (
    *(rule for stage in range(4) for rule in _stage_names(stage)),
    *PRE_NORM_NAMES,
    *attention_names(AGENT_REDUCED_NAMES),
)
"""Parts of the network in the authors' layout as ours."""
