"""URPE's synthetic tasks: what is asked, what counts, and that a run is reproducible."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from regard.claims._synthetic import SyntheticRecipe, SyntheticTask, accuracy_after_training, network_of


def test_positions_are_asked_from_the_second_on() -> None:
    task = SyntheticTask(name="positions", tokens=7)
    tokens, targets = task.examples(batch=3, seed=0, step=1)
    assert targets.tolist() == [[1, 2, 3, 4, 5, 6, 7]] * 3
    assert int(tokens.min()) >= 11
    assert int(tokens.max()) < 50 + 11 - 20
    scores = torch.nn.functional.one_hot(targets, task.vocab_size).float()
    assert task.accuracy(scores, targets) == 1
    # 1 is the padding's id, so the first answer is not learned
    scores[:, 0] = torch.randn(task.vocab_size)
    assert task.accuracy(scores, targets) == 1
    assert torch.equal(task.loss(scores, targets), task.loss(scores.index_fill(1, torch.tensor([0]), 0.0), targets))


def test_every_second_token_is_gathered_at_the_front() -> None:
    task = SyntheticTask(name="even", tokens=8)
    tokens, targets = task.examples(batch=5, seed=0, step=1)
    assert torch.equal(targets[:, :4], tokens[:, [1, 3, 5, 7]])
    assert (targets[:, 4:] == 48).all()
    constant = torch.nn.functional.one_hot(torch.full_like(targets, 48), task.vocab_size).float()
    assert task.accuracy(constant, targets) == 0


def test_examples_depend_on_seed_and_step_alone() -> None:
    task = SyntheticTask(name="even", tokens=8)
    first, again, other = (task.examples(batch=2, seed=1, step=step)[0] for step in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, task.examples(batch=2, seed=2, step=3)[0])


def test_forms_differ_in_their_tables_alone() -> None:
    task = SyntheticTask(name="positions", tokens=6)
    sizes = {
        form: sum(parameter.numel() for parameter in network_of(task, form).parameters())
        for form in ("noPE", "RPE", "URPE")
    }
    assert sizes["URPE"] - sizes["RPE"] == sizes["RPE"] - sizes["noPE"] == 11 * 4


def test_the_rate_warms_up_and_falls_to_nearly_nothing() -> None:
    recipe = SyntheticRecipe(steps=100, warmup=10)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[0] == 0.1
    assert rates[9] == rates[10] == 1
    assert rates[-1] == pytest.approx(1 / 90)


def test_a_run_is_reproducible() -> None:
    task, recipe = SyntheticTask(name="positions", tokens=6), SyntheticRecipe(steps=3, warmup=1, batch=4)
    first, again = (accuracy_after_training(task, "URPE", seed=0, recipe=recipe) for _ in range(2))
    assert first == again


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "odd"}, "'positions' or 'even', got 'odd'"),
        ({"name": "even", "tokens": 7}, "an even number of tokens, got 7"),
        ({"name": "positions", "tokens": 61}, "50 ids are too few for 61 tokens"),
        ({"name": "even", "ids": 20}, "20 ids are too few for 32 tokens"),
    ],
)
def test_ill_tasks_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyntheticTask(**options)
