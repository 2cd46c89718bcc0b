"""How Titans joins attention with memory: both normalised with learned weights, one made non-linear, multiplied.

Paper: "Titans: Learning to Memorize at Test Time", Behrouz, Zhong and Mirrokni, 2025, https://arxiv.org/abs/2501.00663,
section 4: the product "can be any non-linear gating".
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from regard.layers.head_norm import HeadNorm
from regard.ops.heads import merge_heads


class MemoryGate(nn.Module):
    """norm(attention) * silu(norm(memory)), head by head, then merged and projected.

    Args:
        dim: width of the model.
        head_dim: width of a head.
    """

    def __init__(self, dim: int, *, head_dim: int) -> None:
        super().__init__()
        self.attention_norm, self.memory_norm = HeadNorm(head_dim), HeadNorm(head_dim)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, mixed: Float[Tensor, "batch heads tokens two_widths"]) -> Float[Tensor, "batch tokens dim"]:
        """Both, joined and projected.

        Args:
            mixed: attention's result and the memory's, side by side in every head (`side_by_side`).
        """
        attention, memory = mixed.chunk(2, dim=-1)
        return self.o_proj(merge_heads(self.attention_norm(attention) * silu(self.memory_norm(memory))))


def side_by_side(
    attention: Float[Tensor, "batch heads tokens head_dim"], memory: Float[Tensor, "batch heads tokens head_dim"]
) -> Float[Tensor, "batch heads tokens two_widths"]:
    """Both results in one tensor."""
    return torch.cat((attention, memory), dim=-1)
