"""HaloNet's attention as a layer: blocks of queries with a shared, enlarged neighbourhood, and with a stride.

Paper: "Scaling Local Self-Attention for Parameter Efficient Visual Backbones", Vaswani et al., CVPR 2021,
https://arxiv.org/abs/2103.12731, blocked local attention with haloing (figure 1) and attention downsampling.
The authors published no code. Compared with huggingface/pytorch-image-models@v1.0.31,
`timm/layers/halo_attn.py:HaloAttn`. As there: relative logits come from the query before its scaling, unless
`scale_pos_embed` says otherwise (the paper's equation scales neither); keys beyond the map are zero vectors without a
mask; with a stride the relative index counts queries by their own index; there is no output projection.
Different: any size is taken, filled with zeros below and at the right as the halo is; with an odd size the pooled form
takes the mean of what a window of the pooling holds, so that its output is as large as the strided form's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from regard.contract import load_strictly
from regard.layers.reference_names import rename_all
from regard.ops.halo import halo_attention

Maps = Float[Tensor, "batch channels y x"]

HALO_NAMES = (
    (r"(^|\.)q\.", r"\1q_proj."),
    (r"(^|\.)kv\.", r"\1kv_proj."),
    (r"(^|\.)pos_embed\.height_rel$", r"\1row_table"),
    (r"(^|\.)pos_embed\.width_rel$", r"\1column_table"),
)
"""timm's names of the layer's parameters as ours."""


class HaloAttention(nn.Module):
    """y = concat_h softmax(Q_h K_h^T / sqrt(d) + r(Q_h)) V_h, where a block of queries shares its window of keys.

    Args:
        channels: number of channels of the input.
        out_channels: number of channels of the output, which are the heads' values; None = `channels`.
        num_heads: number of heads.
        head_dim: width of a query and of a key, d; None = that of a value, `out_channels // num_heads`.
        block_size: positions per side of a block, b.
        halo_size: positions by which the window of keys extends the block in each direction.
        stride: 2 = attention downsampling: only every second position, in both directions, is a query.
        avg_down: with stride 2, attend at all positions and average 2 x 2 instead; so it is done in any case where the
            block's size is odd.
        qkv_bias: biases in the projections of queries, keys and values.
        scale_pos_embed: divide the relative logits by sqrt(d) too.

    Raises:
        ValueError: heads that do not divide the output, a stride other than 1 and 2, a negative halo, or a size that
            is not positive.

    Cost: N C (h d (1 / s^2 + 1) + O) MACs for projections and N w^2 (h d + O) / s^2 for attention, w = b + 2 halo_size.
    """

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None = None,
        num_heads: int = 8,
        head_dim: int | None = None,
        block_size: int = 8,
        halo_size: int = 3,
        stride: int = 1,
        avg_down: bool = False,
        qkv_bias: bool = False,
        scale_pos_embed: bool = False,
    ) -> None:
        super().__init__()
        out_channels = channels if out_channels is None else out_channels
        _check(channels, out_channels, num_heads, head_dim, block_size, halo_size, stride)
        self.num_heads = num_heads
        self.head_dim = out_channels // num_heads if head_dim is None else head_dim
        self.block_size = block_size
        self.halo_size = halo_size
        self.pools = stride == 2 and (avg_down or block_size % 2 == 1)
        self.query_stride = 1 if self.pools else stride
        self.scale_pos_embed = scale_pos_embed
        width = num_heads * self.head_dim
        self.q_proj = nn.Linear(channels, width, bias=qkv_bias)
        self.kv_proj = nn.Linear(channels, width + out_channels, bias=qkv_bias)
        offsets = 2 * (block_size + 2 * halo_size) - 1
        self.row_table = nn.Parameter(torch.empty(offsets, self.head_dim))
        self.column_table = nn.Parameter(torch.empty(offsets, self.head_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal numbers: matrices as wide as the inputs' number asks, tables as the width of a head."""
        for proj in (self.q_proj, self.kv_proj):
            nn.init.trunc_normal_(proj.weight, std=proj.in_features**-0.5)
            if proj.bias is not None:
                nn.init.zeros_(proj.bias)
        for table in (self.row_table, self.column_table):
            nn.init.trunc_normal_(table, std=self.head_dim**-0.5)

    def project(
        self, x: Maps
    ) -> tuple[Float[Tensor, "batch query_y query_x heads_head_dim"], Float[Tensor, "batch y x heads_both_dims"]]:
        """Queries of the positions that have one, and keys and values of all."""
        # one reordering serves both projections; a map in channels-last order needs none
        rows = x.permute(0, 2, 3, 1).contiguous()
        step = self.query_stride
        return self.q_proj(rows[:, ::step, ::step]), self.kv_proj(rows)

    def forward(self, x: Maps) -> Float[Tensor, "batch out_channels query_y query_x"]:
        """A map of the same size, or with stride 2 of half of it, rounded up."""
        q, kv = self.project(x)
        mixed = halo_attention(
            q,
            kv,
            self.row_table,
            self.column_table,
            num_heads=self.num_heads,
            block_size=self.block_size,
            halo_size=self.halo_size,
            stride=self.query_stride,
            scale_pos_embed=self.scale_pos_embed,
        ).permute(0, 3, 1, 2)
        return avg_pool2d(mixed, 2, ceil_mode=True) if self.pools else mixed

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load timm's layout: `q`, `kv`, and `pos_embed` with `height_rel` and `width_rel`.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, as_matrices(self, rename_all(state_dict, HALO_NAMES)))

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return f"num_heads={self.num_heads}, block_size={self.block_size}, halo_size={self.halo_size}"


def _check(
    channels: int,
    out_channels: int,
    num_heads: int,
    head_dim: int | None,
    block_size: int,
    halo_size: int,
    stride: int,
) -> None:
    if channels < 1 or out_channels < 1:
        raise ValueError(f"channels and out_channels must be positive, got {channels} and {out_channels}")
    if num_heads < 1 or out_channels % num_heads:
        raise ValueError(f"num_heads must divide out_channels={out_channels}, got {num_heads}")
    if head_dim is not None and head_dim < 1:
        raise ValueError(f"head_dim must be positive, got {head_dim}")
    if block_size < 1:
        raise ValueError(f"block_size must be positive, got {block_size}")
    if halo_size < 0:
        raise ValueError(f"halo_size must not be negative, got {halo_size}")
    if stride not in (1, 2):
        raise ValueError(f"stride must be 1 or 2, got {stride}")


def as_matrices(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of 1x1 convolutions as matrices, wherever `module` has a matrix of that name.

    Args:
        module: whose parameters are to be loaded.
        tensors: under our names.
    """
    own = dict(module.named_parameters())
    return {
        name: tensor.flatten(1)
        if name in own and own[name].ndim == 2 and tensor.ndim == 4 and tensor.shape[2:] == (1, 1)
        else tensor
        for name, tensor in tensors.items()
    }
