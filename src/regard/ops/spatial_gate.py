"""Gates on positions: a feature map is summarised over its channels, scored, and scaled by the sigmoid of the scores.

Paper: "CBAM: Convolutional Block Attention Module", Woo et al., ECCV 2018, https://arxiv.org/abs/1807.06521,
equation 3.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def channel_summary(x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch 2 *space"]:
    """The mean and the maximum over the channels of every position."""
    return torch.cat((x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)), dim=1)


def scale_positions(
    x: Float[Tensor, "batch channels *space"], scores: Float[Tensor, "batch maps *space"], *, residual: bool = False
) -> Float[Tensor, "batch channels *space"]:
    """Features times sigmoid(scores), or 1 + sigmoid(scores); the scores have one map, or one for every channel."""
    gate = scores.sigmoid()
    return torch.addcmul(x, x, gate) if residual else x * gate
