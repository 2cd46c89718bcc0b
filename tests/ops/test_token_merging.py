"""Token merging: matching by loops, what is merged and what comes back, random cells, awkward maps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regard.ops.token_merging import match_tokens


def match_by_loops(x: Tensor, space: tuple[int, int], cell: tuple[int, int]) -> list[tuple[int, int]]:
    """Sources and their destinations of one image, most similar first; destinations are top left in their cells."""
    height, width = space
    destinations = [
        row * width + column
        for row in range(0, height - cell[0] + 1, cell[0])
        for column in range(0, width - cell[1] + 1, cell[1])
    ]
    found = []
    for source in range(height * width):
        if source not in destinations:
            similar = [torch.cosine_similarity(x[source], x[other], dim=0).item() for other in destinations]
            best = max(range(len(similar)), key=similar.__getitem__)
            found.append((similar[best], source, destinations[best]))
    found.sort(key=lambda triple: -triple[0])
    return [(source, destination) for _, source, destination in found]


@pytest.mark.parametrize(("space", "cell"), [((6, 8), (3, 4)), ((7, 5), (2, 2)), ((5, 3), (5, 1)), ((1, 9), (1, 2))])
@pytest.mark.parametrize("count", [0, 1, 4, 100])
def test_merging_and_unmerging_by_loops(space: tuple[int, int], cell: tuple[int, int], count: int) -> None:
    tokens = space[0] * space[1]
    x = torch.randn(3, tokens, 5, dtype=torch.float64)
    matching = match_tokens(x, space, cell)
    merged = matching.merge(x, count)
    back = matching.unmerge(2 * merged, count)
    for image in range(3):
        pairs = match_by_loops(x[image], space, cell)
        taken, stay = pairs[:count], [source for source, _ in pairs[count:]]
        sources = [source for source, _ in pairs]
        destinations = [place for place in range(tokens) if place not in sources]
        expected = [x[image, place] for place in stay]
        for place in destinations:
            members = [place, *(source for source, destination in taken if destination == place)]
            expected.append(x[image, members].mean(dim=0))
        torch.testing.assert_close(merged[image], torch.stack(expected))
        where = {place: number for number, place in enumerate([*stay, *destinations])}
        where |= {source: where[destination] for source, destination in taken}
        torch.testing.assert_close(back[image], 2 * merged[image, [where[place] for place in range(tokens)]])


def test_nothing_merged_is_put_back_as_it_was() -> None:
    x = torch.randn(2, 35, 4)
    matching = match_tokens(x, (5, 7), (2, 3))
    assert matching.tokens == 35
    assert torch.equal(matching.unmerge(matching.merge(x, 0), 0), x)


def test_gradients_reach_every_token_that_is_merged() -> None:
    x = torch.randn(2, 12, 3, dtype=torch.float64)
    matching = match_tokens(x, (3, 4), (3, 2))
    inputs = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: matching.unmerge(matching.merge(y, 7), 7), (inputs,))


def test_random_tokens_are_one_per_cell() -> None:
    x = torch.randn(2, 48, 4)
    seen = set()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        places = match_tokens(x, (6, 8), (3, 4), random=True, generator=generator).destinations.tolist()
        cells = sorted((place // 8 // 3, place % 8 // 4) for place in places)
        assert cells == [(0, 0), (0, 1), (1, 0), (1, 1)]
        seen.update(places)
    assert len(seen) > 20
    twice = [
        match_tokens(x, (6, 8), (3, 4), random=True, generator=torch.Generator().manual_seed(3)).destinations
        for _ in range(2)
    ]
    assert torch.equal(*twice)


def test_zero_tokens_do_no_harm() -> None:
    x = torch.zeros(1, 12, 3)
    matching = match_tokens(x, (3, 4), (1, 2))
    assert torch.equal(matching.merge(x, 6), torch.zeros(1, 6, 3))


def test_narrow_numbers_are_averaged_in_float32() -> None:
    x = torch.randn(1, 64, 8).bfloat16()
    matching = match_tokens(x, (8, 8), (8, 8))
    merged = matching.merge(x, 63)
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged[:, 0], x.float().mean(dim=1).bfloat16())


def test_ill_arguments_are_named() -> None:
    x = torch.randn(1, 12, 3)
    with pytest.raises(ValueError, match="x has 12 tokens and the map 3 x 5"):
        match_tokens(x, (3, 5), (1, 1))
    with pytest.raises(ValueError, match="cells of 4 x 1 tokens must be positive and fit the map, 3 x 4"):
        match_tokens(x, (3, 4), (4, 1))
    with pytest.raises(ValueError, match="cells of 0 x 1 tokens"):
        match_tokens(x, (3, 4), (0, 1))
    matching = match_tokens(x, (3, 4), (3, 2))
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        matching.merge(x, -1)
    with pytest.raises(ValueError, match="y has 12 tokens, after merging 3 of 12"):
        matching.unmerge(x, 3)
