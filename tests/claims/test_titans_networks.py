"""What the claims of Titans train: questions that no window sees, networks of comparable sizes, windows of hours."""

from __future__ import annotations

import pytest
import torch

from regard.claims._recall import IGNORED
from regard.claims._titans_networks import (
    LANGUAGE,
    PAIRS,
    RECALL,
    EarlierPairs,
    PatchForecaster,
    PerceptronForecaster,
    PositionedEmbedding,
    _windows,
    network,
)
from regard.models.language.titans import TitansLM


def size(model: TitansLM) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_question_has_its_pairs_value() -> None:
    task = EarlierPairs(pairs=3, keys=5, gap=7, noise=4)
    tokens, targets = task.examples(batch=6, seed=0, step=1)
    assert tokens.shape == (6, task.length)
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        values = dict(zip(row[0:6:2], row[1:6:2], strict=True))
        assert len(values) == 3
        assert all(10 <= token < task.vocab_size for token in row[6:13])
        assert wanted[:13] == [IGNORED] * 13
        assert wanted[13:] == [values[key] for key in row[13:]]


def test_no_question_sees_a_pair() -> None:
    first_question = 2 * PAIRS.pairs + PAIRS.gap
    assert first_question - (RECALL.window - 1) * RECALL.num_layers > 2 * PAIRS.pairs - 1


def test_rows_depend_on_seed_and_step_alone() -> None:
    once, again = (PAIRS.examples(batch=4, seed=3, step=5)[0] for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, PAIRS.examples(batch=4, seed=3, step=6)[0])


def test_the_windows_network_is_no_smaller_and_not_much_larger() -> None:
    for config in (RECALL, LANGUAGE):
        largest = max(size(network(kind, config, seed=0)) for kind in ("mac", "mag", "mal"))
        assert largest <= size(network("window", config, seed=0)) <= 1.01 * largest


def test_ablations_take_away_their_part() -> None:
    memories = {
        kind: network(kind, RECALL, seed=0).mixers()[0].memory
        for kind in ("lmm", "linear memory", "no momentum", "no forgetting")
    }
    assert [len(memory.weights) for memory in memories.values()] == [2, 1, 2, 2]
    assert [memory.momentum for memory in memories.values()] == [True, True, False, True]
    assert [memory.forgetting for memory in memories.values()] == [True, True, True, False]


def test_positions_are_added() -> None:
    embedding = PositionedEmbedding(5, 4, longest=7)
    tokens = torch.tensor([[3, 3]])
    torch.testing.assert_close(embedding(tokens)[0, 1], embedding.weight[3] + embedding.places.weight[1])


def test_windows_of_every_channel() -> None:
    hours = torch.arange(300)[:, None] + 1000 * torch.arange(2)
    past, future = _windows(hours, torch.tensor([5, 20]))
    assert past.shape == future.shape == (4, 96)
    assert past[1, 0] == 1005
    assert future[2, 0] == 20 + 96


@pytest.mark.parametrize("cls", [PatchForecaster, PerceptronForecaster])
def test_forecasts_move_with_the_level(cls: type[torch.nn.Module]) -> None:
    model, past = cls().double(), torch.randn(3, 96, dtype=torch.float64)
    torch.testing.assert_close(model(past + 7), model(past) + 7)
