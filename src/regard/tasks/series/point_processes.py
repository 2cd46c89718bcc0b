"""Simulated marked point processes: a mutually exciting Hawkes process, and a renewal process with a chain of marks.

The Hawkes process is simulated by Ogata's thinning ("On Lewis' simulation method for point processes", 1981): between
events the total rate only falls, so its value just after an event or a rejected proposal bounds it from above.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BASE_RATES = (0.2, 0.1, 0.05)
"""Events per unit of time that come by themselves, by mark."""
EXCITATION = ((0.4, 0.3, 0.0), (0.0, 0.3, 0.5), (0.5, 0.0, 0.2))
"""Mean number of events of each mark (column) that an event of a mark (row) causes directly."""
DECAY = 1.5
"""Rate at which an event's influence fades."""
NEXT_MARK = ((0.1, 0.8, 0.1), (0.1, 0.1, 0.8), (0.8, 0.1, 0.1))
"""Probability of each next mark (column) of the renewal process after a mark (row)."""
SHAPES = (4.0, 1.0, 9.0)
"""Of the gamma distribution of the time that follows an event of each mark."""
MEANS = (0.5, 2.0, 1.0)
"""Of the same distribution."""

Events = tuple[NDArray[np.float64], NDArray[np.int64]]
"""Times from 0 on, rising, and marks."""


def hawkes(
    random: np.random.Generator,
    *,
    until: float,
    base_rates: Sequence[float] = BASE_RATES,
    excitation: Sequence[Sequence[float]] = EXCITATION,
    decay: float = DECAY,
) -> Events:
    """A Hawkes process: the rate of mark m at time t is base_m + sum_i excitation[mark_i][m] d e^(-d (t - t_i)).

    Args:
        random: the source of randomness.
        until: the time at which it ends.
        base_rates: by mark.
        excitation: `[cause][effect]`; its largest eigenvalue must be below 1, or events would never end.
        decay: d, at which the influence fades.

    Raises:
        ValueError: an excitation that explodes.
    """
    causes = np.asarray(excitation, dtype=np.float64)
    if (growth := float(np.abs(np.linalg.eigvals(causes)).max())) >= 1:
        raise ValueError(f"the largest eigenvalue of the excitation must be below 1, got {growth:.3g}")
    base = np.asarray(base_rates, dtype=np.float64)
    excited, now = np.zeros_like(base), 0.0
    times: list[float] = []
    marks: list[int] = []
    while True:
        bound = float(base.sum() + excited.sum())
        wait = random.exponential(1 / bound)
        now += wait
        if now >= until:
            return np.array(times), np.array(marks, dtype=np.int64)
        excited = excited * math.exp(-decay * wait)
        sums = np.cumsum(base + excited)
        chosen = random.uniform(0, bound)
        if chosen < sums[-1]:
            mark = int(np.searchsorted(sums, chosen, side="right"))
            times.append(now)
            marks.append(mark)
            excited = excited + decay * causes[mark]


def renewal(
    random: np.random.Generator,
    *,
    until: float,
    next_mark: Sequence[Sequence[float]] = NEXT_MARK,
    shapes: Sequence[float] = SHAPES,
    means: Sequence[float] = MEANS,
) -> Events:
    """A renewal process: after an event of a mark comes a gamma distributed time, then a mark that depends on the last.

    Args:
        random: the source of randomness.
        until: the time at which it ends.
        next_mark: probabilities `[mark][next mark]`.
        shapes: of the gamma distributions, by mark.
        means: of the gamma distributions, by mark.
    """
    sums = np.cumsum(np.asarray(next_mark, dtype=np.float64), axis=1)
    mark = int(random.integers(len(sums)))
    now = float(random.uniform(0, means[mark]))
    times: list[float] = []
    marks: list[int] = []
    while now < until:
        times.append(now)
        marks.append(mark)
        now += float(random.gamma(shapes[mark], means[mark] / shapes[mark]))
        mark = min(int(np.searchsorted(sums[mark], random.uniform(), side="right")), len(sums) - 1)
    return np.array(times), np.array(marks, dtype=np.int64)


def mixed_processes(*, sequences: int = 160, until: float = 60.0, seed: int = 0) -> list[Events]:
    """Sequences of both kinds with the same three marks, alternating.

    Args:
        sequences: number of them.
        until: the time at which each ends.
        seed: of all random numbers.
    """
    return [
        (hawkes if number % 2 == 0 else renewal)(np.random.default_rng([seed, number]), until=until)
        for number in range(sequences)
    ]
