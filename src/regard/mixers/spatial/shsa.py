"""SHSA: a single head of softmax attention on a part of the channels, while the others pass by.

Paper: "SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design", Yun and Ro, CVPR 2024,
https://arxiv.org/abs/2401.16456.
Compared with ysj9909/SHViT@6a729ccf, `model/shvit.py:SHSA`.
As there: only the attended channels are normed, the others reach the projection as they come in, and the scale is that
of the queries' width, which is not the values'. Up to 256 positions the weights are written to memory, beyond them the
fused kernel is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import FeatureMixer, load_strictly
from regard.layers.conv_norm import ConvNorm
from regard.layers.reference_names import rename_all
from regard.metadata import Example, Paper, Traits
from regard.ops.single_head_attention import single_head_attention, single_head_weights
from regard.registry import register

SHVIT_PAPER = Paper(
    title="SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design",
    authors="Yun and Ro",
    venue="CVPR",
    year=2024,
    url="https://arxiv.org/abs/2401.16456",
    code="ysj9909/SHViT@6a729ccf18e0b941714b529638bd3d9bacebcef0",
    where="single-head self-attention",
)
SHSA_NAMES = (
    (r"(^|\.)pre_norm\.", r"\1norm."),
    (r"(^|\.)proj\.1\.", r"\1o_proj."),
    (r"(^|\.)c\.weight$", r"\1conv.weight"),
    (r"(^|\.)bn\.", r"\1norm."),
)
"""Parts of the layer in the authors' layout as ours."""
Maps = Float[Tensor, "batch channels y x"]


PARTIAL_RATIO = 4.67


@register(
    name="shsa",
    system="shvit",
    paper=SHVIT_PAPER,
    traits=Traits.of_feature_mixer(spatial_dims=(2,), has_map=True, row_stochastic=True, time="n^2", memory="n^2"),
    example=Example(kwargs={"channels": 15, "partial_dim": 7, "head_dim": 5}, batch=2, space=(6, 9)),
)
class SingleHeadAttention(FeatureMixer):
    """y = W relu([softmax(q k^T / sqrt(d)) v, x_2]), where q, k, v are maps of the normed x_1, the first channels of x.

    All maps are 1x1 convolutions with batch norms.

    Args:
        channels: number of channels, C.
        partial_dim: channels that are attended to, p; None = C / 4.67, about what the paper takes, and at least 1.
        head_dim: width of queries and keys, d.

    Raises:
        ValueError: `partial_dim` that is not between 1 and `channels`, or a width that is not positive.

    Cost: N (p (2 d + p) + C^2) + N^2 (d + p) MACs for N positions: the quadratic part does not depend on C - p.
    """

    def __init__(self, channels: int, *, partial_dim: int | None = None, head_dim: int = 16) -> None:
        super().__init__(channels)
        partial_dim = _attended(channels, partial_dim)
        if not 1 <= partial_dim <= channels:
            raise ValueError(f"partial_dim must be between 1 and channels={channels}, got {partial_dim}")
        if head_dim < 1:
            raise ValueError(f"head_dim must be positive, got {head_dim}")
        self.partial_dim = partial_dim
        self.head_dim = head_dim
        self.norm = nn.GroupNorm(1, partial_dim)
        self.qkv = ConvNorm(partial_dim, 2 * head_dim + partial_dim)
        self.o_proj = ConvNorm(channels, channels, initial_scale=0.0)

    def mix(self, x: Maps, *, context: Maps | None) -> Maps:
        """The attended channels beside the others, rectified and projected."""
        q, k, v = self._project(x)
        attended = single_head_attention(q, k, v).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        return self.o_proj(torch.cat((attended, x[:, self.partial_dim :]), dim=1).relu_())

    def attention_map(self, x: Maps) -> Float[Tensor, "batch 1 positions positions"]:
        """What every position takes of the others, row-major.

        Raises:
            ValueError: a number of dimensions or channels that does not fit.
        """
        self._check_features(x, "x")
        q, k, _ = self._project(x)
        return single_head_weights(q, k)[:, None]

    def _project(self, x: Maps) -> tuple[Tensor, Tensor, Tensor]:
        norm = self.norm
        # the module would refuse a single number, whose norm is the bias
        normed = torch.group_norm(x[:, : self.partial_dim], 1, norm.weight, norm.bias, norm.eps)
        tokens = self.qkv(normed).permute(0, 2, 3, 1).flatten(1, 2)
        q, k, v = tokens.split((self.head_dim, self.head_dim, self.partial_dim), dim=-1)
        return q, k, v

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, space: tuple[int, ...]) -> int:
        """Both projections, and two products over all pairs of positions."""
        positions, width = space[0] * space[1], options.head_dim
        attended = _attended(options.channels, options.partial_dim)
        projections = attended * (2 * width + attended) + options.channels**2
        return batch * positions * (projections + positions * (width + attended))

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout: `pre_norm`, `qkv`, `proj.1`.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, rename_all(state_dict, SHSA_NAMES))


def _attended(channels: int, partial_dim: int | None) -> int:
    return max(1, round(channels / PARTIAL_RATIO)) if partial_dim is None else partial_dim
