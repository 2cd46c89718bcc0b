"""The data of far recall keep their promise, and the networks that are compared are as large as is said."""

from __future__ import annotations

import torch

from regard.claims._recall import IGNORED
from regard.claims._routing_networks import (
    RECALL_NETWORKS,
    TASK,
    TEXT_NETWORKS,
    FarPairs,
    RecallRecipe,
    asked_accuracy,
    far_recall,
    parameters_of,
)


def test_every_key_is_asked_far_from_its_value() -> None:
    task = FarPairs(keys=9, values=4, noise=6, noises=3)
    tokens, targets = task.examples(batch=5, seed=1, step=2)
    assert tokens.shape == (5, task.length) == (5, 42)
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        told = {row[place]: row[place + 1] for place in range(0, 18, 2)}
        assert sorted(told) == list(range(9))
        assert set(row[18:24]) <= {13, 14, 15}
        asked = [place for place, target in enumerate(wanted) if target != IGNORED]
        assert asked == list(range(24, 42, 2))
        assert sorted(row[place] for place in asked) == list(range(9))
        assert all(wanted[place] == told[row[place]] == row[place + 1] for place in asked)
        assert all(place - row.index(row[place]) > 6 for place in asked)


def test_rows_depend_on_seed_and_step_alone() -> None:
    one, two = (TASK.examples(batch=2, seed=3, step=4) for _ in range(2))
    other = TASK.examples(batch=2, seed=3, step=5)
    assert TASK.length == 512
    assert torch.equal(one[0], two[0])
    assert not torch.equal(one[0], other[0])


def test_accuracy_counts_what_is_asked() -> None:
    class Right(torch.nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            following = torch.nn.functional.pad(tokens[:, 1:], (0, 1))
            return torch.nn.functional.one_hot(following, TASK.vocab_size).float()

    tokens, targets = TASK.examples(batch=3, seed=0, step=0)
    assert asked_accuracy(Right(), (tokens, targets), at_once=2) == 1.0
    assert asked_accuracy(Right(), (tokens.flip(0), targets), at_once=2) < 0.5


def test_a_network_trains_and_answers() -> None:
    assert 0 <= far_recall("local", RecallRecipe(steps=1, batch=1)) <= 0.4


def test_routing_has_no_more_parameters_than_local_heads_alone() -> None:
    sizes = {name: parameters_of(config) for name, config in TEXT_NETWORKS.items()}
    assert 0.99 * sizes["local"] <= sizes["routing"] <= sizes["local"]
    assert set(RECALL_NETWORKS) == {"local", "routing", "full"}
