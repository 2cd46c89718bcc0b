"""Halo attention against a loop over positions and keys; neighbourhoods, relative logits, and the dense map."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regard.ops import halo
from regard.ops.halo import (
    dense_halo_map,
    gather_neighbourhoods,
    halo_attention,
    halo_weights,
    neighbour_numbers,
    per_pixel_attention,
    relative_logits,
)

Operands = tuple[Tensor, Tensor, Tensor, Tensor]


def operands(
    space: tuple[int, int], window: int, *, heads: int = 2, width: int = 3, value: int = 2, stride: int = 1
) -> Operands:
    """Queries, keys and values, and tables, all in float64."""
    queries = tuple(-(-size // stride) for size in space)
    tables = torch.randn(2, 2 * window - 1, width, dtype=torch.float64)
    q = torch.randn(2, *queries, heads * width, dtype=torch.float64)
    return q, torch.randn(2, *space, heads * (width + value), dtype=torch.float64), tables[0], tables[1]


def by_loop(
    parts: Operands, *, heads: int, block: int, reach: int, stride: int = 1, scaled: bool = False
) -> tuple[Tensor, Tensor]:
    """Query by query and key by key: the mixed values, and the sum of the weights on keys inside the map."""
    q, kv, rows, columns = parts
    height, width = kv.shape[1:3]
    side, window = block // stride, block + 2 * reach
    d, both = q.shape[-1] // heads, kv.shape[-1] // heads
    mixed = q.new_zeros(*q.shape[:3], heads * (both - d))
    inside = q.new_zeros(*q.shape[:3], heads)
    for y, x, h in torch.cartesian_prod(*(torch.arange(size) for size in (*q.shape[1:3], heads))).tolist():
        query = q[:, y, x, h * d : (h + 1) * d]
        scores, values, real = [], [], []
        for below in range(window):
            for right in range(window):
                at = (y // side * block - reach + below, x // side * block - reach + right)
                real.append(0 <= at[0] < height and 0 <= at[1] < width)
                pair = kv[:, *at, h * both : (h + 1) * both] if real[-1] else kv.new_zeros(len(kv), both)
                relative = query @ rows[below - y % side + window - 1] + query @ columns[right - x % side + window - 1]
                scores.append((query * pair[:, :d]).sum(dim=-1) / d**0.5 + relative / (d**0.5 if scaled else 1))
                values.append(pair[:, d:])
        weights = torch.stack(scores, dim=-1).softmax(dim=-1)
        mixed[:, y, x, h * (both - d) : (h + 1) * (both - d)] = torch.einsum("bj,jbe->be", weights, torch.stack(values))
        inside[:, y, x, h] = weights[:, torch.tensor(real)].sum(dim=-1)
    return mixed, inside


@pytest.mark.parametrize(
    ("space", "block", "reach", "stride", "scaled"),
    [
        ((4, 6), 2, 1, 1, False),
        ((5, 7), 3, 2, 1, True),
        ((4, 8), 4, 1, 2, False),
        ((7, 5), 4, 2, 2, True),
        ((3, 2), 5, 0, 1, False),
        ((1, 1), 4, 1, 2, False),
        ((6, 7), 6, 1, 3, False),
    ],
)
def test_is_a_loop_over_queries_and_keys(
    space: tuple[int, int], block: int, reach: int, stride: int, scaled: bool
) -> None:
    parts = operands(space, block + 2 * reach, stride=stride)
    sizes = {"block_size": block, "halo_size": reach, "stride": stride}
    mixed = halo_attention(*parts, num_heads=2, scale_pos_embed=scaled, **sizes)
    expected, _ = by_loop(parts, heads=2, block=block, reach=reach, stride=stride, scaled=scaled)
    torch.testing.assert_close(mixed, expected)


def test_gradients_are_those_of_the_loop() -> None:
    parts = tuple(part.requires_grad_() for part in operands((3, 5), 4, heads=1, stride=1))
    weights = torch.randn(2, 3, 5, 2, dtype=torch.float64)
    ours = torch.autograd.grad((halo_attention(*parts, num_heads=1, block_size=2, halo_size=1) * weights).sum(), parts)
    expected, _ = by_loop(parts, heads=1, block=2, reach=1)
    torch.testing.assert_close(ours, torch.autograd.grad((expected * weights).sum(), parts))


@pytest.mark.parametrize(("space", "stride"), [((13, 7), 1), ((16, 6), 2)])
def test_a_few_rows_of_blocks_at_a_time_are_the_same(
    space: tuple[int, int], stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = operands(space, 6, stride=stride)
    sizes = {"block_size": 2, "halo_size": 2, "stride": stride}
    expected = halo_attention(*(part.requires_grad_() for part in parts), num_heads=2, **sizes)
    seen: list[int] = []
    attend = halo.softmax_attention

    def counted(q: Tensor, *others: Tensor, bias: Tensor) -> Tensor:
        seen.append(len(q))
        return attend(q, *others, bias=bias)

    monkeypatch.setattr(halo, "softmax_attention", counted)
    per_row = 2 * -(-space[1] // 2)
    for budget, rows in ((1, 1), (3 * per_row * 2 * (2 // stride) ** 2 * 36, 3)):
        monkeypatch.setattr(halo, "LOGITS_AT_ONCE", budget)
        seen.clear()
        with torch.no_grad():
            torch.testing.assert_close(halo_attention(*parts, num_heads=2, **sizes), expected)
        assert max(seen) == rows * per_row
        assert sum(seen) == -(-space[0] // 2) * per_row
        seen.clear()
        halo_attention(*parts, num_heads=2, **sizes)
        assert len(seen) == 1


def test_pixel_by_pixel_is_a_block_of_one() -> None:
    parts = operands((5, 7), 5)
    single = per_pixel_attention(*parts, num_heads=2, window=5)
    torch.testing.assert_close(single, by_loop(parts, heads=2, block=1, reach=2)[0])
    torch.testing.assert_close(halo_attention(*parts, num_heads=2, block_size=1, halo_size=2), single)


def test_a_neighbourhood_extends_its_block_by_the_halo() -> None:
    x = torch.arange(1.0, 25.0).view(1, 4, 6, 1)
    windows = gather_neighbourhoods(x, block_size=2, halo_size=1)
    assert windows.shape == (1, 2, 3, 1, 4, 4)
    assert windows[0, 0, 1, 0].tolist() == [[0, 0, 0, 0], [2, 3, 4, 5], [8, 9, 10, 11], [14, 15, 16, 17]]
    assert windows[0, 1, 2, 0, :, -1].tolist() == [0, 0, 0, 0]


def test_relative_logits_take_the_offset_from_query_to_key() -> None:
    q = torch.randn(5, 3, 4, 7, dtype=torch.float64)
    rows, columns = torch.randn(2, 9, 7, dtype=torch.float64)
    logits = relative_logits(q, rows, columns)
    assert logits.shape == (5, 3, 4, 25)
    for y, x, below, right in ((0, 0, 0, 0), (1, 0, 4, 2), (0, 1, 1, 4), (1, 1, 0, 3)):
        expected = q[:, :, 2 * y + x] @ (rows[below - y + 4] + columns[right - x + 4])
        torch.testing.assert_close(logits[:, :, 2 * y + x, 5 * below + right], expected)


def test_offsets_that_no_pair_has_are_without_effect() -> None:
    q, kv, rows, columns = operands((6, 6), 7)
    expected = halo_attention(q, kv, rows, columns, num_heads=2, block_size=3, halo_size=2)
    rows[:4], columns[:4] = torch.nan, torch.nan
    torch.testing.assert_close(halo_attention(q, kv, rows, columns, num_heads=2, block_size=3, halo_size=2), expected)


@pytest.mark.parametrize("space", [(6, 4), (5, 7)])
def test_the_dense_map_times_the_values_is_the_result(space: tuple[int, int]) -> None:
    parts = operands(space, 5)
    sizes = {"block_size": 3, "halo_size": 1}
    weights = halo_weights(*parts, num_heads=2, **sizes)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1], dtype=torch.float64))
    dense = dense_halo_map(weights, space, **sizes)
    values = parts[1].unflatten(-1, (2, 5))[..., 3:].flatten(1, 2).transpose(1, 2)
    mixed = (dense @ values).transpose(1, 2).reshape(2, *space, 4)
    torch.testing.assert_close(mixed, halo_attention(*parts, num_heads=2, **sizes))
    _, inside = by_loop(parts, heads=2, block=3, reach=1)
    torch.testing.assert_close(dense.sum(dim=-1), inside.flatten(1, 2).transpose(1, 2))


def test_what_lies_beyond_the_map_has_no_number() -> None:
    numbers = neighbour_numbers((2, 3), block_size=2, halo_size=1, device=torch.device("cpu"))
    left, right = numbers.view(2, 4, 4).tolist()
    assert left == [[-1, -1, -1, -1], [-1, 0, 1, 2], [-1, 3, 4, 5], [-1, -1, -1, -1]]
    assert right == [[-1, -1, -1, -1], [1, 2, -1, -1], [4, 5, -1, -1], [-1, -1, -1, -1]]


def test_ill_sizes_are_named() -> None:
    x = torch.zeros(1, 4, 6, 3)
    with pytest.raises(ValueError, match="blocks of 4 x 4 positions do not fill a map of 4 x 6"):
        gather_neighbourhoods(x, block_size=4, halo_size=1)
    with pytest.raises(ValueError, match="blocks of 0 x 0 positions"):
        gather_neighbourhoods(x, block_size=0, halo_size=1)
    with pytest.raises(ValueError, match="halo_size must not be negative, got -1"):
        gather_neighbourhoods(x, block_size=2, halo_size=-1)
    with pytest.raises(ValueError, match="stride must divide block_size=5, got 2"):
        halo_attention(*operands((5, 5), 7, stride=2), num_heads=2, block_size=5, halo_size=1, stride=2)
