"""RMSNorm with a learned weight, shared by all heads, in at least float32."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.ops.norms import simple_rms_norm


class HeadNorm(nn.Module):
    """x / rms(x) times a weight per channel, over the last axis.

    Args:
        width: number of channels.

    Raises:
        ValueError: `width` is not positive.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be positive, got {width}")
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Normalise the last axis."""
        return simple_rms_norm(x) * self.weight.to(x.dtype)
