"""Whether data loading holds up training: its share of a step, for every task on its built-in sample."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from harness import Outcome, at_most

from regard.tasks.fit import Hardware, fit
from regard.tasks.networks import TASKS
from regard.tasks.recipe import Recipe
from regard.tasks.runs import Wishes, plan

SYSTEMS = {
    "language": "transnormer",
    "translation": "palm",
    "classification": "ninformer",
    "segmentation": "agunet",
    "medical_classification": "medusa",
}
"""By task; the others have Aaren's networks."""
STEPS = 40
LARGEST_SHARE = 10.0


def share(task: str) -> Outcome:
    """Trains the task's own network for a few steps, in the loop of `regard train`."""
    system = SYSTEMS.get(task, "aaren")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wishes = Wishes(system=system, task=task, data=None, settings={}, recipe={"steps": STEPS})
        planned = plan(wishes, cache=folder)
        recipe = Recipe(**{**vars(planned.recipe), "evaluate_every": STEPS})
        done = fit(
            planned.task,
            planned.build(),
            model_name=planned.model_name,
            config=planned.config,
            recipe=recipe,
            folder=folder,
            hardware=Hardware(progress=False),
        )
    assert done.data_share is not None
    assert done.seconds_per_step is not None
    what = f"share of a training step spent waiting for its batch, {system} on {task}, batch {recipe.batch}"
    detail = f"{1000 * done.seconds_per_step:.1f} ms per step, {torch.get_num_threads()} thread"
    return at_most(f"data loading {task}", what, 100 * done.data_share, LARGEST_SHARE, unit=" %", detail=detail)


def races() -> Iterator[Outcome]:
    for task in TASKS:
        yield share(task)
