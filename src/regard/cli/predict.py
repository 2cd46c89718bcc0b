"""`regard predict`: result files from a checkpoint and the user's files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from regard.cli.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from regard.tasks.task import Task

EXAMPLES = """
  regard predict runs/etth1 latest.csv --out forecasts/
  regard predict runs/palm english.txt --out translations/
"""


def run(
    checkpoint: Path,
    inputs: list[Path],
    *,
    out: Path,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> int:
    """Write predictions for your files; what is written depends on the task (CSV, JSONL or text).

    Args:
        checkpoint: a file that regard train wrote, or its folder.
        inputs: files in the format of the task.
        out: folder for the results; files of the same names in it are replaced, inputs never.
        device: where to run (default auto, a GPU if there is one).
    """
    from regard.cli.console import output, progress
    from regard.cli.evaluate import chosen_device
    from regard.tasks import checkpoint as checkpoints
    from regard.wording import shown

    for path in inputs:
        if not path.exists():
            raise UserError(f"there is no file {shown(path)}")
    loaded = checkpoints.load(checkpoint)
    console = output()
    model = loaded.model.to(chosen_device(device))
    try:
        out.mkdir(parents=True, exist_ok=True)
        with progress().status(f"predicting {len(inputs)} files"):
            written = _predict(loaded.task, model, inputs, out)
    except OSError as error:
        raise UserError(f"cannot write in {shown(out)}: {error.strerror or error}") from None
    for path in written:
        console.print(str(path), soft_wrap=True)
    return 0


def _predict(task: Task, model: nn.Module, inputs: list[Path], out: Path) -> list[Path]:
    """Predict into a folder inside `out`, and move the results once all are there and none takes an input's place.

    Raises:
        UserError: a result would replace an input, or another result.
    """
    from regard.wording import shown

    given = [path.resolve() for path in inputs]
    with tempfile.TemporaryDirectory(dir=out, prefix=".predicting-") as folder:
        made = task.predict(model, inputs, Path(folder))
        targets = [out / path.name for path in made]
        for number, target in enumerate(targets):
            whole = target.resolve()
            if target.exists() and any(whole == path or path in whole.parents for path in given):
                raise UserError(f"{shown(target)} is one of the inputs: name another --out")
            if target in targets[:number]:
                raise UserError(f"two inputs would both become {shown(target)}: predict them into different folders")
        for path, target in zip(made, targets, strict=True):
            os.replace(path, target)
    return targets
