"""`regard train`: a system on the user's files, to a checkpoint."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from regard.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from regard.cli.console import Console
    from regard.tasks.fit import Hardware, Outcome
    from regard.tasks.runs import Plan

EXAMPLES = """
  regard train transnormer
  regard train lightning --data my_corpus/ --steps 2000 --set dim=256,num_layers=6
  regard train aaren --data ETTh1.csv --out runs/etth1 --patience 3
  regard train palm --data multi30k/
  regard train davit_tiny --data photos/ --set image_size=224,augment=strong,mixup=0.8,ema=0.999,drop_path=0.1
  regard train davit_tiny --data photos/ --pretrained runs/first --freeze body
  regard train braintumor --data BraTS2020/ --folds 5 --fold 0 --out runs/fold-0
  regard train titans --resume
"""

REPORT = "report.html"
LEADERS_FOLDER = "REGARD_LEADERS_FOLDER"
"""Set for the processes that Lightning starts, by this same command line, when several train together."""


def run(
    system: str | None = None,
    *,
    data: str | None = None,
    task: str | None = None,
    out: Path | None = None,
    steps: int | None = None,
    batch: int | None = None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    evaluate_every: int | None = None,
    patience: int | None = None,
    seed: int | None = None,
    set_: str | None = None,
    pretrained: str | None = None,
    freeze: Literal["none", "stem", "body"] | None = None,
    folds: int | None = None,
    fold: int | None = None,
    on_bad_image: Literal["skip", "refuse"] | None = None,
    accelerator: str = "auto",
    devices: str = "1",
    strategy: str = "auto",
    precision: str = "32-true",
    workers: int = 0,
    resume: bool = False,
    dry_run: bool = False,
    import_: str | None = None,
) -> int:
    """Train a system on your files, or on a built-in sample, and write a checkpoint that the other commands read.

    The best network is model.safetensors, with its config inside; last.safetensors is what --resume goes on from:
    on the CPU the curve is then the same, bit for bit, as without the interruption. Also written: log.csv,
    evaluations.csv and report.html.

    Args:
        system: a network (transnormer_lm), a system (titans), or any sequence mixer (hedgehog), which is put into a
            network made for the task; with --resume it may be left out.
        data: your files, in the format of the task; by default a sample that needs no download.
        task: language, forecasting, series_classification, events, control, translation, classification, segmentation
            or medical_classification; by default what the data look like, or the system's own.
        out: folder for the results (default runs/train-SYSTEM-TASK-DATE-TIME).
        steps: number of updates (default: the task's own, a minute or two on two cores).
        batch: rows per update.
        learning_rate: the peak; a tenth of the steps warms up, then it falls along a cosine.
        weight_decay: of AdamW.
        evaluate_every: steps between two evaluations and checkpoints (default a tenth of all).
        patience: evaluations without a better value after which training stops early (default 0, never).
        seed: of the initial weights, the order of the data, and dropout.
        set_: other settings of the network, of the data or of the recipe, as NAME=VALUE,NAME=VALUE; --dry-run shows
            them all.
        pretrained: weights to start from: a checkpoint or a run of regard train, or a published .safetensors or .pth
            file in a layout that the network knows; the classifier begins anew where the classes differ in number.
        freeze: weights that are not trained: none, stem (what comes before the first block), or body (all but the
            classifier).
        folds: into how many parts patients are dealt (medical tasks; default 5).
        fold: the part that validates, from 0 (medical tasks; default 0).
        on_bad_image: what becomes of image files that do not decode: skip (they are listed) or refuse.
        accelerator: cpu, gpu, or auto (default), a GPU if there is one.
        devices: how many devices, or auto.
        strategy: how several devices work together, in Lightning's words, such as ddp or fsdp.
        precision: 32-true, bf16-mixed, 16-mixed, bf16-true or 64-true.
        workers: processes that prepare batches beside the training.
        resume: go on with the run in --out, or with the newest in runs; options that are left out are as they were.
        dry_run: show the plan (data, network, settings, parameters) and stop.
        import_: a module, or a Python file, that registers systems of its own.
    """
    from regard.cli.errors import need

    need("lightning", extra="train", command="train")
    from regard.tasks import runs
    from regard.tasks.fit import Hardware
    from regard.tasks.set_option import split_settings

    if import_ is not None:
        from regard.compare.mechanisms import import_outsider

        import_outsider(import_)
    recipe = {
        "steps": steps,
        "batch": batch,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "evaluate_every": evaluate_every,
        "patience": patience,
        "seed": seed,
        "freeze": freeze,
    }
    options = {"on_bad_image": on_bad_image, "folds": folds, "fold": fold}
    settings = split_settings(set_) | {name: str(value) for name, value in options.items() if value is not None}
    given = {"system": system, "task": task, "data": data, "settings": settings, "pretrained": pretrained}
    leader = os.environ.get(LEADERS_FOLDER)
    out = out if leader is None else Path(leader)
    wishes, folder = _wishes(given, {name: value for name, value in recipe.items() if value is not None}, out, resume)
    from regard.cli.console import output

    console = output()
    if dry_run:
        with tempfile.TemporaryDirectory(prefix="regard-plan-") as cache:
            _show_plan(runs.plan(wishes, cache=Path(cache)), console, whole=True)
        return 0
    if folder is None:
        data_path = None if wishes.data is None else Path(wishes.data)
        folder = runs.new_folder(wishes.system, runs.choose_task(wishes.system, wishes.task, data_path)[0])
    planned = _planned(wishes, folder, resume=resume or leader is not None, console=console if leader is None else None)
    earlier = (folder / runs.RUN).read_bytes() if (folder / runs.RUN).is_file() else None
    if leader is None:
        runs.write_wishes(folder, wishes)
        os.environ[LEADERS_FOLDER] = str(folder)
    hardware = Hardware(
        accelerator=accelerator,
        devices=int(devices) if devices.isdigit() else devices,
        strategy=strategy,
        precision=precision,
        workers=workers,
        progress=sys.stderr.isatty(),
    )
    try:
        return _train(planned, folder, hardware, resume=resume, console=console)
    except UserError:
        if leader is None:
            _take_back(folder, earlier)
        raise
    finally:
        os.environ.pop(LEADERS_FOLDER, None)


def _wishes(given: dict[str, Any], recipe: dict[str, Any], out: Path | None, resume: bool) -> Any:
    """What is to be done, and the folder where it is known already."""
    from regard.tasks import runs

    folder = out
    if resume and folder is None:
        folder = runs.latest_folder(given["system"])
    if resume and folder is not None and (folder / runs.RUN).is_file():
        earlier = runs.read_wishes(folder)
        for name in ("system", "task", "data", "pretrained"):
            if given[name] not in (None, getattr(earlier, name)):
                raise UserError(f"the run in {folder} has {name} {getattr(earlier, name)}, not {given[name]}")
        return runs.Wishes(
            system=earlier.system,
            task=earlier.task,
            data=earlier.data,
            settings={**earlier.settings, **given["settings"]},
            recipe={**earlier.recipe, **recipe},
            pretrained=earlier.pretrained,
        ), folder
    if given["system"] is None:
        raise UserError("missing SYSTEM: " + ("there is no run to resume" if resume else "regard list shows all names"))
    return runs.Wishes(**given, recipe=recipe), folder


def _planned(wishes: Any, folder: Path, *, resume: bool, console: Console | None) -> Plan:
    """Claim the folder, read the data and show the plan."""
    from regard.cli.console import progress
    from regard.tasks import runs

    with runs.claimed(folder, resume=resume):
        with progress().status("reading the data"):
            planned = runs.plan(wishes, cache=folder)
        _list_bad(planned, folder)
        if console is not None:
            _show_plan(planned, console, whole=False)
    return planned


def _list_bad(planned: Plan, folder: Path) -> None:
    """Keep the names of all files that were skipped."""
    from regard.cli.records import BAD_FILES, bad_files_text
    from regard.files import write_atomically

    if planned.task.bad:
        write_atomically(folder / BAD_FILES, bad_files_text(planned.task))
        planned.task.notes.append(f"all of them are listed in {folder / BAD_FILES}")


def _take_back(folder: Path, earlier: bytes | None) -> None:
    """What was refused is not what the folder's run is: its `run.json` becomes what it was."""
    from regard.files import write_atomically
    from regard.tasks import runs
    from regard.tasks.checkpoint import LAST

    if earlier is not None:
        write_atomically(folder / runs.RUN, earlier)
    elif not (folder / LAST).exists():
        (folder / runs.RUN).unlink()


def _show_plan(planned: Plan, console: Console, *, whole: bool) -> None:
    from regard.meta_device import sizes_only
    from regard.tasks.depth import freeze
    from regard.tasks.networks import config_to_plain, count_parameters

    with sizes_only():
        # only its size is shown
        model = planned.build()
    console.print(f"data: {planned.task.described}", soft_wrap=True)
    for note in planned.task.notes:
        console.print(f"note: {note}", soft_wrap=True)
    recipe = planned.recipe
    console.print(
        f"{planned.model_name} on {planned.task.name}: {count_parameters(model):,} parameters, "
        f"{recipe.steps:,} steps of {recipe.batch} rows"
    )
    if recipe.freeze != "none":
        freeze(model, recipe.freeze)
        console.print(f"{count_parameters(model):,} of the parameters are trained")
    if planned.initial:
        console.print(f"{len(planned.initial):,} of {len(model.state_dict()):,} weights and buffers are pretrained")
    if whole:
        from rich.table import Table

        drawn = Table(box=None, pad_edge=False, padding=(0, 1), show_header=False)
        owners = {planned.model_name: planned.config, planned.task.name: planned.task.settings, "recipe": recipe}
        for owner, values in owners.items():
            for name, value in config_to_plain(values).items():
                drawn.add_row(owner, name, str(value))
        console.print(drawn)


def _train(planned: Plan, folder: Path, hardware: Hardware, *, resume: bool, console: Console) -> int:
    from regard.cli.console import progress
    from regard.tasks import runs
    from regard.tasks.outcome import in_words, measure, parts_of

    outcome = runs.train(planned, folder, hardware, resume=resume)
    if not outcome.is_first_process:
        return 0
    model = runs.best_of(planned, folder)
    task = planned.task
    with progress().status("evaluating"):
        final = measure(task, model, planned.recipe.batch, parts_of(task))
        extras = task.extras(model, task.parts()[0])
    _report(planned, folder, outcome, final, extras, model)
    console.print(f"{outcome.stopped}; best at step {outcome.progress.best_step:,}")
    for part, metrics in final.items():
        console.print(f"{part}: {in_words(metrics)}", soft_wrap=True)
    if outcome.seconds_per_step is not None and outcome.data_share is not None:
        console.print(f"{1000 * outcome.seconds_per_step:.1f} ms per step, data loading {outcome.data_share:.1%} of it")
    for name in ("model.safetensors", "log.csv", REPORT):
        console.print(str(folder / name), soft_wrap=True)
    return 0


def _report(planned: Plan, folder: Path, outcome: Outcome, final: Any, extras: Any, model: nn.Module) -> None:
    from regard.cli.records import shared_fields, write_files
    from regard.report.record import TrainingRecord
    from regard.report.training import write_training_report
    from regard.tasks.logs import read_evaluations, read_steps
    from regard.tasks.outcome import settings_rows

    task, logged = planned.task, read_steps(folder)
    record = TrainingRecord(
        **shared_fields(task, model, planned.model_name, final, extras),
        system=planned.wishes.system,
        facts=settings_rows(network=planned.config, data=task.settings, recipe=planned.recipe),
        steps=[int(step) for step in logged.get("step", [])],
        loss=logged.get("loss", []),
        learning_rate=logged.get("learning_rate", []),
        seconds_per_step=outcome.seconds_per_step,
        data_share=outcome.data_share,
        evaluations=read_evaluations(folder),
        best_step=outcome.progress.best_step,
        stopped=outcome.stopped,
        resumed_from=outcome.progress.resumed_from,
    )
    write_training_report(record, folder / REPORT)
    write_files(extras, folder)
