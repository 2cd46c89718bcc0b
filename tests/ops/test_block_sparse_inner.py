"""Block-sparse attention for inner blocks against the dense form, and which blocks are inner ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regard.ops import block_sparse_inner
from regard.ops.block_sparse import BlockChoice, Reach, block_sparse_attention, block_sparse_attention_reference
from regard.ops.block_sparse_inner import inner_blocks

DOUBLE = torch.float64


def inputs(queries: int, keys: int, *, dtype: torch.dtype = DOUBLE) -> tuple[Tensor, Tensor, Tensor]:
    """Heads beside the width in memory, as a projection leaves them; two heads of queries share keys."""
    shapes = ((2, queries, 4, 6), (2, keys, 2, 6), (2, keys, 2, 5))
    q, k, v = (torch.randn(shape, dtype=dtype).transpose(1, 2) for shape in shapes)
    return q, k, v


def random_choice(queries: int, keys: int, *, block_q: int, block_k: int, chosen: int = 5) -> BlockChoice:
    """Blocks from anywhere: among the sinks, in the window, and after the queries."""
    blocks, grid = -(-queries // block_q), -(-keys // block_k)
    starts = torch.rand(2, 4, blocks, grid).argsort(dim=-1)[..., :chosen] * block_k
    return BlockChoice(starts, torch.randint(0, chosen + 1, (2, 4, blocks)), block_q=block_q, block_k=block_k)


def places(first: int) -> Tensor:
    return torch.full((2,), first)


@pytest.mark.parametrize(("queries", "keys", "first"), [(61, 61, 0), (37, 101, 64), (24, 97, 17), (41, 43, 0)])
@pytest.mark.parametrize(("block_q", "block_k"), [(4, 3), (5, 1), (3, 7)])
@pytest.mark.parametrize(("window", "sinks"), [(5, 0), (5, 4), (13, 7)])
@pytest.mark.parametrize("scores_bytes", [1, 1 << 20])
def test_it_is_the_dense_form(
    queries: int,
    keys: int,
    first: int,
    block_q: int,
    block_k: int,
    window: int,
    sinks: int,
    scores_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(block_sparse_inner, "SCORES_BYTES", scores_bytes)
    q, k, v = inputs(queries, keys)
    choice, reach = random_choice(queries, keys, block_q=block_q, block_k=block_k), Reach(window, sinks)
    assert inner_blocks(q, k, v, choice, reach, first=places(first)) is not None
    expected = block_sparse_attention_reference(q, k, v, choice, reach, first=places(first))
    torch.testing.assert_close(block_sparse_attention(q, k, v, choice, reach, first=places(first)), expected)


def test_nothing_need_be_chosen() -> None:
    q, k, v = inputs(61, 61)
    choice, reach = random_choice(61, 61, block_q=4, block_k=1, chosen=0), Reach(7, 3)
    expected = block_sparse_attention_reference(q, k, v, choice, reach, first=places(0))
    torch.testing.assert_close(block_sparse_attention(q, k, v, choice, reach, first=places(0)), expected)


@pytest.mark.parametrize("size", [1e-3, 30.0, 1e4])
def test_scores_of_any_size_neither_overflow_nor_vanish(size: float) -> None:
    """From some block on the scores are large, with either sign: weights without a shift would be 0 or infinite."""
    q, k, v = inputs(61, 61)
    q[:, :, 30:] *= size
    k[:, :, :, 0], q[:, :, 50:, 0] = 1.0, -10 * size
    choice, reach = random_choice(61, 61, block_q=4, block_k=3), Reach(5, 2)
    expected = block_sparse_attention_reference(q, k, v, choice, reach, first=places(0))
    torch.testing.assert_close(block_sparse_attention(q, k, v, choice, reach, first=places(0)), expected)


def test_a_query_that_is_not_a_number_spoils_its_own_row_alone() -> None:
    q, k, v = inputs(61, 61)
    q[:, :, 41] = torch.nan
    y = block_sparse_attention(q, k, v, random_choice(61, 61, block_q=4, block_k=3), Reach(5, 2), first=places(0))
    wrong = y.isnan().any(dim=-1)
    assert bool(wrong[:, :, 41].all())
    assert not bool(wrong[:, :, torch.arange(61) != 41].any())


def test_the_result_is_that_of_the_general_form_with_gradients() -> None:
    q, k, v = inputs(61, 61)
    choice, reach = random_choice(61, 61, block_q=4, block_k=3), Reach(5, 2)
    without = block_sparse_attention(q, k, v, choice, reach, first=places(0))
    q.requires_grad_()
    assert inner_blocks(q, k, v, choice, reach, first=places(0)) is None
    torch.testing.assert_close(block_sparse_attention(q, k, v, choice, reach, first=places(0)).detach(), without)
    with torch.no_grad():
        assert inner_blocks(q, k, v, choice, reach, first=places(0)) is not None


def test_keys_of_another_type_are_converted_where_there_are_queries_enough() -> None:
    q, k, v = inputs(61, 61, dtype=torch.bfloat16)
    choice, reach = random_choice(61, 61, block_q=4, block_k=3), Reach(5, 2)
    expected = block_sparse_attention_reference(*(x.double() for x in (q, k, v)), choice, reach, first=places(0))
    y = block_sparse_attention(q, k, v, choice, reach, first=places(0))
    assert y.dtype == torch.bfloat16
    assert (y - expected).norm() / expected.norm() < 0.01
    narrow, many = q.float()[:, :, :8], k.repeat(1, 1, 20, 1)
    some = BlockChoice(choice.starts[:, :, :2], choice.counts[:, :, :2], block_q=4, block_k=3)
    assert inner_blocks(narrow, many, many, some, reach, first=places(1100)) is None
    assert inner_blocks(narrow, many.float(), many.float(), some, reach, first=places(1100)) == (1100, range(2))


def test_blocks_at_the_ends_are_not_inner_ones() -> None:
    q, k, v = inputs(61, 61)
    choice = random_choice(61, 61, block_q=4, block_k=3)
    # the first query of block 3 is number 12: its window begins at 8, behind the sinks; the last block is not full
    assert inner_blocks(q, k, v, choice, Reach(5, 8), first=places(0)) == (0, range(3, 15))
    assert inner_blocks(q, k, v, choice, Reach(5, 9), first=places(0)) == (0, range(4, 15))
    assert inner_blocks(q, k, v, choice, Reach(3, 0), first=places(0)) is None
    assert inner_blocks(q, k, v, choice, Reach(5, 0), first=torch.tensor([0, 1])) is None
    assert inner_blocks(q, k, v, choice, Reach(61, 0), first=places(0)) is None
