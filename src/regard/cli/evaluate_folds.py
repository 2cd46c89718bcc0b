"""`regard evaluate` on the folders of several folds: each network on the part that it was not trained on."""

from __future__ import annotations

import csv
import io
import json as json_module
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from regard.errors import UserError
from regard.files import write_atomically

if TYPE_CHECKING:
    from regard.tasks.checkpoint import Checkpoint
    from regard.tasks.task import Extras

BEST = "model.safetensors"
Metrics = dict[str, float]


def folds_in(folder: Path) -> list[Path]:
    """The folders of several runs below a folder that is itself none; empty for anything else."""
    if not folder.is_dir() or (folder / BEST).is_file():
        return []
    found = sorted(path.parent for path in folder.glob("*/" + BEST))
    return found if len(found) > 1 else []


def evaluate_folds(
    folds: Sequence[Path],
    *,
    data: str | None,
    batch: int,
    device: str,
    json: Path | None,
    out: Path | None,
    part: str | None,
) -> int:
    """Measure every fold's network, and tell the mean and the spread.

    Args:
        folds: folders of runs.
        data: the files; None = those of each run.
        batch: rows at a time.
        device: where to run.
        json: write the metrics of each fold to this file.
        out: folder for report.html, folds.csv and the folds' own files in one.
        part: must be None or "validation".

    Raises:
        UserError: runs that are no folds of the same data.
    """
    from regard.cli.console import output, progress
    from regard.tasks.outcome import in_words

    if part not in (None, "validation"):
        raise UserError(f"--part must be validation for several folds, got {part}")
    console, measured, extras = output(), {}, {}
    loaded: Checkpoint | None = None
    for folder in folds:
        with progress().status(f"evaluating {folder.name}"):
            loaded, measured[folder.name], extras[folder.name] = _one_fold(folder, data, batch, device)
        console.print(f"{folder.name}: {in_words(measured[folder.name])}", soft_wrap=True)
    assert loaded is not None
    rows = spread_rows(measured)
    for name, *_, told in rows:
        console.print(f"{name}: {told}", soft_wrap=True)
    if json is not None:
        write_atomically(json, json_module.dumps(measured, indent=1) + "\n")
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            written = _write(loaded, measured, rows, extras, out)
        except OSError as error:
            raise UserError(f"cannot write in {out}: {error.strerror}") from None
        for path in written:
            console.print(str(path), soft_wrap=True)
    return 0


def _one_fold(folder: Path, data: str | None, batch: int, device: str) -> tuple[Checkpoint, Metrics, Extras]:
    from regard.cli.evaluate import data_of_run
    from regard.tasks import checkpoint as checkpoints
    from regard.tasks.outcome import measure

    loaded = checkpoints.load(folder)
    task = loaded.task
    if not hasattr(task.settings, "fold"):
        raise UserError(f"{folder} is a run of {task.name}, which has no folds")
    model = loaded.model.to(device)
    path = data if data is not None else data_of_run(folder)
    with tempfile.TemporaryDirectory(prefix="regard-evaluate-") as cache:
        task.read(None if path is None else Path(path), cache=Path(cache))
        metrics = measure(task, model, batch, ["validation"])["validation"]
        return loaded, metrics, task.extras(model, "validation")


def spread_rows(measured: Mapping[str, Metrics]) -> list[tuple[str, ...]]:
    """A row per metric: its name, its value in every fold, and mean and standard deviation."""
    names = list(next(iter(measured.values())))
    rows = []
    for name in names:
        values = [metrics[name] for metrics in measured.values()]
        rows.append((name, *(f"{value:.4g}" for value in values), f"{mean(values):.4g} ± {stdev(values):.2g}"))
    return rows


def _write(
    loaded: Checkpoint,
    measured: Mapping[str, Metrics],
    rows: Sequence[tuple[str, ...]],
    extras: Mapping[str, Extras],
    out: Path,
) -> list[Path]:
    from regard.cli.records import shared_fields
    from regard.report.record import EvaluationRecord
    from regard.report.training import write_evaluation_page
    from regard.tasks.outcome import settings_rows
    from regard.tasks.task import Extras

    header = ("metric", *measured, "mean ± standard deviation")
    tables: list[Any] = [("Folds", header, tuple(rows))]
    for name, own in extras.items():
        tables += [(f"{name}: {title}", columns, lines) for title, columns, lines in own.tables]
    pictures = [picture for own in extras.values() for picture in own.pictures]
    whole = Extras(tables=tuple(tables), pictures=tuple(pictures), legend=next(iter(extras.values())).legend)
    record = EvaluationRecord(
        **shared_fields(loaded.task, loaded.model, loaded.header.model, measured, whole),
        system=loaded.header.model,
        facts=settings_rows(network=loaded.model.config, data=loaded.task.settings),
    )
    write_evaluation_page(record, out / "report.html")
    write_atomically(out / "folds.csv", _csv([header, *rows]))
    written = [out / "report.html", out / "folds.csv"]
    for name in dict.fromkeys(name for own in extras.values() for name, _ in own.files):
        texts = {fold: dict(own.files)[name] for fold, own in extras.items() if name in dict(own.files)}
        write_atomically(out / name, joined(texts))
        written.append(out / name)
    return written


def joined(texts: Mapping[str, str]) -> str:
    """Tables with the same header as one, with the name of each before its rows."""
    lines: list[Sequence[str]] = []
    for name, text in texts.items():
        header, *rows = csv.reader(io.StringIO(text))
        if not lines:
            lines.append(["fold", *header])
        lines += [[name, *row] for row in rows]
    return _csv(lines)


def _csv(rows: Sequence[Sequence[str]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()
