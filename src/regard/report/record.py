"""What a training, an evaluation or a prediction hands to its report: plain numbers and text, without torch.

Every value may be missing: None, NaN and infinities are shown as dashes and gaps, never as figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Figures = Mapping[str, float | None]
Fact = tuple[str, object]
Sample = tuple[str, str]
Grid = tuple[str, Sequence[object], Sequence[Sequence[object]]]
Series = Mapping[str, Sequence[tuple[float | None, float | None]]]
LineChart = tuple[str, str, str, Series]
TitledPicture = tuple[str, bytes]
LegendEntry = tuple[str, tuple[int, int, int]]
HeatMap = Mapping[str, Any]
"""`title`, `x_label`, `y_label`, `names` of rows and columns, `values` from 0 to 1, and `what` a value is."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """What an evaluation or a prediction found.

    Args:
        title: the page's heading, such as "transnormer_lm on language".
        command: the command that was run, as its words or as one string.
        task: the name of the task.
        system: the system that the network belongs to.
        data: what it ran on, in one line.
        facts: names and values for the settings: the network's configuration, the recipe, the device, versions.
        parameters: how many parameters the network has.
        items_per_s: tokens, rows or images processed per second.
        items: what `items_per_s` counts.
        metric: the name of the primary metric.
        better: which way the primary metric is better.
        final: a part of the data ("validation", "test") to its metrics' values.
        notes: warnings, shown at the top of the page.
        samples: titles and texts, such as generated text or translations; line breaks are kept.
        tables: titles, headings and rows, such as perplexity by length or a confusion matrix.
        charts: titles, labels of x and y, and named series of points, such as a forecast and the truth.
        heat_maps: squares of shares, such as a confusion matrix of many classes.
        pictures: titles and PNG files, such as masks over slices.
        legend: what the pictures' colours mean.

    Raises:
        ValueError: `better` is neither "lower" nor "higher".
    """

    title: str
    command: Sequence[str] | str = ()
    task: str = ""
    system: str = ""
    data: str = ""
    facts: Sequence[Fact] = ()
    parameters: int | None = None
    items_per_s: float | None = None
    items: str = "rows"
    metric: str = "loss"
    better: Literal["lower", "higher"] = "lower"
    final: Mapping[str, Figures] = field(default_factory=dict)
    notes: Sequence[str] = ()
    samples: Sequence[Sample] = ()
    tables: Sequence[Grid] = ()
    charts: Sequence[LineChart] = ()
    heat_maps: Sequence[HeatMap] = ()
    pictures: Sequence[TitledPicture] = ()
    legend: Sequence[LegendEntry] = ()

    def __post_init__(self) -> None:
        if self.better not in ("lower", "higher"):
            raise ValueError(f'better must be "lower" or "higher", got {self.better!r}')


@dataclass(frozen=True, kw_only=True)
class TrainingRecord(EvaluationRecord):
    """What a training run recorded, with what its best weights reached.

    Args:
        steps: the optimizer steps, counted from 1, at which `loss` and `learning_rate` were recorded. Where a resumed
            run recorded a step again, the later record counts.
        loss: the training loss at each of `steps`.
        learning_rate: the learning rate at each of `steps`; empty where it was not recorded.
        seconds_per_step: time of one step.
        data_share: the fraction of a step's time that was spent waiting for data.
        evaluations: steps and the validation metrics measured there.
        validation_loss: the validation metric that measures what `loss` measures and is drawn beside it; the empty
            string draws none.
        best_step: the step whose weights were kept.
        stopped: why it ended, such as "all steps done".
        resumed_from: the steps at which a stopped run was taken up again.

    Raises:
        ValueError: `loss` or `learning_rate` is not as long as `steps`.
    """

    steps: Sequence[int] = ()
    loss: Sequence[float | None] = ()
    learning_rate: Sequence[float | None] = ()
    seconds_per_step: float | None = None
    data_share: float | None = None
    evaluations: Sequence[tuple[int, Figures]] = ()
    validation_loss: str = "loss"
    best_step: int | None = None
    stopped: str = ""
    resumed_from: Sequence[int] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.loss) != len(self.steps):
            raise ValueError(f"there are {len(self.loss)} losses for {len(self.steps)} steps; each step needs one")
        if len(self.learning_rate) not in (0, len(self.steps)):
            raise ValueError(
                f"there are {len(self.learning_rate)} learning rates for {len(self.steps)} steps; "
                "give one per step, or none at all"
            )
