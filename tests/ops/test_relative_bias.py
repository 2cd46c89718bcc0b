"""Biases by offset against a loop, resizing, and gradients."""

from __future__ import annotations

import pytest
import torch

from regard.ops.relative_bias import relative_bias


def by_loop(table: torch.Tensor, size: int) -> torch.Tensor:
    """Pair by pair, offsets being key minus query."""
    bias = table.new_zeros(table.shape[0], size * size, size * size)
    for query in range(size * size):
        for key in range(size * size):
            rows = key // size - query // size
            columns = key % size - query % size
            bias[:, query, key] = table[:, rows + size - 1, columns + size - 1]
    return bias


@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_pair_finds_its_offset(size: int) -> None:
    table = torch.randn(3, 2 * size - 1, 2 * size - 1)
    assert torch.equal(relative_bias(table, size), by_loop(table, size))


def test_offsets_are_key_minus_query() -> None:
    table = torch.zeros(1, 3, 3)
    table[0, 2, 1] = 7
    # the key below the query
    assert relative_bias(table, 2)[0].nonzero().tolist() == [[0, 2], [1, 3]]


def test_a_table_of_another_size_is_resized_between_the_centres_of_its_cells() -> None:
    table = torch.randn(2, 5, 5, dtype=torch.float64)
    made = relative_bias(table, 4)
    # cell 0 of 7 has its centre at 0.5 * 5 / 7 - 0.5 < 0 of the 5, which is the border; cell 2 lies between 1 and 2
    torch.testing.assert_close(made[:, -1, 0], table[:, 0, 0])
    place = 2.5 * 5 / 7 - 0.5
    part = place - 1
    row = table[:, 1] * (1 - part) + table[:, 2] * part
    expected = row[:, 1] * (1 - part) + row[:, 2] * part
    # the query (1, 1) and the key (0, 0): one up and one to the left, which is cell (2, 2)
    torch.testing.assert_close(made[:, 5, 0], expected)


def test_gradients_count_the_pairs_of_an_offset() -> None:
    table = torch.zeros(1, 5, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(relative_bias(table, 3).sum(), table)
    pairs = torch.tensor([1.0, 2, 3, 2, 1])
    torch.testing.assert_close(gradient[0], pairs[:, None] * pairs)
