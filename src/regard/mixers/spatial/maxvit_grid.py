"""MaxViT's grid attention: attention with relative positions inside combs that span the map.

Paper: "MaxViT: Multi-Axis Vision Transformer", Tu et al., ECCV 2022, https://arxiv.org/abs/2204.01697, section 3.2.
Compared with google-research/maxvit@70a47072, `maxvit/models/maxvit.py:Attention` and `MaxViTBlock`. What differs, and
the mathematics: `regard.layers.relative_attention`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

from regard.layers.relative_attention import MAXVIT_PAPER, TRAITS, RelativeAttention
from regard.metadata import Example
from regard.ops.windows import Layout
from regard.registry import register


@register(
    name="maxvit_grid",
    system="maxvit",
    paper=MAXVIT_PAPER,
    traits=TRAITS,
    example=Example(kwargs={"channels": 15, "num_heads": 3, "grid_size": 4}, batch=2, space=(6, 9)),
)
class MaxViTGridAttention(RelativeAttention):
    """Grid attention: softmax(Q K^T / sqrt(d) + B) V inside combs of G x G positions, as far apart as the map allows.

    On a map of Y x X positions the comb (u, v) holds the positions (a Y / G + u, b X / G + v), a and b below G.

    Args:
        channels: number of channels, C.
        num_heads: number of heads; must divide `channels`.
        grid_size: positions per side of a comb, G.
        base_size: positions per side of the combs that the table of B is made for, which is resized bilinearly;
            None = `grid_size`.

    Raises:
        ValueError: heads that do not divide the channels, or a comb that is not positive.

    Cost: 4 N C^2 + 2 N G^2 C MACs for N positions.
    """

    layout: ClassVar[Layout] = "grid"

    def __init__(self, channels: int, *, num_heads: int, grid_size: int = 7, base_size: int | None = None) -> None:
        super().__init__(channels, num_heads=num_heads, size=grid_size, base_size=base_size)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, space: tuple[int, ...]) -> int:
        """Projections of the map, products in the combs of the padded map."""
        return cls.macs_in_windows(channels=options.channels, size=options.grid_size, batch=batch, space=space)
