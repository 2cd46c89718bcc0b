"""`regard evaluate`: the metrics of a checkpoint on the user's files."""

from __future__ import annotations

import json as json_module
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from regard.cli.errors import UserError, writable_file
from regard.files import write_atomically

if TYPE_CHECKING:
    from regard.cli.console import Console
    from regard.tasks.checkpoint import Checkpoint
    from regard.tasks.task import Extras

EXAMPLES = """
  regard evaluate runs/first/model.safetensors
  regard evaluate runs/etth1 --data ETTh1.csv --part test
  regard evaluate runs/photos --data more_photos/ --part all --image-size 256 --out evaluation/
  regard evaluate runs/first --data other.txt --part all --json metrics.json --out evaluation/
  regard evaluate runs/tumour_folds --out evaluation/
"""

SAMPLE = "sample"
"""Where a run keeps the sample that it wrote, as `regard.tasks.volumes.sample` names it."""
MOST_ROWS = 40
"""Rows of a table that are printed."""


def run(
    checkpoint: Path,
    *,
    data: str | None = None,
    part: str | None = None,
    batch: int = 16,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    json: Path | None = None,
    out: Path | None = None,
    image_size: int | None = None,
    on_bad_image: Literal["skip", "refuse"] | None = None,
) -> int:
    """Measure a trained network on your files, or on those that it was trained with.

    Args:
        checkpoint: a file that regard train wrote, or its folder; or a folder with the folders of several folds, each
            of which is measured on its own validation part.
        data: your files, in the format of the task; by default those of the run in whose folder the checkpoint lies,
            or else the built-in sample.
        part: which part of the data (validation, test, train, all); by default every part but all.
        batch: rows at a time.
        device: where to run (default auto, a GPU if there is one).
        json: write the metrics to this file.
        out: folder for report.html, with samples and tables.
        image_size: bring images to another number of pixels per side than in training, if the network takes them.
        on_bad_image: what becomes of image files that do not decode: skip (they are listed) or refuse; by default as in
            training.
    """
    from regard.cli.console import output, progress
    from regard.cli.evaluate_folds import evaluate_folds, folds_in
    from regard.cli.task_options import apply_image_options
    from regard.tasks import checkpoint as checkpoints
    from regard.tasks.outcome import in_words, measure, parts_of

    writable_file(json)
    if batch < 1:
        raise UserError(f"--batch must be at least 1, got {batch}")
    folds = folds_in(checkpoint)
    if folds:
        return evaluate_folds(
            folds, data=data, batch=batch, device=chosen_device(device), json=json, out=out, part=part
        )
    loaded = checkpoints.load(checkpoint)
    task, model = loaded.task, loaded.model.to(chosen_device(device))
    apply_image_options(loaded, image_size=image_size, on_bad_image=on_bad_image)
    path = data if data is not None else data_of_run(checkpoint)
    console = output()
    with tempfile.TemporaryDirectory(prefix="regard-evaluate-") as cache:
        task.read(None if path is None else Path(path), cache=Path(cache))
        if part is not None and part not in task.parts():
            raise UserError(f"--part must be one of {', '.join(task.parts())}, got {part}")
        parts = [part] if part is not None else parts_of(task)
        console.print(f"data: {task.described}", soft_wrap=True)
        for note in task.notes:
            console.print(f"note: {note}", soft_wrap=True)
        with progress().status("evaluating"):
            metrics = measure(task, model, batch, parts)
            extras = task.extras(model, parts[0])
    for name, values in metrics.items():
        console.print(f"{name}: {in_words(values)}", soft_wrap=True)
    print_tables(extras, console)
    if json is not None:
        write_atomically(json, json_module.dumps(metrics, indent=1) + "\n")
    if out is not None:
        console.print(str(_report(loaded, metrics, extras, out)), soft_wrap=True)
    return 0


def chosen_device(device: str) -> str:
    """The device that "auto" means here.

    Raises:
        UserError: there is no GPU where one is asked for.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here")
    return device


def data_of_run(checkpoint: Path) -> str | None:
    """The files that the run in whose folder a checkpoint lies was trained on, or the sample that it wrote there.

    Returns:
        The path as the run was given it; None where neither is known, and a sample is made anew.
    """
    from regard.tasks import runs

    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    if not (folder / runs.RUN).is_file():
        return None
    written = folder / SAMPLE
    return runs.read_wishes(folder).data or (str(written) if written.is_dir() else None)


def print_tables(extras: Extras, console: Console) -> None:
    """Print the tables of an evaluation, the longest ones in part."""
    from rich.table import Table

    for title, header, rows in extras.tables:
        console.print(title, style="bold", soft_wrap=True)
        drawn = Table(box=None, pad_edge=False, padding=(0, 1))
        for name in header:
            drawn.add_column(str(name), justify="right")
        for row in rows[:MOST_ROWS]:
            drawn.add_row(*map(str, row))
        console.print(drawn)
        if len(rows) > MOST_ROWS:
            console.print(f"and {len(rows) - MOST_ROWS:,} more rows: --out writes a page with all of them")


def _report(loaded: Checkpoint, metrics: dict[str, dict[str, float]], extras: Extras, out: Path) -> Path:
    from regard.cli.records import BAD_FILES, bad_files_text, shared_fields, write_files
    from regard.report.record import EvaluationRecord
    from regard.report.training import write_evaluation_page
    from regard.tasks.outcome import settings_rows

    task, model, header = loaded.task, loaded.model, loaded.header
    record = EvaluationRecord(
        **shared_fields(task, model, header.model, metrics, extras),
        system=header.model,
        facts=settings_rows(network=model.config, data=task.settings),
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_evaluation_page(record, out / "report.html")
        write_files(extras, out)
        if task.bad:
            write_atomically(out / BAD_FILES, bad_files_text(task))
    except OSError as error:
        raise UserError(f"cannot write in {out}: {error.strerror}") from None
    return out / "report.html"
