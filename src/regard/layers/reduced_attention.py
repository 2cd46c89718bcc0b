"""Spatial-reduction attention: softmax attention whose keys and values come from a coarser map.

Paper: "Pyramid Vision Transformer", Wang et al., ICCV 2021, https://arxiv.org/abs/2102.12122, equations 1 to 3.
Compared with LeapLabTHU/Agent-Attention@207ce3eb, `agent_transformer/models/agent_pvt.py:Attention`. Maps that the
reduction does not divide are padded with zeros at the bottom and at the right.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from regard.ops.heads import head_width, merge_heads, split_heads
from regard.ops.softmax_attention import softmax_attention
from regard.ops.windows import pad_to_multiple

Maps = Float[Tensor, "batch y x channels"]


class SpatialReduction(nn.Module):
    """Squares of positions become one: a convolution whose stride is its kernel, and a norm.

    Args:
        channels: number of channels.
        reduction: positions per side of a square.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.reduction = reduction
        self.conv = nn.Conv2d(channels, channels, reduction, stride=reduction)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Maps) -> Float[Tensor, "batch ky kx channels"]:
        """The coarser map."""
        padded = pad_to_multiple(x, (self.reduction, self.reduction))
        return self.norm(self.conv(padded.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def reduction_of(channels: int, reduction: int) -> SpatialReduction | None:
    """The layer, or None where nothing is reduced.

    Raises:
        ValueError: a reduction that is not positive.
    """
    if reduction < 1:
        raise ValueError(f"reduction must be positive, got {reduction}")
    return SpatialReduction(channels, reduction) if reduction > 1 else None


class ReducedAttention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V, keys and values projected from the reduced map.

    Args:
        channels: number of channels, C.
        num_heads: number of heads; must divide `channels`.
        reduction: positions per side of the square that becomes one key, s.
        qkv_bias: biases in the projections of queries, keys and values.

    Raises:
        ValueError: heads that do not divide the channels, or a reduction that is not positive.

    Cost: 2 N C^2 + 2 N' C^2 + 2 N N' C MACs for N queries and N' = N / s^2 keys, and N C^2 for reducing.
    """

    def __init__(self, channels: int, *, num_heads: int, reduction: int = 1, qkv_bias: bool = True) -> None:
        super().__init__()
        head_width(channels, num_heads)
        self.num_heads = num_heads
        self.q_proj = nn.Linear(channels, channels, bias=qkv_bias)
        self.kv_proj = nn.Linear(channels, 2 * channels, bias=qkv_bias)
        self.reduction = reduction_of(channels, reduction)
        self.o_proj = nn.Linear(channels, channels)

    def forward(self, x: Maps) -> Maps:
        """Every position of the map as a query."""
        source = x if self.reduction is None else self.reduction(x)
        k, v = self.kv_proj(source).flatten(1, 2).chunk(2, dim=-1)
        q, k, v = (split_heads(part, self.num_heads) for part in (self.q_proj(x).flatten(1, 2), k, v))
        return self.o_proj(merge_heads(softmax_attention(q, k, v)).unflatten(1, x.shape[1:3]))


REDUCED_NAMES = (
    (r"(^|\.)q\.", r"\1q_proj."),
    (r"(^|\.)kv\.", r"\1kv_proj."),
    (r"(^|\.)proj\.", r"\1o_proj."),
    (r"(^|\.)sr\.", r"\1reduction.conv."),
    (r"(^|\.)norm\.", r"\1reduction.norm."),
)
"""The authors' names of an attention's parts as ours, without the attention's own prefix."""
