"""BiFormer's block: a depth-wise convolution for positions, a mixer on maps, a perceptron, each added to its input.

Paper: "BiFormer: Vision Transformer with Bi-Level Routing Attention", Zhu et al., CVPR 2023,
https://arxiv.org/abs/2303.08810, section 3.3.
Compared with rayleizhu/BiFormer@1697bbbe, `models/biformer.py:Block` and `models/biformer_stl.py:BiFormerBlock`, which
has no positional convolution.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu

from regard.layers.conditional_position import ConditionalPosition
from regard.layers.drop_path import DropPath
from regard.layers.feed_forward import FeedForward
from regard.layers.lepe_attention import LEPE_ATTENTION_NAMES

Maps = Float[Tensor, "batch channels y x"]
Rows = Float[Tensor, "batch y x channels"]
NORM_EPS = 1e-6
BLOCK_NAMES = (
    (r"(^|\.)pos_embed\.", r"\1position.conv."),
    (r"(^|\.)norm1\.", r"\1mixer_norm."),
    (r"(^|\.)norm2\.", r"\1mlp_norm."),
    (r"(^|\.)attn\.1\.", r"\1mixer.0."),
    (r"(^|\.)attn\.2\.", r"\1mixer.1."),
    (r"(^|\.)attn\.3\.", r"\1mixer.2."),
    (r"(^|\.)attn\.", r"\1mixer."),
    (r"(^|\.)mlp\.0\.", r"\1mlp.up_proj."),
    (r"(^|\.)mlp\.1\.dwconv\.", r"\1mlp.conv."),
    (r"(^|\.)mlp\.[23]\.", r"\1mlp.down_proj."),
    (r"(^|\.)gamma1$", r"\1mixer_scale"),
    (r"(^|\.)gamma2$", r"\1mlp_scale"),
    *LEPE_ATTENTION_NAMES,
)
"""Parts of a block as ours, but for what is inside a bi-level routing mixer."""


class ConvolutionalFeedForward(FeedForward):
    """A perceptron with a depth-wise 3x3 convolution before its GELU, on maps whose channels come last.

    Args:
        dim: number of channels.
        hidden: width inside.

    Raises:
        ValueError: a width that is not positive.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(dim, hidden)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x: Rows) -> Rows:
        """Every position, and inside also its neighbours."""
        inner = self.conv(self.up_proj(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.down_proj(gelu(inner))


class BiFormerBlock(nn.Module):
    """x + DWConv(x), then x + g1 mixer(norm(x)), then x + g2 MLP(norm(x)).

    Args:
        mixer: on maps, the channels first.
        channels: width.
        hidden: width inside the perceptron.
        conditional_position: the convolution at the beginning.
        norm_first: norm what the branches read; else what the additions give.
        layer_scale: where the factors g1 and g2 of each channel start; None = no factors.
        mlp_conv: a depth-wise convolution inside the perceptron.
        drop_path: rate of stochastic depth of both branches.
    """

    def __init__(
        self,
        mixer: nn.Module,
        *,
        channels: int,
        hidden: int,
        conditional_position: bool = True,
        norm_first: bool = True,
        layer_scale: float | None = None,
        mlp_conv: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.position = ConditionalPosition(channels) if conditional_position else None
        self.mixer_norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.mixer = mixer
        self.mlp_norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.mlp = ConvolutionalFeedForward(channels, hidden) if mlp_conv else FeedForward(channels, hidden)
        self.mixer_scale = None if layer_scale is None else nn.Parameter(torch.full((channels,), layer_scale))
        self.mlp_scale = None if layer_scale is None else nn.Parameter(torch.full((channels,), layer_scale))
        self.norm_first = norm_first
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Maps) -> Maps:
        """Norms and perceptron see the channels last; a map whose memory is so ordered is never copied for it."""
        if self.position is not None:
            x = self.position(x)
        rows = x.permute(0, 2, 3, 1)
        if self.norm_first:
            rows = rows + self._mixed(self.mixer_norm(rows))
            rows = rows + self._dropped(self.mlp(self.mlp_norm(rows)), self.mlp_scale)
        else:
            rows = self.mixer_norm(rows + self._mixed(rows))
            rows = self.mlp_norm(rows + self._dropped(self.mlp(rows), self.mlp_scale))
        return rows.permute(0, 3, 1, 2)

    def _mixed(self, rows: Tensor) -> Tensor:
        return self._dropped(self.mixer(rows.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), self.mixer_scale)

    def _dropped(self, branch: Tensor, scale: Tensor | None) -> Tensor:
        return self.drop_path(branch if scale is None else branch * scale)
