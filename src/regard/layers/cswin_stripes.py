"""CSWin's attention: half of the heads in stripes of columns, half in stripes of rows, and LePE as positions.

Paper: "CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows", Dong et al., CVPR 2022,
https://arxiv.org/abs/2107.00652, section 3.2 and equation 6 (LePE, a depth-wise convolution of the values).
Compared with LeapLabTHU/Agent-Attention@207ce3eb, `agent_transformer/models/agent_cswin.py:LePEAttention` and
`CSWinBlock`. Stripes are as long as the map, whatever its size; where they do not fill its other side, projected zeros
are added at the bottom or at the right, which are attended to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from regard.ops.heads import head_width
from regard.ops.softmax_attention import softmax_attention
from regard.ops.windows import Size, padded_space

Stripe = Literal["columns", "rows", "whole"]
STRIPES: tuple[Stripe, ...] = get_args(Stripe)
Maps = Float[Tensor, "batch y x channels"]
Projected = Float[Tensor, "batch y x three channels"]


def stripe_size(stripe: Stripe, width: int, space: Size) -> Size:
    """Rows and columns of a stripe of `width` on a map of `space` positions; "whole" is the map itself.

    Raises:
        ValueError: another kind of stripe, or a width that is not positive.
    """
    if stripe not in STRIPES or width < 1:
        raise ValueError(f"a stripe must be one of {', '.join(STRIPES)} with a positive width, got {stripe!r}, {width}")
    size = {"columns": (space[0], min(width, space[1])), "rows": (min(width, space[0]), space[1]), "whole": space}
    return size[stripe]


def pad_stripes(qkv: Projected, size: Size) -> Float[Tensor, "batch sy sx three channels"]:
    """Zeros at the bottom and at the right, so that stripes fill the map."""
    height, width = qkv.shape[1:3]
    space = padded_space((height, width), size)
    if space == (height, width):
        return qkv
    return pad(qkv, (0, 0, 0, 0, 0, space[1] - width, 0, space[0] - height))


class StripeAttention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V + DWConv(V) inside every stripe, of what is already projected.

    Args:
        channels: number of channels, C.
        num_heads: number of heads; must divide `channels`.
        stripe: "columns", "rows", or "whole" for one stripe that is the map.
        width: columns, or rows, of a stripe.

    Raises:
        ValueError: heads that do not divide the channels, another kind of stripe, or a width that is not positive.

    Cost: 2 N M C + 9 N C MACs for N positions, of which M are in a stripe.
    """

    def __init__(self, channels: int, *, num_heads: int, stripe: Stripe, width: int = 1) -> None:
        super().__init__()
        head_width(channels, num_heads)
        stripe_size(stripe, width, (1, 1))
        self.num_heads = num_heads
        self.stripe: Stripe = stripe
        self.width = width
        self.local = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, qkv: Projected) -> Maps:
        """The stripes of the padded map, cropped."""
        height, width = qkv.shape[1], qkv.shape[2]
        size = stripe_size(self.stripe, self.width, (height, width))
        qkv = pad_stripes(qkv, size)
        (sy, sx), ny = size, qkv.shape[1] // size[0]
        cut = "b (ny sy) (nx sx) t (h d) -> t (b ny nx) h (sy sx) d"
        q, k, v = rearrange(qkv, cut, h=self.num_heads, sy=sy, sx=sx)
        mixed = softmax_attention(q, k, v)
        values = rearrange(qkv[:, :, :, 2], "b (ny sy) (nx sx) c -> (b ny nx) c sy sx", sy=sy, sx=sx)
        local = rearrange(self.local(values), "w (h d) sy sx -> w h (sy sx) d", h=self.num_heads)
        join = "(b ny nx) h (sy sx) d -> b (ny sy) (nx sx) (h d)"
        joined = rearrange(mixed + local, join, b=qkv.shape[0], ny=ny, sy=sy, sx=sx)
        return joined[:, :height, :width]


class CrossShapedAttention(nn.Module):
    """W_o [branch_1 | branch_2 ...] on equal shares of the channels of one projection to queries, keys and values.

    Args:
        channels: number of channels, C.
        branches: attentions of what is projected, each on an equal share of the channels.
        qkv_bias: biases in the projections of queries, keys and values.

    Raises:
        ValueError: branches that do not divide the channels.
    """

    def __init__(self, channels: int, branches: Sequence[nn.Module], *, qkv_bias: bool = True) -> None:
        super().__init__()
        if not branches or channels % len(branches):
            raise ValueError(f"the number of branches must divide channels={channels}, got {len(branches)}")
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.branches = nn.ModuleList(branches)
        self.o_proj = nn.Linear(channels, channels)

    def forward(self, x: Maps) -> Maps:
        """All branches, one after the other along the channels."""
        shares = self.qkv(x).unflatten(-1, (3, -1)).chunk(len(self.branches), dim=-1)
        mixed = [branch(share) for branch, share in zip(self.branches, shares, strict=True)]
        return self.o_proj(mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=-1))
