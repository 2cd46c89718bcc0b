"""Block-sparse attention against loops over queries and keys, its own dense form, and full attention."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from regard.measure import contraction_macs
from regard.ops import block_sparse
from regard.ops.block_sparse import (
    BlockChoice,
    Reach,
    block_sparse_attention,
    block_sparse_attention_reference,
    block_sparse_macs,
    block_sparse_visible,
)

DOUBLE = torch.float64


def random_choice(batch: int, heads: int, queries: int, keys: int, *, block_q: int, block_k: int) -> BlockChoice:
    """For each block of queries some blocks of keys, of the grid of `block_k`, in any order."""
    blocks, grid = -(-queries // block_q), -(-keys // block_k)
    chosen = min(3, grid)
    starts = torch.rand(batch, heads, blocks, grid).argsort(dim=-1)[..., :chosen] * block_k
    return BlockChoice(starts, torch.randint(0, chosen + 1, (batch, heads, blocks)), block_q=block_q, block_k=block_k)


def by_loops(q: Tensor, k: Tensor, v: Tensor, choice: BlockChoice, reach: Reach, first: Tensor) -> Tensor:
    batch, heads, queries, width = q.shape
    mixed = torch.zeros(batch, heads, queries, v.shape[-1], dtype=q.dtype)
    for b in range(batch):
        for h in range(heads):
            group = h // (heads // k.shape[1])
            for i in range(queries):
                block, row = i // choice.block_q, int(first[b]) + i
                held = choice.starts[b, h, block, : int(choice.counts[b, h, block])].tolist()
                seen = {start + j for start in held for j in range(choice.block_k)}
                seen |= set(range(reach.sinks)) | set(range(row - reach.window + 1, row + 1))
                keys = sorted(j for j in seen if 0 <= j <= row)
                powers = [math.exp(float(q[b, h, i] @ k[b, group, j]) / math.sqrt(width)) for j in keys]
                for power, j in zip(powers, keys, strict=True):
                    mixed[b, h, i] += power / sum(powers) * v[b, group, j]
    return mixed


def inputs(queries: int, keys: int, *, heads: int = 4, kv_heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(2, heads, queries, 6, dtype=DOUBLE),
        torch.randn(2, kv_heads, keys, 6, dtype=DOUBLE),
        torch.randn(2, kv_heads, keys, 5, dtype=DOUBLE),
    )


@pytest.mark.parametrize(("queries", "keys"), [(17, 17), (7, 23), (1, 13), (1, 1)])
@pytest.mark.parametrize(("block_q", "block_k"), [(4, 3), (1, 2), (5, 1)])
@pytest.mark.parametrize(("window", "sinks"), [(1, 0), (4, 2)])
def test_both_forms_are_the_loops(queries: int, keys: int, block_q: int, block_k: int, window: int, sinks: int) -> None:
    q, k, v = inputs(queries, keys)
    choice = random_choice(2, 4, queries, keys, block_q=block_q, block_k=block_k)
    reach, first = Reach(min(window, keys), min(sinks, keys)), torch.full((2,), keys - queries)
    expected = by_loops(q, k, v, choice, reach, first)
    torch.testing.assert_close(block_sparse_attention_reference(q, k, v, choice, reach, first=first), expected)
    torch.testing.assert_close(block_sparse_attention(q, k, v, choice, reach, first=first), expected)


def test_rows_may_stand_at_different_places() -> None:
    q, k, v = inputs(5, 29)
    choice = random_choice(2, 4, 5, 11, block_q=2, block_k=2)
    reach, first = Reach(3, 1), torch.tensor([6, 24])
    expected = by_loops(q, k, v, choice, reach, first)
    torch.testing.assert_close(block_sparse_attention(q, k, v, choice, reach, first=first), expected)


def test_slices_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = inputs(37, 37)
    choice = random_choice(2, 4, 37, 37, block_q=4, block_k=3)
    reach, first = Reach(5, 2), torch.zeros(2, dtype=torch.int64)
    whole = block_sparse_attention(q, k, v, choice, reach, first=first)
    monkeypatch.setattr(block_sparse, "SLICE_BYTES", 1)
    torch.testing.assert_close(block_sparse_attention(q, k, v, choice, reach, first=first), whole)


def test_gradients_are_those_of_the_dense_form() -> None:
    q, k, v = (x.requires_grad_() for x in inputs(13, 13))
    choice = random_choice(2, 4, 13, 13, block_q=4, block_k=3)
    reach, first = Reach(2, 1), torch.zeros(2, dtype=torch.int64)
    grads = [
        torch.autograd.grad(form(q, k, v, choice, reach, first=first).square().sum(), (q, k, v))
        for form in (block_sparse_attention, block_sparse_attention_reference)
    ]
    for ours, dense in zip(*grads, strict=True):
        torch.testing.assert_close(ours, dense)


def test_what_is_chosen_and_near_counts_once() -> None:
    q, k, v = inputs(7, 7)
    everything = BlockChoice(torch.arange(7).expand(2, 4, 7, 7), torch.full((2, 4, 7), 7), block_q=1, block_k=1)
    first = torch.zeros(2, dtype=torch.int64)
    full = by_loops(q, k, v, everything, Reach(1), first)
    torch.testing.assert_close(block_sparse_attention(q, k, v, everything, Reach(4, 3), first=first), full)
    seen = block_sparse_visible(everything, Reach(4, 3), first=first, queries=7, keys=7)
    assert torch.equal(seen, torch.ones(7, 7, dtype=torch.bool).tril().expand(2, 4, 7, 7))


def test_bfloat16_stays_close() -> None:
    q, k, v = inputs(19, 19)
    choice = random_choice(2, 4, 19, 19, block_q=4, block_k=2)
    first = torch.zeros(2, dtype=torch.int64)
    wide = block_sparse_attention(q, k, v, choice, Reach(3), first=first)
    narrow = block_sparse_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), choice, Reach(3), first=first)
    assert narrow.dtype == torch.bfloat16
    assert (narrow - wide).norm() / wide.norm() < 0.02


def test_macs_are_those_of_the_products() -> None:
    q, k, v = inputs(17, 17)
    choice, reach = random_choice(2, 4, 17, 17, block_q=4, block_k=3), Reach(5, 2)
    counted = contraction_macs(
        lambda: block_sparse_attention(q, k, v, choice, reach, first=torch.zeros(2, dtype=torch.int64))
    )
    chosen = choice.starts.shape[-1] * 3
    one_head = block_sparse_macs(blocks=5, block_q=4, chosen=chosen, reach=reach, head_dim=6, value_dim=5)
    assert counted == 2 * 4 * one_head


def test_ill_arguments_are_named() -> None:
    q, k, v = inputs(8, 8)
    choice = random_choice(2, 4, 8, 8, block_q=4, block_k=2)
    first = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"window must be at least 1 and sinks at least 0, got window=0"):
        Reach(0)
    with pytest.raises(ValueError, match=r"keys and values must have equal batch, heads and length"):
        block_sparse_attention(q, k, v[:, :, :-1], choice, Reach(2), first=first)
    with pytest.raises(ValueError, match=r"in blocks of 4 need \(2, 4, 2\)"):
        block_sparse_attention(q, k, v, choice.of_blocks(0, 1), Reach(2), first=first)
