"""Depthwise causal convolution over tokens: each channel sees its own last few values.

Short ones follow the projections of many recurrent mixers.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv1d, pad


def causal_convolution(
    x: Float[Tensor, "batch tokens channels"],
    weight: Float[Tensor, "width channels"],
    before: Float[Tensor, "batch past channels"] | None = None,
) -> Float[Tensor, "batch tokens channels"]:
    """y_t = sum_j weight_j x_{t - width + 1 + j}, channel by channel; the last row of `weight` meets the token itself.

    Args:
        x: the tokens.
        weight: the filter.
        before: the `width - 1` tokens before the first; None = zeros.

    Raises:
        ValueError: `before` has another number of tokens.
    """
    width, channels = weight.shape
    if before is not None and before.shape[1] != width - 1:
        raise ValueError(f"there are {before.shape[1]} tokens before the first, a filter of {width} needs {width - 1}")
    padded = pad(x, (0, 0, width - 1, 0)) if before is None else torch.cat((before, x), dim=1)
    return conv1d(padded.transpose(1, 2), weight.mT[:, None], groups=channels).transpose(1, 2)
