"""`regard predict`: result files from a checkpoint and the user's files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from regard.cli.errors import UserError

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
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {shown(out)}: {error.strerror}") from None
    console = output()
    model = loaded.model.to(chosen_device(device))
    with progress().status(f"predicting {len(inputs)} files"):
        written = loaded.task.predict(model, inputs, out)
    for path in written:
        console.print(str(path), soft_wrap=True)
    return 0
