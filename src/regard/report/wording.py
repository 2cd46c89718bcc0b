"""How a race is spoken of: its task, and its quality, such as bits per byte, where lower is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regard.report import units


@dataclass(frozen=True, kw_only=True)
class TaskWords:
    """The words of a task.

    Args:
        title: what mechanisms are raced on.
        token: what training speed and multiply-accumulates are counted in.
        metric: the quality of rows that do not name theirs.
        curve: what learning curves measure.
        sample: heading of the sample that maps are shown on.
        sample_apart: whether the sample's labels stand apart, and are no text.
        decodes: whether mechanisms may decode.
        extrapolates: whether quality is measured beyond the training length.
        learns: whether anything is trained.
        forward: what the time that grows with the length is.
        method: sentences on how it was measured, in place of those on training.
        notes: sentences on how it was measured.
    """

    title: str
    token: str = "token"
    metric: str = "bits_per_byte"
    curve: str = "bits per byte"
    sample: str = "The sample"
    sample_apart: bool = False
    decodes: bool = True
    extrapolates: bool = True
    learns: bool = True
    forward: str = "forward time"
    method: tuple[str, ...] = (
        "Every mechanism sits in the same network with the same parameter budget, data order, steps and seeds.",
    )
    notes: tuple[str, ...] = ()

    @property
    def measures_quality(self) -> bool:
        """Whether learning curves measure the quality itself, so that its baselines can stand beside them."""
        return self.curve != "loss"


_TASKS = {
    "text": TaskWords(title="byte\u2011level language modelling"),
    "image": TaskWords(
        title="image classification",
        token="image",
        metric="accuracy",
        curve="loss",
        sample="Patches of the sample, by row and column",
        sample_apart=True,
        decodes=False,
        extrapolates=False,
    ),
    "series": TaskWords(
        title="time\u2011series forecasting",
        token="time step",
        metric="mse",
        curve="mse",
        sample="Time steps of the sample, counted back from the last, t",
        sample_apart=True,
        extrapolates=False,
        notes=(
            "The mse is the mean squared error over all channels and all time steps that are forecast, of values "
            "standardised by the mean and the standard deviation of the training part.",
            "As many time steps are forecast as are read; a token is a time step with all its channels.",
        ),
    ),
    "pretrained": TaskWords(
        title="text, inside a trained model",
        metric="perplexity",
        extrapolates=False,
        learns=False,
        forward="prompt time",
        method=(
            "Nothing is trained: the model's own weights are used, and only its attention is replaced.",
            "Every contestant reads the same prompts and decodes the same tokens after them, one by one, taking turns "
            "with the model's own attention in one process; the quality is the perplexity of these tokens after the "
            "longest prompt.",
            "A budget is the number of keys that a decoded token may attend to. Recycled attention and H2O read their "
            "prompt in full, and recycled attention sees all keys at every 16th token.",
            "The mass is what full attention's weights, by the model's own queries and keys, give to the keys attended "
            "to.",
        ),
    ),
}


def task_words(task: str) -> TaskWords:
    """The words of a task; of one that is not known, its name."""
    return _TASKS.get(task, TaskWords(title=task, curve="loss"))


@dataclass(frozen=True)
class QualityWords:
    """The words and number formats of a quality metric.

    Args:
        metric: its name in the results: "bits_per_byte", "accuracy", "mse", or another.
        lower_is_better: whether a smaller figure is the better one.
    """

    metric: str
    lower_is_better: bool

    @property
    def name(self) -> str:
        """The metric in words."""
        return units.shorten(self.metric.replace("_", " "), 40)

    @property
    def direction(self) -> str:
        """Which way is better, as the start of a sentence."""
        return "Lower is better" if self.lower_is_better else "Higher is better"

    @property
    def axis(self) -> str:
        """An axis title with the direction."""
        return f"{self.name} ({self.direction.lower()})"

    def value(self, number: float | None) -> str:
        """Format a figure without its unit."""
        if self.metric == "accuracy":
            return units.percent(number)
        if self.metric == "mse":
            # three digits wherever the point is: a series that is easy to forecast has a tiny error
            return units.figure(number, 3)
        return units.plain(number, 3)

    def tick(self, number: float | None) -> str:
        """Format a figure on an axis."""
        return units.percent(number, digits=0) if self.metric == "accuracy" else _short(number)

    def spread(self, number: float | None) -> str:
        """Format a standard deviation as ± figure; empty where there is none."""
        if number is None:
            return ""
        if self.metric == "mse":
            return f"± {units.figure(number, 2)}"
        return f"± {units.plain(100 * number, 1) if self.metric == 'accuracy' else units.plain(number, 3)}"

    def with_unit(self, mean: float | None, spread: float | None = None) -> str:
        """Format a figure with its spread and unit: 1.234 ± 0.012 bits/byte."""
        if mean is None:
            return units.MISSING
        parts = [self.value(mean), self.spread(spread)]
        unit = {"bits_per_byte": "bits/byte", "accuracy": ""}.get(self.metric, self.name)
        return " ".join(part for part in (*parts, unit) if part)


def _short(number: float | None) -> str:
    if number is None:
        return units.MISSING
    return f"{number:.4g}".replace("-", units.MINUS)


def listed(names: Sequence[str], most: int = 8) -> str:
    """Return names as people list them: "a", "a and b", "a, b and c"; beyond `most`, "and n more"."""
    shown = [units.shorten(name) for name in names[:most]]
    if len(names) > most:
        shown.append(f"{len(names) - most} more")
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1] if shown else ""
