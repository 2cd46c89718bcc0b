"""Attention inside windows, or combs, of a feature map: the windows are folded into the batch.

A map is `(batch, y, x, channels)`. The layout "window" cuts it into contiguous windows of `size` positions; "grid" cuts
it into as many combs, each of `size` positions that lie as far apart as the map allows, so that a comb spans the map.
Papers: "Swin Transformer", Liu et al., ICCV 2021, https://arxiv.org/abs/2103.14030, section 3.1 (windows); "MaxViT",
Tu et al., ECCV 2022, https://arxiv.org/abs/2204.01697, section 3.2 (grid).
"""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import pad

from regard.ops.softmax_attention import softmax_attention, softmax_weights

Layout = Literal["window", "grid"]
Size = tuple[int, int]
Maps = Float[Tensor, "batch y x channels"]
AnyMaps = Shaped[Tensor, "batch y x channels"]
"""Numbers of positions are cut like features."""

_AXES = {"window": "(ny sy) (nx sx)", "grid": "(sy ny) (sx nx)"}


def padded_space(space: Size, size: Size) -> Size:
    """The smallest multiples of `size` that hold a map of `space` positions."""
    return (-(-space[0] // size[0]) * size[0], -(-space[1] // size[1]) * size[1])


def pad_to_multiple(x: AnyMaps, size: Size) -> Shaped[Tensor, "batch full_y full_x channels"]:
    """Zeros at the bottom and at the right, up to multiples of `size`; `x` itself where nothing is missing."""
    height, width = x.shape[1:3]
    full_height, full_width = padded_space((height, width), size)
    if (full_height, full_width) == (height, width):
        return x
    return pad(x, (0, 0, 0, full_width - width, 0, full_height - height))


def split_windows(x: AnyMaps, size: Size, *, layout: Layout = "window") -> Shaped[Tensor, "windows positions channels"]:
    """The windows of a map in row-major order, those of an image together, and row-major positions in each.

    Raises:
        ValueError: a map that the windows do not fill.
    """
    _check_filled(x, size)
    sy, sx = size
    return rearrange(x, f"b {_AXES[layout]} c -> (b ny nx) (sy sx) c", sy=sy, sx=sx)


def merge_windows(
    windows: Float[Tensor, "windows positions channels"], size: Size, space: Size, *, layout: Layout = "window"
) -> Maps:
    """The map of `space` positions whose `split_windows` is `windows`."""
    (sy, sx), (ny, nx) = size, (space[0] // size[0], space[1] // size[1])
    return rearrange(windows, f"(b ny nx) (sy sx) c -> b {_AXES[layout]} c", sy=sy, sx=sx, ny=ny, nx=nx)


def attend_in_windows(
    qkv: Float[Tensor, "batch y x three_channels"],
    size: Size,
    *,
    num_heads: int,
    layout: Layout = "window",
    bias: Float[Tensor, "#windows heads positions positions"] | None = None,
    dropout: float = 0.0,
) -> Maps:
    """softmax(q k^T / sqrt(d) + bias) v inside every window.

    Projecting the map before cutting it leaves a single copy, which folds windows and heads at once.

    Args:
        qkv: queries, keys and values, one after the other, each with its heads one after the other.
        size: positions of a window, rows and columns; the map must be filled by them.
        num_heads: number of heads.
        layout: contiguous windows, or combs.
        bias: added to the scores of every window.
        dropout: probability of dropping a weight.

    Raises:
        ValueError: a map that the windows do not fill.
    """
    q, k, v = _fold_heads(qkv, size, num_heads, layout)
    mixed = softmax_attention(q, k, v, bias=bias, dropout=dropout)
    (sy, sx), ny, nx = size, qkv.shape[1] // size[0], qkv.shape[2] // size[1]
    pattern = f"(b ny nx) h (sy sx) d -> b {_AXES[layout]} (h d)"
    return rearrange(mixed, pattern, sy=sy, sx=sx, ny=ny, nx=nx)


def window_weights(
    qkv: Float[Tensor, "batch y x three_channels"],
    size: Size,
    *,
    num_heads: int,
    layout: Layout = "window",
    bias: Float[Tensor, "#windows heads positions positions"] | None = None,
) -> Float[Tensor, "windows heads positions positions"]:
    """The weights of `attend_in_windows`."""
    q, k, _ = _fold_heads(qkv, size, num_heads, layout)
    return softmax_weights(q, k, bias=bias)


def window_numbers(space: Size, size: Size, *, layout: Layout = "window", device: torch.device) -> Int[Tensor, "n p"]:
    """For every window of the padded map the row-major numbers of its positions in the map; -1 = padding."""
    height, width = space
    numbers = torch.arange(height * width, device=device).view(1, height, width, 1)
    full_height, full_width = padded_space(space, size)
    numbers = pad(numbers, (0, 0, 0, full_width - width, 0, full_height - height), value=-1)
    return split_windows(numbers, size, layout=layout)[..., 0]


def dense_map(
    weights: Float[Tensor, "windows heads positions positions"], numbers: Int[Tensor, "n positions"], positions: int
) -> Float[Tensor, "batch heads all all"]:
    """Weights inside windows as one map over all positions, row-major; padding has no row and no column.

    Args:
        weights: those of every window, the windows of an image together.
        numbers: from `window_numbers`.
        positions: number of positions of the map.
    """
    count = numbers.shape[0]
    batch, heads = weights.shape[0] // count, weights.shape[1]
    weights = weights.reshape(batch, count, *weights.shape[1:]).transpose(1, 2)
    # one row and one column more take what belongs to padding
    whole = weights.new_zeros(batch, heads, positions + 1, positions + 1)
    rows, columns = numbers[:, :, None], numbers[:, None, :]
    whole[:, :, rows, columns] = weights
    return whole[:, :, :positions, :positions]


def _fold_heads(qkv: Tensor, size: Size, num_heads: int, layout: Layout) -> Tensor:
    _check_filled(qkv, size)
    sy, sx = size
    pattern = f"b {_AXES[layout]} (t h d) -> t (b ny nx) h (sy sx) d"
    return rearrange(qkv, pattern, t=3, h=num_heads, sy=sy, sx=sx)


def _check_filled(x: Tensor, size: Size) -> None:
    height, width = x.shape[1:3]
    if min(size) < 1 or height % size[0] or width % size[1]:
        raise ValueError(f"windows of {size[0]} x {size[1]} positions do not fill a map of {height} x {width}")
