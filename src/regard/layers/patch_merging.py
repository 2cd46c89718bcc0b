"""Patch merging of Swin: two by two positions become one, of another width.

Paper: "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", Liu et al., ICCV 2021,
https://arxiv.org/abs/2103.14030, section 3.1.
Compared with LeapLabTHU/Agent-Attention@207ce3eb, `agent_transformer/models/agent_swin.py:PatchMerging`, and with timm.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from regard.ops.windows import pad_to_multiple


class PatchMerging(nn.Module):
    """W norm([upper left | lower left | upper right | lower right]) of a map whose channels lie last.

    A map with an odd number of rows or columns is padded with zeros at the bottom or at the right.

    Args:
        in_channels: channels of the map.
        dim: channels afterwards.
    """

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_channels)
        self.reduction = nn.Linear(4 * in_channels, dim, bias=False)

    def forward(self, x: Float[Tensor, "batch y x in_channels"]) -> Float[Tensor, "batch sy sx dim"]:
        """Half of the rows and of the columns, rounded up."""
        pairs = pad_to_multiple(x, (2, 2)).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        return self.reduction(self.norm(pairs.permute(0, 1, 3, 4, 2, 5).flatten(3)))
