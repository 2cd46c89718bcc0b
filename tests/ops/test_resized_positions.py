"""Positions of a grid at another size: themselves, between their neighbours, and as a constant."""

from __future__ import annotations

import pytest
import torch

from regard.ops.resized_positions import resized_positions


def test_the_own_size_changes_nothing() -> None:
    table = torch.randn(1, 15, 4)
    assert torch.equal(resized_positions(table, (3, 5), (3, 5)), table.view(1, 3, 5, 4))


def test_twice_the_size_lies_between_neighbours() -> None:
    table = torch.tensor([0.0, 4.0]).view(1, 2, 1)
    rows = resized_positions(table, (2, 1), (4, 1))
    assert rows.flatten().tolist() == [0, 1, 3, 4]
    columns = resized_positions(table, (1, 2), (1, 4))
    assert columns.flatten().tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("space", [(1, 1), (7, 2), (5, 11)])
def test_a_constant_stays_one(mode: str, space: tuple[int, int]) -> None:
    resized = resized_positions(torch.full((1, 12, 3), 0.7), (3, 4), space, mode=mode)
    torch.testing.assert_close(resized, torch.full((1, *space, 3), 0.7))
