"""What the reports of training, evaluation and prediction say alike."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regard.files import write_atomically

if TYPE_CHECKING:
    from torch import nn

    from regard.tasks.task import Extras, Task

BAD_FILES = "bad_files.csv"


def shared_fields(
    task: Task, model: nn.Module, model_name: str, metrics: Mapping[str, Mapping[str, float]], extras: Extras
) -> dict[str, Any]:
    """The fields of a record that do not depend on how the network came to be.

    Args:
        task: with its data.
        model: the network.
        model_name: its registered name.
        metrics: by part of the data.
        extras: what is shown beside them.
    """
    from regard.tasks.networks import count_parameters

    return {
        "title": f"{model_name} on {task.name}",
        "command": command(),
        "task": task.name,
        "data": task.described,
        "parameters": count_parameters(model),
        "metric": task.metric,
        "better": task.better,
        "final": metrics,
        "notes": task.notes,
        "samples": extras.samples,
        "tables": extras.tables,
        "charts": extras.lines,
        "heat_maps": [vars(found) for found in extras.heat_maps],
        "pictures": [(picture.title, picture.png) for picture in extras.pictures],
        "legend": extras.legend,
    }


def write_files(extras: Extras, folder: Path) -> list[Path]:
    """Write the files that an evaluation has beside its page; returns them.

    Raises:
        OSError: the folder is not writable, or the disk is full.
    """
    for name, text in extras.files:
        write_atomically(folder / name, text)
    return [folder / name for name, _ in extras.files]


def command() -> list[str]:
    """The command line of this process."""
    return ["regard", *sys.argv[1:]]


def bad_files_text(task: Task) -> str:
    """Files that were skipped, and why, as CSV."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([("file", "problem"), *task.bad])
    return table.getvalue()
