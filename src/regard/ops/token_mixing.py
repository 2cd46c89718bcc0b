"""A linear map along the tokens, the same for every channel: what mixes tokens in MLP-Mixer and NiNformer.

Papers: "MLP-Mixer: An all-MLP Architecture for Vision", Tolstikhin et al., NeurIPS 2021,
https://arxiv.org/abs/2105.01601, equation 1 (the inner products of its token mixing); "NiNformer: A Network in Network
Transformer with Token Mixing Generated Gating Function", https://arxiv.org/abs/2403.02411.
As with any linear layer, autocast decides in which type is multiplied.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear


def token_linear(
    x: Float[Tensor, "batch tokens channels"],
    weight: Float[Tensor, "out_tokens tokens"],
    bias: Float[Tensor, " out_tokens"],
) -> Float[Tensor, "batch out_tokens channels"]:
    """y[m] = sum_n weight[m, n] x[n] + bias[m], in every row and channel.

    The tokens stay on their axis: one batched product, without the two transpositions that a linear layer needs.
    """
    # under autocast the product may come in another type than its addend
    rows = weight.to(x.dtype).expand(x.shape[0], -1, -1)
    return torch.baddbmm(bias.to(x.dtype)[None, :, None], rows, x)


def token_linear_reference(
    x: Float[Tensor, "batch tokens channels"],
    weight: Float[Tensor, "out_tokens tokens"],
    bias: Float[Tensor, " out_tokens"],
) -> Float[Tensor, "batch out_tokens channels"]:
    """The same, as the papers write it: transpose, linear layer, transpose."""
    return linear(x.transpose(1, 2), weight, bias).transpose(1, 2)
