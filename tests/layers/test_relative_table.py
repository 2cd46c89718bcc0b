"""Tables of relative positions: their rows, their start, and whom they speak to."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from regard.layers.relative_table import RelativeTable


@pytest.mark.parametrize("causal", [False, True])
def test_every_distance_has_a_row(causal: bool) -> None:
    table = RelativeTable(3, max_positions=7, causal=causal)
    distance = torch.arange(-6, 1 if causal else 7)
    assert table.weight.shape == (7 if causal else 13, 3)
    assert torch.equal(table(distance), table.weight)
    assert torch.equal(table.by_distance(distance), table.weight.T)


def test_similar_distances_share_a_row() -> None:
    table = RelativeTable(2, relation="log", max_positions=90, num_buckets=16, max_distance=24)
    assert table.weight.shape == (17, 2)
    found = table(torch.tensor([-89, -25, -3, 0, 3, 25, 89]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[-1], found[-2])
    assert len(found.unique(dim=0)) == 5


def test_rows_of_no_distance_get_no_gradient() -> None:
    table = RelativeTable(2, relation="log", max_positions=90, num_buckets=16, max_distance=24)
    table(torch.arange(-89, 90)).sum().backward()
    assert table.weight.grad is not None
    assert (table.weight.grad == 0).all(dim=1).nonzero().flatten().tolist() == [7, 8]


def test_factors_start_at_1_and_biases_near_0() -> None:
    assert torch.equal(RelativeTable(4, mean=1.0, std=0.0).weight, torch.ones(1023, 4))
    assert float(RelativeTable(4).weight.detach().std()) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_heads": 0}, "num_heads must be positive, got 0"), ({"max_positions": 0}, "max_positions must be positive")],
)
def test_ill_sizes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RelativeTable(**{"num_heads": 2, **options})
