"""DaViT's channel attention: every channel is a token, whose features are all positions of the map.

Paper: "DaViT: Dual Attention Vision Transformers", Ding et al., ECCV 2022,
https://arxiv.org/abs/2204.03645, equation 4.
Compared with dingmyu/davit@fc79470d, `timm/models/davit.py:ChannelAttention`.
As there: the affinity is between what the code calls keys and values, and it weighs what it calls queries, a renaming
of the paper's softmax(Q^T K / sqrt(C_g)) V; the scale is the square root of a group's width, not of the positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace

from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import FeatureMixer, load_strictly
from regard.layers.reference_names import rename_all
from regard.metadata import Example, No, Traits
from regard.mixers.spatial.davit_window import DAVIT_PAPER
from regard.ops.channel_attention import channel_affinity, channel_attention
from regard.registry import register

Maps = Float[Tensor, "batch channels *space"]

_BETWEEN_CHANNELS = No("weighs channels, not positions: it offers affinity(x)")


@register(
    name="davit_channel",
    system="davit",
    paper=replace(DAVIT_PAPER, where="equation 4"),
    traits=Traits.of_feature_mixer(spatial_dims=(1, 2, 3), has_map=_BETWEEN_CHANNELS, row_stochastic=_BETWEEN_CHANNELS),
    example=Example(kwargs={"channels": 15, "num_groups": 3}, batch=2, space=(5, 7, 3)),
)
class DaViTChannelAttention(FeatureMixer):
    """Attention between the channels of a group: Y_g = Q_g softmax(K_g^T V_g / sqrt(C / G))^T, then a projection.

    Args:
        channels: number of channels, C.
        num_groups: number of groups, G; must divide `channels`.
        qkv_bias: biases in the projections of queries, keys and values.

    Raises:
        ValueError: groups that do not divide the channels.

    Cost: 4 N C^2 + 2 N C^2 / G MACs for N positions: linear in N, and in C at a fixed width of the groups but for the
    projections.
    """

    def __init__(self, channels: int, *, num_groups: int, qkv_bias: bool = True) -> None:
        super().__init__(channels)
        if num_groups < 1 or channels % num_groups:
            raise ValueError(f"num_groups must divide channels={channels}, got {num_groups}")
        self.num_groups = num_groups
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.o_proj = nn.Linear(channels, channels)

    def mix(self, x: Maps, *, context: Maps | None) -> Maps:
        """All positions are summed over at once."""
        q, k, v = self._project(x)
        mixed = self.o_proj(channel_attention(q, k, v).flatten(2))
        return mixed.unflatten(1, x.shape[2:]).movedim(-1, 1)

    def affinity(self, x: Maps) -> Float[Tensor, "batch groups width width"]:
        """What every channel of a group takes from the others; rows sum to 1.

        Raises:
            ValueError: a number of dimensions or channels that does not fit.
        """
        self._check_features(x, "x")
        _, k, v = self._project(x)
        return channel_affinity(k, v)

    def _project(self, x: Maps) -> tuple[Tensor, Tensor, Tensor]:
        tokens = self.qkv(x.movedim(1, -1).flatten(1, -2))
        q, k, v = tokens.unflatten(-1, (3, self.num_groups, -1)).unbind(2)
        return q, k, v

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, space: tuple[int, ...]) -> int:
        """Projections, and two products per group."""
        positions = batch
        for length in space:
            positions *= length
        return positions * (4 * options.channels**2 + 2 * options.channels**2 // options.num_groups)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout: `qkv`, `proj`.

        Raises:
            KeyError: an unknown or a missing key, named.
        """
        load_strictly(self, rename_all(state_dict, ((r"^proj\.", "o_proj."),)))
