"""Agent-Swin: the Swin Transformer whose first blocks attend globally, through agents, instead of in shifted windows.

Papers: "Agent Attention: On the Integration of Softmax and Linear Attention", Han et al., ECCV 2024,
https://arxiv.org/abs/2312.08874, ImageNet classification; "Swin Transformer: Hierarchical Vision Transformer using
Shifted Windows", Liu et al., ICCV 2021, https://arxiv.org/abs/2103.14030.
Compared with LeapLabTHU/Agent-Attention@207ce3eb, `agent_transformer/models/agent_swin.py:AgentSwinTransformer`; it
is timm's `swin_*` without agent blocks. As there, agent blocks whose window is smaller than the map attend in windows,
and every other of them shifts, without hiding what the shift brings together; no published network has such a block.
Different: images of any size and aspect ratio are taken, padded at the bottom and at the right where needed. Agent
blocks that are global at `image_size` are so at every size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import load_strictly
from regard.layers.agent_bias import without_first_axis
from regard.layers.normed_patches import NormedPatches
from regard.layers.patch_merging import PatchMerging
from regard.layers.pre_norm_block import PRE_NORM_NAMES, PreNormBlock
from regard.layers.reference_names import rename_all
from regard.layers.shifted_window import SHIFTED_WINDOW_NAMES, ShiftedWindowAttention, fitted_window, shift_map
from regard.metadata import Variant
from regard.mixers.sequence.agent import AGENT_PAPER
from regard.mixers.spatial.agent import AGENT_2D_NAMES, AgentAttention2d
from regard.models.vision.agent_stages import AgentBackbone, Stage, attention_names, check_agents, reported_sizes
from regard.models.vision.backbone import check_stages
from regard.ops.windows import merge_windows, pad_to_multiple, split_windows
from regard.registry import register

Grid = Float[Tensor, "batch y x channels"]


@dataclass(frozen=True, kw_only=True)
class AgentSwinConfig:
    """The network's sizes.

    Args:
        image_size: pixels per side of the images that windows and biases are made for; others interpolate biases.
        in_channels: channels of the images.
        num_classes: number of classes.
        dims: width of each stage.
        num_heads: heads of each stage.
        depths: blocks of each stage.
        agent_depths: of each stage the number of first blocks that have agent attention.
        num_agents: agents of each stage; squares.
        window_size: positions per side of a window in agent blocks, at most the map's.
        local_window_size: the same in ordinary blocks; None = an eighth of `window_size`, at least 7.
        mlp_ratio: width inside the perceptrons over the stage's.
        qkv_bias: biases in the projections of queries, keys and values.
        patch_size: pixels per side of a patch.
        drop_path: rate of stochastic depth at the last block; it rises linearly from 0.
        checkpointing: in training, compute the activations inside blocks again instead of keeping them.
    """

    image_size: int = 224
    in_channels: int = 3
    num_classes: int = 1000
    dims: tuple[int, ...] = (96, 192, 384, 768)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    agent_depths: tuple[int, ...] = (2, 2, 6, 0)
    num_agents: tuple[int, ...] = (9, 16, 49, 49)
    window_size: int = 56
    local_window_size: int | None = None
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    patch_size: int = 4
    drop_path: float = 0.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        check_stages(self, "dims", "num_heads", "depths", "num_agents")
        check_agents(self.depths, self.agent_depths, self.image_size, self.patch_size, (self.mlp_ratio,))
        if self.window_size < 1 or self.ordinary_window < 1:
            raise ValueError(
                "window_size and local_window_size must be positive, got "
                f"{self.window_size} and {self.local_window_size}"
            )

    @property
    def ordinary_window(self) -> int:
        """Positions per side of a window in ordinary blocks."""
        return max(7, self.window_size // 8) if self.local_window_size is None else self.local_window_size


def _variant(
    dim: int,
    depth: int,
    agent_depths: tuple[int, ...],
    *,
    params: float,
    macs: float,
    drop_path: float,
    image_size: int = 224,
    params_tolerance: float = 0.0,
) -> Variant:
    config = AgentSwinConfig(
        image_size=image_size,
        dims=tuple(dim << stage for stage in range(4)),
        num_heads=tuple(dim // 32 << stage for stage in range(4)),
        depths=(2, 2, depth, 2),
        agent_depths=agent_depths,
        window_size=image_size // 4,
        drop_path=drop_path,
    )
    return Variant(config=config, reported=reported_sizes("Swin", params, macs, params_tolerance))


@register(name="agent_swin", system="agent", paper=replace(AGENT_PAPER, where="ImageNet classification"))
class AgentSwin(AgentBackbone):
    """Four stages of global agent attention and of attention in shifted windows.

    Args:
        config: its sizes.
    """

    SMALL: ClassVar[AgentSwinConfig] = AgentSwinConfig(
        image_size=8,
        in_channels=1,
        num_classes=10,
        dims=(32, 64),
        num_heads=(2, 4),
        depths=(2, 2),
        agent_depths=(2, 0),
        num_agents=(9, 4),
        window_size=8,
        local_window_size=4,
        mlp_ratio=2.0,
        patch_size=1,
    )
    VARIANTS: ClassVar[dict[str, Variant]] = {
        "agent_swin_tiny": _variant(96, 6, (2, 2, 6, 0), params=28_902_964, macs=4.528e9, drop_path=0.2),
        "agent_swin_small": _variant(96, 18, (2, 2, 0, 0), params=49_666_684, macs=8.733e9, drop_path=0.3),
        "agent_swin_base": _variant(128, 18, (2, 2, 2, 0), params=88_095_096, macs=15.444e9, drop_path=0.5),
        "agent_swin_small_288": _variant(
            96, 18, (2, 2, 0, 0), params=49_707_964, macs=14.586e9, drop_path=0.3, image_size=288
        ),
        "agent_swin_base_384": _variant(
            128,
            18,
            (2, 2, 2, 0),
            params=88e6,
            macs=46.3e9,
            drop_path=0.5,
            image_size=384,
            params_tolerance=0.5 / 88,
        ),
    }

    def make_stage(self, stage: int, side: int, rates: list[float]) -> Stage:
        """Patches of the image or a merging, and blocks."""
        config, dim = self.config, self.config.dims[stage]
        embedding: nn.Module
        if stage == 0:
            embedding = NormedPatches(config.in_channels, dim, stride=config.patch_size)
        else:
            embedding = PatchMerging(config.dims[stage - 1], dim)
        blocks = (_block(config, stage, side, number, drop_path=rate) for number, rate in enumerate(rates))
        return Stage(embedding, blocks)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout: `patch_embed`, `layers.0.blocks.0`, `layers.0.downsample`, ..., `norm`, `head`.

        Their buffers, indices of offsets and masks of shifted windows, are computed here and left out.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        learned = {name: tensor for name, tensor in state_dict.items() if not name.endswith(_BUFFERS)}
        load_strictly(self, without_first_axis(rename_all(learned, AGENT_SWIN_NAMES)))


def _block(config: AgentSwinConfig, stage: int, side: int, number: int, *, drop_path: float) -> PreNormBlock:
    dim, heads = config.dims[stage], config.num_heads[stage]
    hidden = round(dim * config.mlp_ratio)
    if number >= config.agent_depths[stage]:
        attention = ShiftedWindowAttention(
            dim,
            num_heads=heads,
            window_size=min(config.ordinary_window, side),
            shifted=number % 2 == 1,
            qkv_bias=config.qkv_bias,
        )
        return PreNormBlock(attention, channels=dim, hidden=hidden, drop_path=drop_path)
    window = min(config.window_size, side)
    mixer = AgentAttention2d(
        dim,
        num_heads=heads,
        num_agents=config.num_agents[stage],
        window_size=window,
        qkv_bias=config.qkv_bias,
    )
    return AgentSwinBlock(
        mixer,
        channels=dim,
        hidden=hidden,
        window_size=None if window == side else window,
        shifted=number % 2 == 1,
        drop_path=drop_path,
    )


class AgentSwinBlock(PreNormBlock):
    """A block whose agent attention sees the whole map, or windows of it.

    Args:
        mixer: the attention, on maps.
        channels: width.
        hidden: width inside the perceptron.
        window_size: positions per side of a window; None = the whole map.
        shifted: shift the windows by half their size.
        drop_path: rate of stochastic depth of both branches.
    """

    def __init__(
        self,
        mixer: AgentAttention2d,
        *,
        channels: int,
        hidden: int,
        window_size: int | None,
        shifted: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(mixer, channels=channels, hidden=hidden, drop_path=drop_path)
        self.window_size = window_size
        self.shifted = shifted

    def mix(self, normed: Grid) -> Grid:
        """Windows are maps of their own, folded into the batch."""
        if self.window_size is None:
            return self.mixer(normed.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        height, width = normed.shape[1], normed.shape[2]
        size, shift = fitted_window((height, width), self.window_size, shifted=self.shifted)
        padded = shift_map(pad_to_multiple(normed, size), shift)
        windows = split_windows(padded, size).unflatten(1, size).permute(0, 3, 1, 2)
        mixed = self.mixer(windows).permute(0, 2, 3, 1).flatten(1, 2)
        merged = merge_windows(mixed, size, (padded.shape[1], padded.shape[2]))
        return shift_map(merged, shift, back=True)[:, :height, :width]


_BUFFERS = (".relative_position_index", ".attn_mask")

AGENT_SWIN_NAMES = (
    (r"^patch_embed\.proj\.", "stages.0.embedding.conv."),
    (r"^patch_embed\.", "stages.0.embedding."),
    *((rf"^layers\.{stage}\.downsample\.", f"stages.{stage + 1}.embedding.") for stage in range(3)),
    (r"^layers\.", "stages."),
    (r"^norm\.", "head_norm."),
    *PRE_NORM_NAMES,
    *attention_names((*AGENT_2D_NAMES, *SHIFTED_WINDOW_NAMES[:1])),
)
"""Parts of the network in the authors' layout as ours."""
