"""Series for the race: the forecasting task's own reading, splitting and windows, and what it is judged against.

A window's time steps are read, and as many that follow are forecast. Quality is the mean squared error of values that
are standardised by the training part, over windows of the validation part; the test part is not looked at.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from regard.errors import UserError
from regard.tasks.series.forecasting import Forecasting, ForecastingSettings
from regard.wording import shown

EVALUATION_WINDOWS = 512
SHOWN_STEPS = 96
PART = "validation"


def read_series(path: str | None, *, train_length: int) -> Forecasting:
    """Read the user's series, or the generated seasonal one.

    Args:
        path: a CSV file with a header; None = the generated series.
        train_length: time steps that are read, and that are forecast.

    Raises:
        UserError: a file that is missing, unreadable, no such CSV, or too short.
    """
    windows = ForecastingSettings(context_len=train_length, horizon=train_length, evaluation_windows=EVALUATION_WINDOWS)
    task = Forecasting(windows)
    try:
        task.read(None if path is None else Path(path))
    except UserError as error:
        # the task speaks of its own option, and in a race both lengths are one
        raise UserError(str(error).replace("--set horizon", "--train-length")) from None
    return task


def description_of(task: Forecasting, path: str | None) -> str:
    """One line for the report, with the file's name instead of its path."""
    if path is None:
        return task.described
    return f"{shown(Path(path).name, 80)}: {task.described.removeprefix(f'{shown(path)}: ')}"


def notes_of(task: Forecasting) -> list[str]:
    """What the user should know; nothing of the test part, which is not evaluated."""
    return [note for note in task.notes if not note.startswith("test:")]


def baselines(task: Forecasting, *, rows: int = 64) -> dict[str, float]:
    """The mean squared errors of two forecasts that need no network, on the windows that rows are judged on.

    Args:
        task: with its series.
        rows: windows at a time.
    """
    repeated, mean, numbers = 0.0, 0.0, 0
    for context, truth in task.evaluation_batches(PART, rows):
        repeated += float((context[:, -1:] - truth).double().square().sum())
        # standardised values have the training part's mean at 0
        mean += float(truth.double().square().sum())
        numbers += truth.numel()
    return {"repeating the last value": repeated / numbers, "training mean": mean / numbers}


def shown_window(task: Forecasting) -> tuple[Tensor, list[str]]:
    """The context of the middle validation window, its last 96 time steps at most, and a label per time step.

    Returns:
        `(1, time steps, channels)`, and labels that count back from the last time step, t.
    """
    contexts = torch.cat([context for context, _ in task.evaluation_batches(PART, 1)])
    window = contexts[len(contexts) // 2][-SHOWN_STEPS:]
    back = range(len(window) - 1, -1, -1)
    return window[None], [f"t\u2212{steps}" if steps else "t" for steps in back]
