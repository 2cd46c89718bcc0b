"""The tasks of recall ask what can be answered, and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.claims._recall import IGNORED, Pairs, Passkey, fit_recall, recall_accuracy


def test_a_value_is_asked_only_at_keys_seen_before() -> None:
    task = Pairs(keys=5, pairs=11)
    tokens, targets = task.examples(batch=40, seed=1, step=2)
    assert tokens.shape == targets.shape == (40, 21)
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        seen: dict[int, int] = {}
        for place in range(0, 21, 2):
            key = row[place]
            assert 0 <= key < 5
            assert wanted[place] == seen.get(key, IGNORED)
            if place + 1 < 21:
                assert seen.setdefault(key, row[place + 1]) == row[place + 1]
                assert 5 <= row[place + 1] < 10
                assert wanted[place + 1] == IGNORED
        assert wanted[-1] != IGNORED


def test_values_are_drawn_anew_for_every_row_and_step() -> None:
    task = Pairs()
    first, again, other = (task.examples(batch=8, seed=0, step=step)[0] for step in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({tuple(row) for row in first.tolist()}) == 8


def test_the_passkey_stands_behind_its_marker() -> None:
    task = Passkey(noise=3, digits=4)
    tokens, targets = task.examples(batch=200, length=7, seed=0, step=0)
    assert int(tokens.max()) == task.vocab_size - 1
    assert (targets[:, :-1] == IGNORED).all()
    places = (tokens == 7).int().argmax(dim=1)
    assert set(places.tolist()) == set(range(5))
    assert torch.equal(tokens[torch.arange(200), places + 1], targets[:, -1])
    assert (tokens[:, -1] == 8).all()
    assert ((tokens >= 3).sum(dim=1) == 3).all()


class Constant(nn.Module):
    """Always gives the same answer, which it can learn."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(9))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.scores.expand(*tokens.shape, 9)


def test_only_what_is_asked_is_learned_and_counted() -> None:
    tokens, targets = torch.zeros(130, 4, dtype=torch.int64), torch.full((130, 4), IGNORED)
    targets[:, -1] = 6
    model = Constant()
    assert recall_accuracy(model, (tokens, targets)) == 0.0
    fit_recall(model, lambda step: (tokens, targets), steps=20, learning_rate=0.1, seed=0)
    assert int(model.scores.argmax()) == 6
    assert recall_accuracy(model, (tokens, targets)) == 1.0
    targets[:13, -1] = 5
    assert recall_accuracy(model, (tokens, targets)) == 0.9
