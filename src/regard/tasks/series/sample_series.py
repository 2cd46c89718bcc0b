"""Series that are generated: a seasonal one to forecast, and waves to classify. Both depend on a seed alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from regard.tasks.series.labelled_series import LabelledSeries

DAY, WEEK = 24, 168
CLASSES = ("rising", "fading", "chirp", "pulse")


def seasonal_series(*, rows: int = 4000, channels: int = 4, seed: int = 0) -> NDArray[np.float64]:
    """Hourly values `(rows, channels)`: a day's and a week's rhythm in each channel's own phase, a slow common level,
    and noise that fades over some hours.

    Args:
        rows: hours.
        channels: number of series.
        seed: of all random numbers.
    """
    random = np.random.default_rng(seed)
    hours = np.arange(rows)[:, None]
    phases, heights = random.uniform(0, 2 * np.pi, (3, channels)), random.uniform(0.5, 1.5, (3, channels))
    rhythm = heights[0] * np.sin(2 * np.pi * hours / DAY + phases[0])
    rhythm += 0.4 * heights[1] * np.sin(4 * np.pi * hours / DAY + phases[1])
    rhythm *= 1 + 0.4 * np.sin(2 * np.pi * hours / WEEK + phases[2])
    level = 0.03 * random.standard_normal((rows, 1)).cumsum(axis=0)
    noise = random.standard_normal((rows, channels))
    for hour in range(1, rows):
        noise[hour] = 0.8 * noise[hour - 1] + 0.6 * noise[hour]
    return 10 * heights[2] + 3 * heights[2] * (rhythm + level + 0.3 * noise)


def waves(*, train: int = 480, test: int = 160, seed: int = 0) -> LabelledSeries:
    """Series of 20 to 60 time steps with 3 channels, of four classes: the first channel has the shape of the class,
    the second follows it late, the third is noise alone.

    Args:
        train: series to train on.
        test: series to test on.
        seed: of all random numbers.
    """
    random = np.random.default_rng(seed)
    lengths = random.integers(20, 61, size=train + test)
    classes = random.integers(len(CLASSES), size=train + test)
    pieces = [_wave(random, int(length), CLASSES[number]) for length, number in zip(lengths, classes, strict=True)]
    return LabelledSeries(
        np.concatenate(pieces),
        lengths.astype(np.int64),
        [str(number) for number in range(1, train + test + 1)],
        [CLASSES[number] for number in classes],
        ("shape", "echo", "noise"),
        splits=["train"] * train + ["test"] * test,
    )


def _wave(random: np.random.Generator, length: int, kind: str) -> NDArray[np.float64]:
    delay = int(random.integers(1, 5))
    period = random.uniform(8, 14)
    turns = np.arange(length + delay) / period + random.uniform()
    done = np.linspace(0, 1, length + delay)
    if kind == "rising":
        shape = 2 * done * np.sin(2 * np.pi * turns)
    elif kind == "fading":
        shape = 2 * (1 - done) * np.sin(2 * np.pi * turns)
    elif kind == "chirp":
        shape = np.sin(2 * np.pi * turns * (0.5 + done))
    else:
        shape = 2.5 * np.exp(-0.5 * ((turns % 1 - 0.5) / 0.08) ** 2) - 0.5
    values = np.stack((shape[delay:], shape[:length], np.zeros(length)), axis=1)
    return random.uniform(0.7, 1.3) * values + 0.3 * random.standard_normal((length, 3))
