"""A tiny network for a task, trained for a few steps by the project's own loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from regard.tasks.fit import Hardware, fit
from regard.tasks.networks import HOSTS
from regard.tasks.recipe import Recipe
from regard.tasks.task import Task

STEPS = 4


@pytest.fixture
def trained(tmp_path: Path) -> Callable[[Task, Any], nn.Module]:
    """Trains a network of a class on a task with data; checks what the loop leaves behind."""

    def train(task: Task, network: Any) -> nn.Module:
        torch.manual_seed(1)
        config = replace(network.SMALL, dim=16, num_layers=1, num_heads=2, hidden=16, **task.model_fields())
        model = network(config)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        folder = tmp_path / "run"
        folder.mkdir()
        recipe = Recipe(steps=STEPS, batch=4, learning_rate=1e-2)
        outcome = fit(
            task,
            model,
            model_name=HOSTS[task.name],
            config=config,
            recipe=recipe,
            folder=folder,
            hardware=Hardware(progress=False),
        )
        assert outcome.progress.step == STEPS
        assert outcome.progress.best is not None
        assert (folder / "model.safetensors").is_file()
        after = list(model.parameters())
        assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
        return model.eval()

    return train


@pytest.fixture
def restored() -> Callable[[Task], Task]:
    """A task without data that knows what another learned, by way of JSON."""

    def restore(task: Task) -> Task:
        facts = json.loads(json.dumps(task.facts()))
        assert facts == task.facts()
        again = type(task)(task.settings)
        again.restore(facts)
        assert again.facts() == facts
        assert again.model_fields() == task.model_fields()
        return again

    return restore
