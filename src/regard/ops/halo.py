"""Blocked local attention with a halo: the queries of a block share one enlarged neighbourhood of keys.

A map is `(batch, y, x, channels)`, cut into blocks of `block_size` positions per side. The keys of a block are those of
the window that extends it by `halo_size` in each direction, `window = block_size + 2 halo_size` positions per side.
Beyond the map keys and values are zero vectors, which are attended to: there is no mask. The gathered windows take
(window / block_size)^2 times the map's memory, where a window around every position takes window^2 times.
Paper: "Scaling Local Self-Attention for Parameter Efficient Visual Backbones", Vaswani et al., CVPR 2021,
https://arxiv.org/abs/2103.12731, blocked local attention with haloing (figure 1).
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import linear, pad

from regard.ops.softmax_attention import softmax_attention, softmax_weights
from regard.ops.windows import pad_to_multiple, padded_space, window_numbers

Size = tuple[int, int]
Maps = Float[Tensor, "batch y x channels"]
Table = Float[Tensor, "offsets head_dim"]

LOGITS_AT_ONCE = 2**20
"""Logits that are made together where nothing of them is kept: 4 MiB, about what a core's caches hold."""


def gather_neighbourhoods(
    x: Shaped[Tensor, "batch y x channels"], *, block_size: int, halo_size: int
) -> Shaped[Tensor, "batch ny nx channels window window"]:
    """The window of every block: a view of the map inside a border of `halo_size` zeros.

    Raises:
        ValueError: a map that the blocks do not fill, or a negative halo.
    """
    height, width = x.shape[1:3]
    if block_size < 1 or height % block_size or width % block_size:
        raise ValueError(f"blocks of {block_size} x {block_size} positions do not fill a map of {height} x {width}")
    if halo_size < 0:
        raise ValueError(f"halo_size must not be negative, got {halo_size}")
    return _windows(_bordered(x, block_size, halo_size), block_size, halo_size)


def _windows(bordered: Tensor, block_size: int, halo_size: int) -> Tensor:
    window = block_size + 2 * halo_size
    return bordered.unfold(1, window, block_size).unfold(2, window, block_size)


def relative_logits(
    q: Float[Tensor, "blocks heads queries head_dim"], row_table: Table, column_table: Table
) -> Float[Tensor, "blocks heads queries keys"]:
    """The logit q . R_rows[Y - y + w - 1] + q . R_columns[X - x + w - 1] of a query at (y, x) and a key at (Y, X).

    A query's place counts from the block's corner and a key's from the window's, so that the halo shifts all indices
    alike. Two small products with the tables, and a sum.

    Args:
        q: queries of square blocks, row-major.
        row_table: a vector for each of the 2 w - 1 row offsets.
        column_table: the same for columns.
    """
    side, window = round(q.shape[2] ** 0.5), (row_table.shape[0] + 1) // 2
    # the offsets that no pair has are left out
    used = slice(window - side, None)
    grid = q.unflatten(2, (side, side))
    along_x = _shifted(linear(grid, column_table[used].to(q.dtype)), window)
    along_y = _shifted(linear(grid.transpose(2, 3), row_table[used].to(q.dtype)), window).transpose(2, 3)
    return (along_x[..., None, :] + along_y[..., None]).flatten(4).flatten(2, 3)


def _shifted(scores: Float[Tensor, "*some side offsets"], window: int) -> Float[Tensor, "*some side window"]:
    """Row i from its entry `side - 1 - i` on: flattened rows, read with a step of one entry less, are skewed so."""
    side, offsets = scores.shape[-2:]
    if side == 1:
        return scores
    flat = scores.flatten(-2)[..., side - 1 :]
    return flat[..., : side * (offsets - 1)].unflatten(-1, (side, offsets - 1))[..., :window]


def halo_attention(
    q: Float[Tensor, "batch query_y query_x heads_head_dim"],
    kv: Float[Tensor, "batch y x heads_both_dims"],
    row_table: Table,
    column_table: Table,
    *,
    num_heads: int,
    block_size: int,
    halo_size: int,
    stride: int = 1,
    scale_pos_embed: bool = False,
) -> Float[Tensor, "batch query_y query_x heads_value_dim"]:
    """softmax(q k^T / sqrt(d) + relative logits) v, block by block; any size, filled with zeros below and at the right.

    Args:
        q: queries, head after head; with a stride, of every second position.
        kv: for each head its key and then its value.
        row_table: a vector for each of the 2 window - 1 row offsets, shared by all heads.
        column_table: the same for columns.
        num_heads: number of heads.
        block_size: positions per side of a block of keys.
        halo_size: positions by which a window extends the block in each direction.
        stride: positions of the map per query, 1 or a divisor of `block_size`; offsets then count queries and keys
            each by their own index.
        scale_pos_embed: divide the relative logits by sqrt(d) too.

    Without gradients on a CPU the rows of blocks are taken a few at a time, which bounds the memory of the logits and
    costs no time.

    Raises:
        ValueError: a stride that does not divide the block, or a negative halo.
    """
    side, (height, width) = _side(block_size, halo_size, stride), q.shape[1:3]
    q, kv = pad_to_multiple(q, (side, side)), _bordered(kv, block_size, halo_size)
    tables, sizes = (row_table, column_table), (num_heads, block_size, halo_size, side)
    blocks, step = q.shape[1] // side, _rows_at_once(q, kv, *tables, sizes=sizes)
    mixed = []
    for row in range(0, blocks, step):
        end = min(row + step, blocks)
        band = kv[:, row * block_size : end * block_size + 2 * halo_size]
        folded, k, v, bias = _fold(q[:, row * side : end * side], band, *tables, *sizes, scale_pos_embed)
        part = softmax_attention(folded, k, v, bias=bias)
        pattern = "(b ny nx) h (sy sx) d -> b (ny sy) (nx sx) (h d)"
        mixed.append(rearrange(part, pattern, ny=end - row, nx=q.shape[2] // side, sy=side, sx=side))
    merged = mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=1)
    return merged[:, :height, :width]


def halo_weights(
    q: Float[Tensor, "batch query_y query_x heads_head_dim"],
    kv: Float[Tensor, "batch y x heads_both_dims"],
    row_table: Table,
    column_table: Table,
    *,
    num_heads: int,
    block_size: int,
    halo_size: int,
    stride: int = 1,
    scale_pos_embed: bool = False,
) -> Float[Tensor, "blocks heads queries keys"]:
    """The weights of `halo_attention`, block by block; those on the zeros beyond the map included."""
    side = _side(block_size, halo_size, stride)
    q, kv = pad_to_multiple(q, (side, side)), _bordered(kv, block_size, halo_size)
    folded, k, _, bias = _fold(q, kv, row_table, column_table, num_heads, block_size, halo_size, side, scale_pos_embed)
    return softmax_weights(folded, k, bias=bias)


def _side(block_size: int, halo_size: int, stride: int) -> int:
    """Queries per side of a block."""
    if stride < 1 or block_size % stride:
        raise ValueError(f"stride must divide block_size={block_size}, got {stride}")
    if halo_size < 0:
        raise ValueError(f"halo_size must not be negative, got {halo_size}")
    return block_size // stride


def _bordered(x: Shaped[Tensor, "batch y x channels"], block_size: int, halo_size: int) -> Tensor:
    """A map up to full blocks and inside a border of zeros."""
    rows, columns = padded_space((x.shape[1], x.shape[2]), (block_size, block_size))
    below, right = halo_size + rows - x.shape[1], halo_size + columns - x.shape[2]
    return pad(x, (0, 0, halo_size, right, halo_size, below))


def _rows_at_once(*operands: Tensor, sizes: tuple[int, int, int, int]) -> int:
    """Rows of blocks whose logits are made together."""
    q, (heads, block_size, halo_size, side) = operands[0], sizes
    rows = q.shape[1] // side
    kept = torch.is_grad_enabled() and any(operand.requires_grad for operand in operands)
    if kept or q.device.type != "cpu" or torch.compiler.is_compiling():
        return rows
    logits_per_row = q.shape[0] * side * q.shape[2] * heads * (block_size + 2 * halo_size) ** 2
    return min(rows, max(1, LOGITS_AT_ONCE // logits_per_row))


def _fold(
    q: Tensor,
    bordered: Tensor,
    row_table: Tensor,
    column_table: Tensor,
    num_heads: int,
    block_size: int,
    halo_size: int,
    side: int,
    scale_pos_embed: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values and relative logits of filled maps, the blocks folded into the batch."""
    head_dim = q.shape[-1] // num_heads
    pattern = "b (ny sy) (nx sx) (h d) -> (b ny nx) h (sy sx) d"
    queries = rearrange(q, pattern, h=num_heads, sy=side, sx=side)
    # before the neighbourhoods: what it needs in passing is gone when they come
    bias = relative_logits(queries * head_dim**-0.5 if scale_pos_embed else queries, row_table, column_table)
    windows = _windows(bordered, block_size, halo_size)
    # the only copy of the neighbourhoods: keys and values lie side by side in it
    both = rearrange(windows, "b ny nx (h d) sy sx -> (b ny nx) h (sy sx) d", h=num_heads)
    return queries, both[..., :head_dim], both[..., head_dim:], bias


# --------------------------------------------------------------------------------------------------- the map


def neighbour_numbers(space: Size, *, block_size: int, halo_size: int, device: torch.device) -> Int[Tensor, "n keys"]:
    """For the window of every block the row-major numbers of its positions in the map; -1 = beyond the map."""
    height, width = space
    # counted from 1, since what is padded is 0
    numbers = torch.arange(1, height * width + 1, device=device).view(1, height, width, 1)
    windows = _windows(_bordered(numbers, block_size, halo_size), block_size, halo_size)
    return rearrange(windows, "1 ny nx 1 sy sx -> (ny nx) (sy sx)") - 1


def dense_halo_map(
    weights: Float[Tensor, "blocks heads queries keys"], space: Size, *, block_size: int, halo_size: int
) -> Float[Tensor, "batch heads positions positions"]:
    """The weights of every block, without a stride, as one map over row-major positions; what lies beyond has no row
    and no column.
    """
    device, positions = weights.device, space[0] * space[1]
    queries = window_numbers(space, (block_size, block_size), device=device)
    keys = neighbour_numbers(space, block_size=block_size, halo_size=halo_size, device=device)
    batch, heads = weights.shape[0] // len(queries), weights.shape[1]
    weights = weights.reshape(batch, len(queries), *weights.shape[1:]).transpose(1, 2)
    # one row and one column more take what lies beyond the map
    whole = weights.new_zeros(batch, heads, positions + 1, positions + 1)
    whole[:, :, queries[:, :, None], keys[:, None, :]] = weights
    return whole[:, :, :positions, :positions]


# --------------------------------------------------------------------------------------------------- pixel by pixel


def per_pixel_attention(
    q: Float[Tensor, "batch y x heads_head_dim"],
    kv: Float[Tensor, "batch y x heads_both_dims"],
    row_table: Table,
    column_table: Table,
    *,
    num_heads: int,
    window: int,
) -> Float[Tensor, "batch y x heads_value_dim"]:
    """What the blocked form replaces: every position gathers its own window, which is centred on it.

    The plain reference of `halo_attention` with blocks of one position and a halo of `window // 2`.

    Args:
        q: queries, head after head.
        kv: for each head its key and then its value.
        row_table: a vector for each of the 2 window - 1 row offsets.
        column_table: the same for columns.
        num_heads: number of heads.
        window: positions per side of a window, odd.
    """
    reach, head_dim = window // 2, q.shape[-1] // num_heads
    windows = pad(kv, (0, 0, reach, reach, reach, reach)).unfold(1, window, 1).unfold(2, window, 1)
    both = rearrange(windows, "b y x (h d) sy sx -> b y x h (sy sx) d", h=num_heads)
    queries = rearrange(q, "b y x (h d) -> b y x h 1 d", h=num_heads)
    along_y, along_x = queries @ row_table[window - 1 :].T, queries @ column_table[window - 1 :].T
    relative = (along_y[..., None] + along_x[..., None, :]).flatten(-2)
    scores = queries @ both[..., :head_dim].transpose(-2, -1) * head_dim**-0.5 + relative
    return rearrange(scores.softmax(dim=-1) @ both[..., head_dim:], "b y x h 1 d -> b y x (h d)")
