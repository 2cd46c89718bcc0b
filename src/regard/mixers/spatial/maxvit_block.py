"""MaxViT's block attention: attention with relative positions inside contiguous windows.

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
    name="maxvit_block",
    system="maxvit",
    paper=MAXVIT_PAPER,
    traits=TRAITS,
    example=Example(kwargs={"channels": 15, "num_heads": 3, "window_size": 4}, batch=2, space=(6, 9)),
)
class MaxViTBlockAttention(RelativeAttention):
    """Block attention: softmax(Q K^T / sqrt(d) + B) V inside windows of P x P neighbours, whose offsets choose B.

    Args:
        channels: number of channels, C.
        num_heads: number of heads; must divide `channels`.
        window_size: positions per side of a window, P.
        base_size: positions per side of the windows that the table of B is made for, which is resized bilinearly;
            None = `window_size`.

    Raises:
        ValueError: heads that do not divide the channels, or a window that is not positive.

    Cost: 4 N C^2 + 2 N P^2 C MACs for N positions.
    """

    layout: ClassVar[Layout] = "window"

    def __init__(self, channels: int, *, num_heads: int, window_size: int = 7, base_size: int | None = None) -> None:
        super().__init__(channels, num_heads=num_heads, size=window_size, base_size=base_size)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, space: tuple[int, ...]) -> int:
        """Projections of the map, products in the windows of the padded map."""
        return cls.macs_in_windows(channels=options.channels, size=options.window_size, batch=batch, space=space)
