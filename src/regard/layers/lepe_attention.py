"""Full softmax attention on a map, with a depth-wise convolution of its input as positions.

Paper: "BiFormer: Vision Transformer with Bi-Level Routing Attention", Zhu et al., CVPR 2023,
https://arxiv.org/abs/2303.08810, section 3.3: the last stage.
Compared with rayleizhu/BiFormer@1697bbbe, `models/_common.py:AttentionLePE` and `Attention`.
As there: the convolution (LePE) reads the attention's input, not its values as in bi-level routing; the scale is that
of a head's width.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import load_strictly
from regard.layers.reference_names import rename_all
from regard.ops.heads import head_width, merge_heads
from regard.ops.softmax_attention import softmax_attention

Maps = Float[Tensor, "batch channels y x"]
LEPE_ATTENTION_NAMES = ((r"(^|\.)proj\.", r"\1o_proj."),)
"""Parts of the authors' layer as ours."""


class LePEAttention(nn.Module):
    """y = W_o (concat_h softmax(Q_h K_h^T / sqrt(d)) V_h + LePE(x)), every position to every other.

    Args:
        channels: number of channels, C.
        num_heads: number of heads; must divide `channels`.
        lepe_kernel_size: taps per side of the convolution, odd; 0 = none.
        qkv_bias: biases in the projections of queries, keys and values.

    Raises:
        ValueError: heads that do not divide the channels, or an even kernel.

    Cost: 4 N C^2 + 2 N^2 C MACs for N positions, and N C times the taps.
    """

    def __init__(self, channels: int, *, num_heads: int = 8, lepe_kernel_size: int = 5, qkv_bias: bool = False) -> None:
        super().__init__()
        head_width(channels, num_heads)
        if lepe_kernel_size < 0 or (lepe_kernel_size and lepe_kernel_size % 2 == 0):
            raise ValueError(f"lepe_kernel_size must be odd, or 0 for none, got {lepe_kernel_size}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.o_proj = nn.Linear(channels, channels)
        taps = lepe_kernel_size
        self.lepe = nn.Conv2d(channels, channels, taps, padding=taps // 2, groups=channels) if taps else None

    def forward(self, x: Maps) -> Maps:
        """All positions of the map at once."""
        tokens = x.permute(0, 2, 3, 1).flatten(1, 2)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = merge_heads(softmax_attention(q, k, v))
        if self.lepe is not None:
            mixed = mixed + self.lepe(x).permute(0, 2, 3, 1).flatten(1, 2)
        return self.o_proj(mixed).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout: `qkv`, `proj`, `lepe`.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, rename_all(state_dict, LEPE_ATTENTION_NAMES))
