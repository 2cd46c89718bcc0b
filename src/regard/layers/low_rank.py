"""A low-rank change of a linear map, which starts as no change.

Paper: "LoRA: Low-Rank Adaptation of Large Language Models", Hu et al., ICLR 2022, https://arxiv.org/abs/2106.09685,
section 4.1, without the factor alpha / r, as gmlwns2000/sea-attention@5609413b `src/models/common/lora.py` has it.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LowRankChange(nn.Module):
    """x A^T B^T, where B starts as zero.

    Args:
        in_width: width of x.
        out_width: width of the result.
        rank: r, rows of A.

    Raises:
        ValueError: a size that is not positive.
    """

    def __init__(self, in_width: int, out_width: int, rank: int) -> None:
        super().__init__()
        if min(in_width, out_width, rank) < 1:
            raise ValueError(f"widths and rank must be positive, got {in_width}, {out_width} and rank={rank}")
        self.lora_a = nn.Parameter(torch.empty(rank, in_width))
        self.lora_b = nn.Parameter(torch.zeros(out_width, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x: Float[Tensor, "*batch in_width"]) -> Float[Tensor, "*batch out_width"]:
        """The change, in the type of `x`."""
        return x @ self.lora_a.to(x.dtype).T @ self.lora_b.to(x.dtype).T
