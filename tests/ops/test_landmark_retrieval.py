"""Choosing blocks and positioning them: the ring's order, stingy positions, ties, pooled choices."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from regard.ops.landmark_retrieval import (
    TIE,
    Retrieval,
    at_distance,
    choose_blocks,
    landmark_scores,
    numbers_in_slots,
    places_for_scoring,
    places_of_chosen,
    pooled_scores,
    query_place,
    turned_queries,
)
from regard.ops.rotary import rotate

SIZES = Retrieval(block_size=4, top_k=2)


def test_slots_hold_the_newest_blocks() -> None:
    for slots in (1, 3, 5):
        for written in range(12):
            ring = [-1] * slots
            for number in range(written):
                ring[number % slots] = number
            found = numbers_in_slots(torch.tensor([written]), slots)[0]
            assert [number if number >= 0 else -1 for number in found.tolist()] == ring


@pytest.mark.parametrize(
    ("blocks", "query", "scoring", "compared"),
    [
        (1, 1, [0], [2]),
        (2, 2, [0, 1], [1, 2]),
        (3, 3, [0, 1, 2], [0, 1, 2]),
        (6, 3, [0, 0, 0, 0, 1, 2], [0, 0, 0, 0, 1, 2]),
    ],
)
def test_positions_for_scoring(blocks: int, query: int, scoring: list[int], compared: list[int]) -> None:
    counts, numbers = torch.tensor([blocks]), torch.arange(blocks)[None]
    assert query_place(counts, SIZES).tolist() == [query]
    assert places_for_scoring(numbers, counts, SIZES).tolist() == [scoring]
    as_compared = Retrieval(block_size=4, top_k=2, as_compared=True)
    assert places_for_scoring(numbers, counts, as_compared).tolist() == [compared]


@pytest.mark.parametrize(
    ("blocks", "chosen", "places", "compared"),
    [
        (6, [1, 3], [0, 1], [0, 1]),
        (6, [1, 4], [0, 2], [0, 2]),
        (6, [0, 5], [0, 2], [0, 2]),
        (6, [4, 5], [1, 2], [1, 2]),
        (2, [0, 1], [0, 1], [1, 2]),
        (3, [0, 2], [0, 2], [0, 2]),
    ],
)
def test_positions_of_chosen_blocks(blocks: int, chosen: list[int], places: list[int], compared: list[int]) -> None:
    counts, numbers = torch.tensor([blocks]), torch.tensor(chosen)[None, None, None]
    assert places_of_chosen(numbers, counts, SIZES).flatten().tolist() == places
    as_compared = Retrieval(block_size=4, top_k=2, as_compared=True)
    assert places_of_chosen(numbers, counts, as_compared).flatten().tolist() == compared


def test_missing_blocks_take_no_place() -> None:
    chosen = torch.tensor([[-1, -1, 0], [-1, 0, 1]])[:, None, None]
    sizes = Retrieval(block_size=4, top_k=3)
    found = places_of_chosen(chosen, torch.tensor([1, 2]), sizes)
    assert found[0, 0, 0, 2] == 0
    assert found[1, 0, 0, 1:].tolist() == [0, 1]


def test_largest_scores_are_chosen_in_time() -> None:
    scores, numbers = torch.randn(2, 3, 5, 17), torch.stack((torch.arange(17), (torch.arange(17) + 6) % 17 + 40))
    chosen = choose_blocks(scores, numbers, 4)
    for b in range(2):
        for h in range(3):
            for t in range(5):
                best = scores[b, h, t].argsort(descending=True)[:4]
                assert chosen[b, h, t].tolist() == sorted(numbers[b, best].tolist())


def test_ties_go_to_the_newest() -> None:
    numbers = torch.tensor([[7, 8, 9, 5, 6]])
    equal = torch.zeros(1, 1, 1, 5)
    assert choose_blocks(equal, numbers, 2).flatten().tolist() == [8, 9]
    one_better = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0]).view(1, 1, 1, 5)
    assert choose_blocks(one_better, numbers, 2).flatten().tolist() == [5, 9]
    # rounding does not decide
    noisy = torch.tensor([0.0, 0.0, -0.4 * TIE, 0.4 * TIE, 0.4 * TIE]).view(1, 1, 1, 5)
    assert choose_blocks(noisy, numbers, 3).flatten().tolist() == [7, 8, 9]
    apart = torch.tensor([0.0, 0.0, -3 * TIE, 3 * TIE, 3 * TIE]).view(1, 1, 1, 5)
    assert choose_blocks(apart, numbers, 3).flatten().tolist() == [5, 6, 8]


def test_where_there_are_fewer_blocks_some_are_missing() -> None:
    numbers = torch.tensor([[0, 1, -1, -1], [-4, -3, -2, -1]])
    chosen = choose_blocks(torch.randn(2, 1, 3, 4), numbers, 3)
    assert chosen[0].tolist() == [[[-1, 0, 1]] * 3]
    assert chosen[1].tolist() == [[[-1, -1, -1]] * 3]


def test_pooled_choices_compare_probabilities() -> None:
    scores, numbers = torch.randn(2, 3, 5, 7), torch.arange(7).repeat(2, 1)
    numbers[1, 5:] = -1
    held = (numbers >= 0)[:, None, None]
    shares = scores.masked_fill(~held, -torch.inf).softmax(dim=-1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    by_heads = pooled_scores(scores, numbers, Retrieval(block_size=4, top_k=2, selection="max_over_heads"), mask)
    torch.testing.assert_close(by_heads.exp(), shares.amax(dim=1, keepdim=True))
    by_tokens = pooled_scores(scores, numbers, Retrieval(block_size=4, top_k=2, selection="max_over_tokens"), mask)
    expected = torch.stack((shares[0].amax(dim=1, keepdim=True), shares[1, :, :2].amax(dim=1, keepdim=True)))
    torch.testing.assert_close(by_tokens.exp(), expected)
    assert pooled_scores(scores, numbers, SIZES, mask) is scores


@pytest.mark.parametrize("base", [None, 100.0])
def test_distances_stand_for_positions(base: float | None) -> None:
    """Turning the query alone gives the product of both turned."""
    sizes = Retrieval(block_size=4, top_k=2, rope_base=base)
    q, k = torch.randn(2, 3, 1, 6, dtype=torch.float64), torch.randn(2, 3, 1, 6, dtype=torch.float64)
    rows, place, slot = torch.tensor([[3], [7]]), 1, 2
    turned = turned_queries(q, rows, sizes)
    for distance in range(4):
        own = (place + distance) * 5
        near = at_distance(turned.inside, torch.full((2, 1, 1, 1), distance))[:, :, :, 0]
        far = at_distance(turned.ends, torch.full((2, 1, 1, 1), distance))[:, :, :, 0]
        expected, in_block, at_end = q, k, k
        if base is not None:
            expected = rotate(q, own + rows, base=base)
            in_block = rotate(k, torch.tensor([[5 * place + slot]]), base=base)
            at_end = rotate(k, torch.tensor([[5 * place + 4]]), base=base)
        key = k if base is None else rotate(k, torch.tensor([[slot]]), base=base)
        torch.testing.assert_close((near * key).sum(-1), (expected * in_block).sum(-1) * 6**-0.5)
        torch.testing.assert_close((far * k).sum(-1), (expected * at_end).sum(-1) * 6**-0.5)


def test_in_the_first_layer_only_new_blocks_differ() -> None:
    """Equal keys of landmarks: all older blocks have one score, whatever the query."""
    sizes = Retrieval(block_size=4, top_k=2, rope_base=100.0)
    landmarks = torch.randn(1, 2, 1, 6).expand(-1, -1, 9, -1)
    turned = turned_queries(torch.randn(1, 4, 3, 6), torch.arange(3)[None], sizes)
    scores = landmark_scores(turned.ends, landmarks, counts=torch.tensor([9]), sizes=sizes)
    torch.testing.assert_close(scores[..., :7], scores[..., :1].expand_as(scores[..., :7]))
    assert not torch.allclose(scores[..., 7], scores[..., 0])
    chosen = choose_blocks(scores, torch.arange(9)[None], 3)
    # of the seven that are equal, none but the newest three
    assert int(chosen.min()) >= 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": 0}, "block_size must be at least 1 ordinary token, got 0"),
        ({"top_k": -1}, "top_k must be at least 0 blocks, got -1"),
        ({"selection": "best"}, "selection must be one of .*max_over_tokens, got 'best'"),
    ],
)
def test_ill_sizes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Retrieval(**{"block_size": 4, "top_k": 2, **changes})
