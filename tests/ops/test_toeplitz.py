"""Toeplitz maps from one number per distance, against loops."""

from __future__ import annotations

import pytest
import torch

from regard.ops.toeplitz import distances, toeplitz, upside_down

CPU = torch.device("cpu")


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (3, 7), (7, 3), (1, 6), (6, 1), (1, 1)])
def test_entry_is_the_number_of_its_distance(queries: int, keys: int) -> None:
    distance = distances(queries, keys, device=CPU)
    values = torch.randn(3, queries + keys - 1)
    found = toeplitz(values, queries)
    assert found.shape == (3, queries, keys)
    for i in range(queries):
        for j in range(keys):
            # the last query stands at the last key
            wanted = j - (i + keys - queries)
            assert torch.equal(found[:, i, j], values[:, distance.tolist().index(wanted)])


def test_upside_down_is_a_view_of_the_vector() -> None:
    values = torch.randn(2, 9)
    found = upside_down(values, 4)
    assert found.data_ptr() == values.data_ptr()
    assert torch.equal(found.flip(1), toeplitz(values, 4))


def test_gradient_sums_a_diagonal() -> None:
    values = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, 6, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((toeplitz(values, 3) * weights).sum(), values)
    for t in range(8):
        wanted = sum(weights[:, i, j] for i in range(3) for j in range(6) if j + 2 - i == t)
        torch.testing.assert_close(gradient[:, t], wanted)


def test_ill_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="queries=0 and keys=3"):
        distances(0, 3, device=CPU)
    with pytest.raises(ValueError, match="4 distances are too few for 5 queries"):
        toeplitz(torch.zeros(1, 4), 5)
