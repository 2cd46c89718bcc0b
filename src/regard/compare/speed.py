"""What a host costs: multiply-accumulates counted, and training steps timed against the softmax host's."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from regard.compare.cost import Tick, rounds_within, seconds_of
from regard.compare.problems import Problem
from regard.compare.training import Trainer
from regard.measure import contraction_macs, race

SECONDS_FOR_SPEED = 2.0


def count_macs(host: nn.Module, problem: Problem) -> float:
    """Multiply-accumulates of the host per token: per byte or time step at the training length, or per image."""
    example = problem.one_example()
    return contraction_macs(lambda: host(example)) / problem.tokens_per_example


def measure_speed(host: nn.Module, yardstick: nn.Module, problem: Problem, tick: Tick) -> dict[str, Any]:
    """Training steps of copies of two hosts in alternation: tokens (or images) per second, and the ratio of times.

    Args:
        host: the network with the mechanism.
        yardstick: the network with softmax attention.
        problem: gives the batches.
        tick: called before the race; may raise to stop.
    """
    trainers = {
        "host": Trainer(copy.deepcopy(host).train(), problem, seed=0),
        "yardstick": Trainer(copy.deepcopy(yardstick).train(), problem, seed=0),
    }
    batch = problem.batch(0, 0)
    tick()
    steps = {name: lambda trainer=trainer: trainer.update(*batch) for name, trainer in trainers.items()}
    once = sum(seconds_of(step) for step in steps.values())
    timed = race(steps, rounds=rounds_within(once, SECONDS_FOR_SPEED), warmup=1)
    step_s = timed.median_s["host"]
    return {
        "tokens_per_s": problem.tokens_per_step / step_s,
        "ratio": timed.ratio("host", "yardstick"),
        "step_s": step_s,
        "steps": problem.settings.steps,
    }
