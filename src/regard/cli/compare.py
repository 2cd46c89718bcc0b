"""`regard compare`: race mechanisms on the user's own data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from regard.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rich.table import Table

    from regard.cli.console import Console
    from regard.compare.settings import Settings

EXAMPLES = """
  regard compare text
  regard compare text --data my_corpus/ --seeds 3
  regard compare image --data photos/ --mechanisms softmax,eca
  regard compare series --data ETTh1.csv
  regard compare text --mechanisms lightning,softmax --lengths 512,1024,4096
  regard compare text --resume
  regard compare text --import my_mechanism.py
  regard compare text --model models/llama --data book.txt --lengths 1024,4096 --budgets 128,512
"""


def run(
    task: Literal["text", "image", "series"] | None = None,
    *,
    data: str | None = None,
    mechanisms: str | None = None,
    lengths: str | None = None,
    steps: int | None = None,
    seeds: int | None = None,
    train_length: int | None = None,
    batch: int | None = None,
    dim: int | None = None,
    layers: int | None = None,
    heads: int | None = None,
    image_size: int | None = None,
    device: Literal["auto", "cpu", "cuda"] | None = None,
    jobs: int | None = None,
    time_limit: float | None = None,
    out: str | None = None,
    resume: bool = False,
    dry_run: bool = False,
    import_: str | None = None,
    model: str | None = None,
    budgets: str | None = None,
    passages: int | None = None,
    scored: int | None = None,
) -> int:
    """Race mechanisms on your own data: a ranked table, a Pareto front, a recommendation and a report.

    Every mechanism gets the same host network, number of parameters, data order, steps and seeds, and a process of its
    own. Results are written as they come; Ctrl-C keeps them.

    With --model nothing is trained: attention inside a language model of Hugging Face transformers is replaced, by all
    that needs no training, and raced on your text at several lengths and budgets of keys: perplexity, hidden numbers
    found, attention mass recovered, time of the prompt and of each token, memory.

    Args:
        task: what to learn: the next byte of text (default), the class of images, or how a multivariate series goes on.
        data: a UTF-8 file or a folder of them (text), a folder of class sub-folders (image), or a CSV file with a
            header and a row per time step (series); by default the Python standard library's own sources,
            scikit-learn's digits, or a generated seasonal series.
        mechanisms: names separated by commas, or all (default).
        lengths: numbers of tokens at which cost and decoding are measured, separated by commas
            (default 256 to 8192, for images 64 to 4096).
        steps: training steps per run (default 600, for series 300).
        seeds: training runs per mechanism; several give a spread (default 1).
        train_length: bytes of a training window, or time steps that are read and as many that are forecast
            (default 128, for series 96).
        batch: windows or images per training step (default 8, for images and series 32).
        dim: width of the host network (default 64).
        layers: layers of the host network (default 2).
        heads: heads of the sequence mixers (default 4).
        image_size: pixels per side to which images are resized (default 32; the digits have 8).
        device: where to run (default auto, a GPU if there is one).
        jobs: mechanisms that train at the same time; timing never overlaps (default one per core, at most 4).
        time_limit: minutes after which a mechanism is given up (default none).
        out: folder for the results (default runs/compare-TASK-DATE-TIME).
        resume: continue an interrupted race, that in --out or the newest in runs; options that are left out are as
            they were. Where there is none, a new race starts.
        dry_run: show the plan (mechanisms, parameters, estimated minutes) and stop.
        import_: a module, or a Python file, that registers mechanisms of its own.
        model: a folder in the layout of transformers, or a name on its hub; mechanisms are then sdpa (the model's own),
            softmax, hip, recycled, streaming_llm, h2o and landmark, and lengths are those of prompts.
        budgets: with --model, keys that a mechanism may attend to at once, separated by commas (default 64,256).
        passages: with --model, stretches of the text that are read (default 2).
        scored: with --model, tokens after each prompt that are decoded and scored (default 64).
    """
    import time

    begin = time.monotonic()
    given = {
        "task": task,
        "data": data,
        "mechanisms": mechanisms,
        "lengths": lengths,
        "steps": steps,
        "seeds": seeds,
        "train_length": train_length,
        "batch": batch,
        "dim": dim,
        "num_layers": layers,
        "num_heads": heads,
        "image_size": image_size,
        "device": device,
        "jobs": jobs,
        "time_limit_s": None if time_limit is None else 60 * time_limit,
        "imports": import_,
    }
    inside = {"model": model, "budgets": budgets, "passages": passages, "scored": scored}
    if model is not None or (resume and _is_of_a_model(out, task)):
        from regard.cli.compare_model import run_inside

        return run_inside({**given, **inside}, out=out, resume=resume, dry_run=dry_run)
    if unused := [f"--{name}" for name, value in inside.items() if value is not None]:
        raise UserError(f"{unused[0]} belongs to a race inside a trained model: name one with --model")
    return _compare(given, out=out, resume=resume, dry_run=dry_run, begin=begin)


def _is_of_a_model(out: str | None, task: str | None) -> bool:
    """Whether the race that `--resume` means without --model is one inside a trained model."""
    from regard.compare.folder import find_earlier, read_results

    if task not in (None, "text"):
        return False
    earlier = find_earlier(out, None)
    return earlier is not None and read_results(earlier).get("task") == "pretrained"


def _compare(given: dict[str, Any], *, out: str | None, resume: bool, dry_run: bool, begin: float) -> int:
    from regard.cli.console import output, progress
    from regard.compare.folder import find_earlier, read_results
    from regard.compare.race import require_memory
    from regard.wording import shown

    earlier = find_earlier(out, given["task"]) if resume else None
    stored = read_results(earlier) if earlier is not None else None
    settings = _settings(given, stored, earlier)
    if dry_run:
        return _show_plan(settings, output())
    if stored is not None and earlier is not None and _is_over(stored):
        progress().print(f"{shown(earlier)}: this race is finished, nothing is left to do", soft_wrap=True)
        return _show(stored, earlier, output())
    settings = require_memory(settings, jobs_given=given["jobs"] is not None)
    return _race(settings, earlier, stored, out=out, resume=resume, begin=begin)


def _settings(given: dict[str, Any], stored: dict[str, Any] | None, earlier: Path | None) -> Settings:
    """The settings of this race; onto an earlier one they must agree.

    Raises:
        UserError: a value that makes no sense, or one that differs from the race that is resumed.
    """
    from regard.compare.mechanisms import import_outsider
    from regard.compare.settings import Settings, make_settings
    from regard.wording import shown

    before = Settings.from_json(stored["settings"]) if stored is not None else None
    imports = given["imports"] or (before.imports if before is not None else None)
    if imports is not None:
        import_outsider(imports)
    given = {**given, "device": _device(given["device"], before)}
    settings = make_settings(given, earlier=before)
    if before is not None and earlier is not None and (differing := settings.differences(before)):
        raise UserError(f"cannot resume {shown(earlier)} with other settings: {'; '.join(differing)}")
    return settings


def _device(wanted: str | None, before: Settings | None) -> str:
    if wanted is None and before is not None:
        return before.device
    if wanted == "cpu":
        return "cpu"
    import torch

    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError("--device cuda: PyTorch finds no CUDA device here")
    return "cuda" if available else "cpu"


def _is_over(stored: dict[str, Any]) -> bool:
    """Whether there is nothing left to do: a failure that may have been chance would be tried again."""
    return stored.get("finished") is True and all(row["status"] == "ok" or row.get("final") for row in stored["rows"])


def _race(
    settings: Settings,
    earlier: Path | None,
    stored: dict[str, Any] | None,
    *,
    out: str | None,
    resume: bool,
    begin: float,
) -> int:
    from pathlib import Path

    from regard.cli.console import output, progress
    from regard.cli.errors import EXIT_INTERRUPTED
    from regard.compare.folder import RunFolder
    from regard.compare.race import Interrupted, Race, prepare_data, stamp
    from regard.compare.settings import default_out
    from regard.wording import shown

    console = progress()
    if earlier is not None and stored is not None:
        folder = RunFolder.earlier(earlier, stored)
    else:
        path = Path(out) if out is not None else default_out(settings.task, stamp())
        folder = RunFolder.new(path)
        if resume:
            console.print("nothing to resume: a new race starts", soft_wrap=True)
    try:
        described = prepare_data(settings, folder)
        console.print(f"{described['description']}; results go to {shown(folder.path)}", soft_wrap=True)
        created = stored["created"] if stored is not None else None
        race = Race(settings, folder, described, console=console, created=created, begin=begin)
        try:
            results = race.run()
        except Interrupted:
            console.print(
                f"interrupted; results so far are in {shown(folder.path)}, --resume continues", soft_wrap=True
            )
            return EXIT_INTERRUPTED
    finally:
        folder.release()
    return _show(results, folder.path, output())


def _show(results: dict[str, Any], folder: Path, console: Console) -> int:
    from regard.compare.summary import legend, table

    return show_outcome(results, folder, console, table=table, legend=legend)


def show_outcome(
    results: dict[str, Any], folder: Path, console: Console, *, table: Callable[..., Table], legend: Callable[..., str]
) -> int:
    """Print the outcome; the status is 0 if any row went through the race.

    Args:
        results: the content of `results.json`.
        folder: of the race.
        console: where to.
        table: draws the finished rows.
        legend: says what its columns mean.
    """
    from regard.compare.race import paths_of
    from regard.compare.summary import advice, remarks
    from regard.wording import shown

    ok = any(row["status"] == "ok" for row in results["rows"])
    if ok:
        console.print(table(results, width=console.width))
        console.print(legend(results), style="dim")
    for line in remarks(results):
        console.print(line)
    if ok:
        console.print()
        for line in advice(results):
            console.print(line)
    console.print()
    for path in paths_of(folder):
        console.print(shown(path, 1000), soft_wrap=True)
    return 0 if ok else 1


def _show_plan(settings: Settings, console: Console) -> int:
    from rich.table import Table

    from regard.compare.data import read_data
    from regard.compare.plan import minutes, plan
    from regard.wording import count_in_words

    data = read_data(settings)
    rows = plan(settings, data.shape)
    drawn = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for title in ("mechanism", "parameters", "of them mixers", "of budget"):
        drawn.add_column(title, justify="left" if title == "mechanism" else "right", no_wrap=True)
    for row in rows:
        if row.fit is not None:
            share = f"{row.fit.deviation:+.2%}"
            drawn.add_row(row.name, f"{row.fit.params:,}", f"{row.fit.mixer_params:,}", share)
    console.print(data.description)
    console.print(drawn)
    for row in rows:
        if row.fit is None:
            console.print(f"would fail: {row.name}: {row.why}")
    console.print(
        f"{count_in_words(settings.steps, 'step')}, {count_in_words(settings.seeds, 'seed')}, "
        f"lengths {', '.join(map(str, settings.lengths))}, {settings.jobs} at a time on {settings.device}: "
        f"about {count_in_words(max(1, round(minutes(rows, settings))), 'minute')}"
    )
    return 0
