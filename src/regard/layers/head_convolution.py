"""A depthwise causal convolution over tokens behind a projection to heads: Primer's, and RCMHA's with shared filters.

Papers: "Primer: Searching for Efficient Transformers for Language Modeling", So et al., NeurIPS 2021,
https://arxiv.org/abs/2109.08668, multi-DConv-head attention (a filter for every channel of every head); "RCMHA",
Sugiharto et al., 2023, https://arxiv.org/abs/2308.03429 (a filter for every channel of a head, shared by the heads).
Compared with hermansh-id/rcmha@87df49bf, `rcmha/attention.py:SpatialDepthWiseConvolution`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.ops.shifted_convolution import shifted_convolution

WIDTH = 3
"""Taps of a filter."""


class HeadConvolution(nn.Module):
    """y_t = b + w_0 x_{t-2} + w_1 x_{t-1} + w_2 x_t, channel by channel.

    Args:
        num_heads: number of heads.
        head_dim: channels of a head.
        shared: the heads have the same filters.

    Raises:
        ValueError: a number that is not positive.
    """

    def __init__(self, num_heads: int, head_dim: int, *, shared: bool) -> None:
        super().__init__()
        if num_heads < 1 or head_dim < 1:
            raise ValueError(f"num_heads and head_dim must be positive, got {num_heads} and {head_dim}")
        self.head_dim = head_dim
        channels = head_dim if shared else num_heads * head_dim
        self.weight = nn.Parameter(torch.empty(channels, 1, WIDTH))
        self.bias = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As `torch.nn.Conv1d` begins."""
        bound = WIDTH**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(
        self,
        x: Float[Tensor, "batch tokens heads head_dim"],
        *,
        before: Float[Tensor, "batch past heads head_dim"] | None = None,
    ) -> Float[Tensor, "batch tokens heads head_dim"]:
        """Every head by itself; `before` holds the two tokens before the first, None = zeros."""
        filters = self.weight[:, 0].T.unflatten(1, (-1, self.head_dim))
        bias = self.bias.unflatten(0, (-1, self.head_dim))
        return shifted_convolution(x, filters, bias, before=before)

    def extra_repr(self) -> str:
        """The numbers of filters and channels."""
        return f"{self.weight.shape[0]} filters of {WIDTH}, head_dim={self.head_dim}"
