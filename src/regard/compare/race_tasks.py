"""What tells the tasks of a race apart, as data: metric, defaults, and which mechanisms take part. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A quality, and how it is written.

    Args:
        name: in the results.
        better: which end is the good one.
        words: its unit in a sentence.
        unit: its unit in a line of progress.
        heading: of its column on a terminal, in two lines.
        number: format of a figure; a percentage's differences are points.
        spread: format of a standard deviation.
        margin: how far from the best, relatively, a row may be to count as good enough when the cheapest is looked for.
    """

    name: str
    better: Literal["lower", "higher"]
    words: str
    unit: str
    heading: str
    number: str = ".3f"
    spread: str = ".3f"
    margin: float

    def figure(self, value: float) -> str:
        """A figure without its unit."""
        return f"{value:{self.number}}"

    def difference(self, value: float) -> str:
        """How far two figures lie apart."""
        return f"{100 * value:.1f} points" if self.number.endswith("%") else self.figure(value)


@dataclass(frozen=True, kw_only=True)
class RaceTask:
    """One task.

    Args:
        name: on the command line.
        metric: its quality.
        why_causal: why sequence mixers must be causal; empty where they run in their bidirectional form.
        feature_mixers: whether mixers of feature maps take part.
        no_decoding: why nothing is decoded; empty where mixers that decode are timed.
        rate: what is counted per second of training, on a terminal.
        macs: name of the multiply-accumulates in a row.
        defaults: of the settings that differ between tasks.
        without: settings that mean nothing here.
    """

    name: str
    metric: Metric
    why_causal: str
    feature_mixers: bool
    no_decoding: str
    rate: str
    macs: str
    defaults: Mapping[str, Any]
    without: tuple[str, ...] = ()


TEXT = RaceTask(
    name="text",
    metric=Metric(
        name="bits_per_byte", better="lower", words="bits per byte", unit="bits/byte", heading="bits/\nbyte", margin=0.1
    ),
    why_causal="a language model needs a causal form",
    feature_mixers=False,
    no_decoding="",
    rate="tok/s",
    macs="macs_per_token",
    defaults={"lengths": (256, 512, 1024, 2048, 4096, 8192), "steps": 600, "train_length": 128, "batch": 8},
)
IMAGE = RaceTask(
    name="image",
    metric=Metric(
        name="accuracy",
        better="higher",
        words="accuracy",
        unit="accuracy",
        heading="\naccuracy",
        number=".1%",
        margin=0.03,
    ),
    why_causal="",
    feature_mixers=True,
    no_decoding="images are not decoded",
    rate="img/s",
    macs="macs_per_image",
    defaults={"lengths": (64, 256, 1024, 4096), "steps": 600, "train_length": 64, "batch": 32},
    without=("train_length",),
)
SERIES = RaceTask(
    name="series",
    metric=Metric(
        name="mse",
        better="lower",
        words="mse",
        unit="mse",
        heading="\nmse",
        # three digits wherever the point is: a series that is easy to forecast has a tiny error
        number="#.3g",
        spread="#.2g",
        margin=0.1,
    ),
    why_causal="a forecast is read after the last time step, which needs a causal form",
    feature_mixers=False,
    no_decoding="",
    rate="tok/s",
    macs="macs_per_token",
    defaults={"lengths": (256, 512, 1024, 2048, 4096, 8192), "steps": 300, "train_length": 96, "batch": 32},
)
TASKS = {task.name: task for task in (TEXT, IMAGE, SERIES)}
METRICS = {task.metric.name: task.metric for task in TASKS.values()}
