"""Swin's attention: windows that shift by half a window in every other block, with a bias for every offset.

Paper: "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", Liu et al., ICCV 2021,
https://arxiv.org/abs/2103.14030, section 3.2 and equation 4.
Compared with LeapLabTHU/Agent-Attention@207ce3eb, `agent_transformer/models/agent_swin.py:WindowAttention` and
`SwinTransformerBlock`, and with timm's `swin_*`. As there, a window is no larger than the map and a map of a single
window does not shift, here by rows and by columns; maps that windows do not fill are padded with zeros at the bottom
and at the right before the projection, which are attended to. The padded map is rolled, as in the authors' detectors;
timm pads the rolled one, whose ends its mask then misses. Positions that the shift has brought together from two
ends of the map are hidden from each other with minus infinity instead of -100.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.layers.derived_by_size import ModuleWithDerived
from regard.ops.heads import head_width
from regard.ops.softmax_attention import softmax_attention
from regard.ops.windows import Size, attend_in_windows, pad_to_multiple, split_windows

Maps = Float[Tensor, "batch y x channels"]


def fitted_window(space: Size, window_size: int, *, shifted: bool) -> tuple[Size, Size]:
    """Size of a window, no larger than the map, and by how much it shifts: by nothing where the map is one window."""
    size = (min(window_size, space[0]), min(window_size, space[1]))
    shift = tuple(window_size // 2 if shifted and length > window_size else 0 for length in space)
    return size, (shift[0], shift[1])


def shift_map(x: Maps, shift: Size, *, back: bool = False) -> Maps:
    """The map rolled up and to the left by `shift`, or back; `x` itself where nothing shifts."""
    if shift == (0, 0):
        return x
    way = 1 if back else -1
    return x.roll((way * shift[0], way * shift[1]), dims=(1, 2))


class ShiftedWindowAttention(ModuleWithDerived):
    """softmax(Q K^T / sqrt(d) + B) V inside every window, B[i, j] from a table of offsets.

    Args:
        channels: number of channels, C.
        num_heads: number of heads; must divide `channels`.
        window_size: positions per side of a window, P.
        shifted: shift the windows by half their size.
        qkv_bias: biases in the projections of queries, keys and values.

    Raises:
        ValueError: heads that do not divide the channels, or a window that is not positive.

    Cost: 4 N C^2 + 2 N P^2 C MACs for N positions, padding included.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        window_size: int,
        shifted: bool = False,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        head_width(channels, num_heads)
        if window_size < 1:
            raise ValueError(f"window_size must be positive, got {window_size}")
        self.num_heads = num_heads
        self.window_size = window_size
        self.shifted = shifted
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.o_proj = nn.Linear(channels, channels)
        self.offset_bias = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.offset_bias, std=0.02)

    def forward(self, x: Maps) -> Maps:
        """Windows of the padded and shifted map, shifted back and cropped."""
        height, width = x.shape[1], x.shape[2]
        size, shift = fitted_window((height, width), self.window_size, shifted=self.shifted)
        padded = shift_map(pad_to_multiple(x, size), shift)
        space = (padded.shape[1], padded.shape[2])
        (bias,) = self.derive((space, size, shift), lambda: (self._bias(space, size, shift),))
        qkv = self.qkv(padded)
        if shift == (0, 0):
            mixed = attend_in_windows(qkv, size, num_heads=self.num_heads, bias=bias)
        else:
            mixed = _attend(qkv, size, bias, num_heads=self.num_heads)
        return self.o_proj(shift_map(mixed, shift, back=True)[:, :height, :width])

    def _bias(self, space: Size, size: Size, shift: Size) -> Tensor:
        """`(1, heads, p, p)` for all windows, or, where they shift, `(1, windows * heads, p, p)`."""
        bias = offset_bias(self.offset_bias, self.window_size, size)
        if shift == (0, 0):
            return bias[None]
        together = unmoved_together(space, size, shift, device=bias.device)
        return bias.masked_fill(~together[:, None], -torch.inf).flatten(0, 1)[None]


def offset_bias(
    table: Float[Tensor, "offsets heads"], window_size: int, size: Size
) -> Float[Tensor, "heads positions positions"]:
    """bias[h, i, j] = table[(row_i - row_j + P - 1) (2 P - 1) + column_i - column_j + P - 1, h], positions row-major.

    Args:
        table: a number per head for every offset within a window of P x P positions.
        window_size: P.
        size: rows and columns of the windows that the bias is for, at most P.
    """
    rows, columns = (torch.arange(length, device=table.device) for length in size)
    across = 2 * window_size - 1
    place = (rows[:, None] * across + columns).flatten()
    index = place[:, None] - place[None, :] + (window_size - 1) * (across + 1)
    return table[index].permute(2, 0, 1)


def unmoved_together(
    space: Size, size: Size, shift: Size, *, device: torch.device
) -> Bool[Tensor, "windows positions positions"]:
    """Which positions of a window of the shifted map were neighbours before it was rolled."""
    wrapped = [torch.arange(length, device=device) >= length - by for length, by in zip(space, shift, strict=True)]
    region = 2 * wrapped[0][:, None].long() + wrapped[1].long()
    regions = split_windows(region[None, :, :, None], size)[..., 0]
    return regions[:, :, None] == regions[:, None, :]


def _attend(qkv: Tensor, size: Size, bias: Tensor, *, num_heads: int) -> Maps:
    """Windows as further heads, so that their biases are shared by all images."""
    (sy, sx), ny = size, qkv.shape[1] // size[0]
    pattern = "b (ny sy) (nx sx) (t h d) -> t b (ny nx h) (sy sx) d"
    q, k, v = rearrange(qkv, pattern, t=3, h=num_heads, sy=sy, sx=sx)
    mixed = softmax_attention(q, k, v, bias=bias)
    return rearrange(mixed, "b (ny nx h) (sy sx) d -> b (ny sy) (nx sx) (h d)", ny=ny, h=num_heads, sy=sy, sx=sx)


SHIFTED_WINDOW_NAMES = (
    (r"(^|\.)relative_position_bias_table$", r"\1offset_bias"),
    (r"(^|\.)proj\.", r"\1o_proj."),
)
"""The usual names of the layer's parts as ours, without the layer's own prefix."""
