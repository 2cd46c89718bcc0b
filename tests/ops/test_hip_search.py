"""HiP's search against the algorithm restated with lists, block by block, and its guarantees."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from regard.measure import contraction_macs
from regard.ops import hip_search
from regard.ops.hip_search import scored_key_blocks, search_key_blocks, search_macs

SIZES: dict[str, Any] = {"mask_k": 12, "block_q": 4, "block_k": 3, "window": 5}
DOUBLE = torch.float64


def one_search(
    queries: Tensor, keys: Tensor, visible: int, *, mask_k: int, block_k: int, sample: str, window: int
) -> Any:
    """The chosen first keys for one block of queries of one head, and how many blocks were scored."""
    searched = max(0, visible - window)
    count, budget = math.ceil(searched / block_k), mask_k // block_k
    if searched <= mask_k:
        return [block * block_k for block in range(count)], 0
    asked = queries[1::2] if len(queries) > 1 else queries
    scored = 0

    def score(start: int, size: int) -> float:
        block = start + (size // 2 if sample == "center" else 0)
        return float((asked @ keys[block * block_k : min((block + 1) * block_k, visible)].T).max())

    borders = [int(count / budget * r) for r in range(budget + 1)]
    ranges = [(low, high - low) for low, high in pairwise(borders)]
    share = count / budget
    while share > 1:
        halves = []
        for start, size in ranges:
            middle = int(start + size * 0.5)
            halves += [(start, middle - start), (middle, start + size - middle)]
        scored += len(halves)
        ranges = sorted((half for half in halves if half[1]), key=lambda half: -score(*half))[:budget]
        share /= 2
    return sorted(start * block_k for start, _ in ranges), scored


@pytest.mark.parametrize("sample", ["first", "center"])
@pytest.mark.parametrize(("queries", "keys"), [(61, 61), (1, 47), (13, 101), (6, 6)])
@pytest.mark.parametrize("block_q", [1, 4, 5])
def test_search_is_the_algorithm(queries: int, keys: int, block_q: int, sample: Any) -> None:
    q, k = torch.randn(2, 4, queries, 7, dtype=DOUBLE), torch.randn(2, 2, keys, 7, dtype=DOUBLE)
    sizes = {**SIZES, "block_q": block_q}
    choice = search_key_blocks(q, k, first=keys - queries, sample=sample, **sizes)
    assert choice.starts.shape == (2, 4, -(-queries // block_q), 4)
    for b in range(2):
        for h in range(4):
            for block in range(choice.starts.shape[2]):
                rows = q[b, h, block * block_q : (block + 1) * block_q]
                visible = min((block + 1) * block_q, queries) + keys - queries
                expected, _ = one_search(rows, k[b, h // 2], visible, mask_k=12, block_k=3, window=5, sample=sample)
                assert int(choice.counts[b, h, block]) == len(expected)
                assert choice.starts[b, h, block, : len(expected)].tolist() == expected


def test_rows_of_other_lengths_are_searched_as_if_alone() -> None:
    q, k = torch.randn(3, 2, 37, 7), torch.randn(3, 2, 37, 7)
    lengths = torch.tensor([37, 22, 1])
    together = search_key_blocks(q, k, first=0, lengths=lengths, **SIZES)
    for row, length in enumerate(lengths.tolist()):
        alone = search_key_blocks(q[row : row + 1, :, :length], k[row : row + 1, :, :length], first=0, **SIZES)
        blocks = alone.starts.shape[2]
        assert torch.equal(together.starts[row, :, :blocks], alone.starts[0])
        assert torch.equal(together.counts[row, :, :blocks], alone.counts[0])


def test_rows_at_other_places_are_searched_as_if_alone() -> None:
    q, k = torch.randn(2, 2, 5, 7), torch.randn(2, 2, 64, 7)
    first = torch.tensor([20, 59])
    together = search_key_blocks(q, k, first=first, lengths=first + 5, **SIZES)
    for row, place in enumerate(first.tolist()):
        alone = search_key_blocks(q[row : row + 1], k[row : row + 1, :, : place + 5], first=place, **SIZES)
        assert torch.equal(together.starts[row], alone.starts[0])


def test_slices_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = torch.randn(2, 2, 97, 7), torch.randn(2, 2, 97, 7)
    whole = search_key_blocks(q, k, first=0, **SIZES)
    monkeypatch.setattr(hip_search, "SLICE_BYTES", 1)
    sliced = search_key_blocks(q, k, first=0, **SIZES)
    assert torch.equal(sliced.starts, whole.starts)
    assert torch.equal(sliced.counts, whole.counts)


def test_a_budget_for_everything_chooses_everything() -> None:
    q, k = torch.randn(1, 1, 16, 7), torch.randn(1, 1, 16, 7)
    choice = search_key_blocks(q, k, first=0, mask_k=12, block_q=4, block_k=3, window=4)
    assert choice.counts.flatten().tolist() == [0, 2, 3, 4]
    assert choice.starts[0, 0, -1].tolist() == [0, 3, 6, 9]


def test_a_planted_key_is_found() -> None:
    """Keys that agree with the query over a whole stretch lead the search down to them."""
    q, k = torch.randn(1, 1, 4, 8), 0.01 * torch.randn(1, 1, 400, 8)
    k[..., 200:212, :] = q[..., 1:2, :]
    choice = search_key_blocks(q, k, first=396, **SIZES)
    assert set(choice.starts.flatten().tolist()) == {201, 204, 207, 210}


def test_not_a_number_is_chosen_last_and_spoils_nothing() -> None:
    q, k = torch.randn(1, 1, 8, 7), torch.randn(1, 1, 99, 7)
    k[..., 10, :] = torch.nan
    q[..., 1, :] = torch.nan
    choice = search_key_blocks(q, k, first=91, **SIZES)
    assert bool(((choice.starts >= 0) & (choice.starts < 99)).all())
    assert 9 not in choice.starts[0, 0, 1].tolist()


@pytest.mark.parametrize("sample", ["first", "center"])
@pytest.mark.parametrize(("queries", "keys", "block_q"), [(61, 61, 4), (1, 150, 1), (13, 101, 5)])
def test_macs_are_those_of_the_products(queries: int, keys: int, block_q: int, sample: Any) -> None:
    q, k = torch.randn(2, 4, queries, 7), torch.randn(2, 2, keys, 7)
    sizes = {**SIZES, "block_q": block_q, "sample": sample}
    counted = contraction_macs(lambda: search_key_blocks(q, k, first=keys - queries, **sizes))
    assert counted == 8 * search_macs(first=keys - queries, queries=queries, head_dim=7, **sizes)


def test_scored_blocks_grow_as_the_logarithm() -> None:
    options = {"mask_k": 512, "block_k": 2, "window": 128}
    counts = [scored_key_blocks(visible=512 * 2**level + 128, **options) for level in range(6)]
    assert counts == [0, 512, 768, 1024, 1280, 1536]
    assert scored_key_blocks(visible=100, **options) == 0
    assert scored_key_blocks(visible=4 * 512 + 128, sample="center", **options) == 2 * 2 * 256


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"block_q": 0}, r"block_q and block_k must be positive, got block_q=0"),
        ({"mask_k": 13}, r"mask_k must be a positive multiple of block_k=3, got 13"),
        ({"mask_k": 0}, r"mask_k must be a positive multiple"),
        ({"window": 2}, r"window must be at least block_k=3, got 2"),
        ({"sample": "last"}, r"sample must be one of first, center, got 'last'"),
    ],
)
def test_ill_sizes_are_named(changed: dict[str, Any], message: str) -> None:
    q = torch.randn(1, 1, 8, 7)
    with pytest.raises(ValueError, match=message):
        search_key_blocks(q, q, first=0, **{**SIZES, **changed})
