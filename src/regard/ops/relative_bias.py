"""Additive biases of attention in windows that depend on the offset from query to key alone.

Papers: "Swin Transformer", Liu et al., ICCV 2021, https://arxiv.org/abs/2103.14030, equation 4; "MaxViT", Tu et al.,
ECCV 2022, https://arxiv.org/abs/2204.01697, equation 1 (the table's layout here, offsets being key minus query).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate


def relative_bias(table: Float[Tensor, "heads offsets_y offsets_x"], size: int) -> Float[Tensor, "heads all all"]:
    """bias[h, (i, j), (y, x)] = table[h, y - i + P - 1, x - j + P - 1] for windows of P x P positions, row-major.

    A table for windows of another size is resized first, bilinearly between the centres of its cells.

    Args:
        table: a number for every offset of a window, 2 P' - 1 rows and columns.
        size: positions per side of a window, P.
    """
    offsets = 2 * size - 1
    if table.shape[1:] != (offsets, offsets):
        table = interpolate(table[None], size=(offsets, offsets), mode="bilinear", align_corners=False)[0]
    # shifted[h, a, b, y, x] = table[h, a + y, b + x], and a query further down begins further up in the table
    shifted = table.unfold(1, size, 1).unfold(2, size, 1)
    return shifted.flip(1, 2).reshape(table.shape[0], size * size, size * size)
