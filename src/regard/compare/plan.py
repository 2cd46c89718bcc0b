"""What a race would do, without doing it: the rows, their parameters, and about how long it would take."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regard.compare.budget import Fit, SeriesShape, Shape, build_host, fit
from regard.compare.cost import SECONDS_PER_LENGTH, build_alone, input_of, seconds_of, why_too_large
from regard.compare.hosts import BYTES
from regard.compare.problems import loss_of
from regard.compare.race_tasks import TASKS
from regard.compare.series import EVALUATION_WINDOWS
from regard.compare.settings import Settings
from regard.compare.text import EVALUATION_BYTES, FACTORS
from regard.compare.training import VALIDATION_POINTS
from regard.errors import describe_exception

START_S = 3.0
FORWARD_SHARE = 1 / 3
"""A forward pass takes about a third of a training step."""
CALLS_PER_LENGTH = 8
SPEED_S = 3.0
DECODE_SHARE = 0.5
LONGEST_PROBE = 1024


@dataclass(frozen=True)
class Planned:
    """One row of the plan.

    Args:
        name: the mechanism.
        fit: its host's size; None where it cannot be built.
        train_s: estimated seconds of training and evaluation, on one thread.
        measure_s: estimated seconds of timing.
        why: why it cannot be built.
    """

    name: str
    fit: Fit | None
    train_s: float = 0.0
    measure_s: float = 0.0
    why: str = ""


def plan(settings: Settings, shape: Shape) -> list[Planned]:
    """A row per mechanism; every host takes one step on random data so that its time can be estimated."""
    return [_row(name, settings, shape) for name in settings.mechanisms]


def minutes(rows: list[Planned], settings: Settings) -> float:
    """About how long the race takes: as many train at a time as there are jobs, then each is timed alone."""
    busy = [0.0] * settings.jobs
    for row in rows:
        busy[busy.index(min(busy))] += START_S + row.train_s
    return (max(busy) + sum(row.measure_s for row in rows)) / 60


def _row(name: str, settings: Settings, shape: Shape) -> Planned:
    torch.manual_seed(0)
    try:
        found = fit(name, settings, shape)
        host = build_host(name, settings, shape, found.knob)
        step_s = _step_s(host, *_random_batch(settings, shape))
        measure_s = _measure_s(name, settings)
    except (ValueError, TypeError, RuntimeError) as error:
        return Planned(name, None, why=describe_exception(error))
    train_s = settings.seeds * step_s * (settings.steps + _evaluated(settings, shape) * FORWARD_SHARE)
    return Planned(name, found, train_s, measure_s)


def _evaluated(settings: Settings, shape: Shape) -> float:
    """Batches of validation data per run."""
    if shape is None:
        return len(FACTORS) * EVALUATION_BYTES / (settings.batch * settings.train_length)
    if isinstance(shape, SeriesShape):
        return (VALIDATION_POINTS + 1) * EVALUATION_WINDOWS / settings.batch
    return 10


def _random_batch(settings: Settings, shape: Shape) -> tuple[Tensor, Tensor]:
    if shape is None:
        tokens = torch.randint(BYTES, (settings.batch, settings.train_length + 1))
        return tokens[:, :-1], tokens[:, 1:]
    if isinstance(shape, SeriesShape):
        series = torch.randn(settings.batch, settings.train_length + shape.horizon, shape.channels)
        return series[:, : settings.train_length], series[:, settings.train_length :]
    images = torch.randn(settings.batch, shape.channels, shape.size, shape.size)
    return images, torch.randint(shape.classes, (settings.batch,))


def _step_s(host: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    def step() -> None:
        loss_of(host(inputs), targets).backward()

    step()
    return min(seconds_of(step) for _ in range(2))


@torch.no_grad()
def _measure_s(name: str, settings: Settings) -> float:
    """Forward times are probed at a short length and grown as the traits say."""
    cpu = torch.device("cpu")
    seconds = SPEED_S
    for contestant in (name, "softmax"):
        mixer = build_alone(contestant, settings, cpu)
        probe = min(LONGEST_PROBE, max(settings.lengths))
        x = input_of(contestant, settings, probe, cpu)
        mixer(x)
        once = seconds_of(lambda mixer=mixer, x=x: mixer(x))  # type: ignore[misc]
        for length in settings.lengths:
            if why_too_large(contestant, settings, length, cpu):
                continue
            grown = once * (length / probe) ** _power(contestant)
            seconds += max(SECONDS_PER_LENGTH / 2, CALLS_PER_LENGTH * grown)
    return seconds * (1 + DECODE_SHARE if not TASKS[settings.task].no_decoding else 1)


def _power(name: str) -> int:
    from regard.registry import entry_of

    traits = entry_of(name).traits
    return 2 if traits is not None and "n^2" in traits.time else 1
