"""`regard compare text --model`: race training-free attention inside a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from regard.errors import UserError

if TYPE_CHECKING:
    from regard.cli.console import Console
    from regard.compare.pretrained.settings import PretrainedSettings
    from regard.integrations.transformers.pretrained import Pretrained

OF_TRAINING = {
    "steps": "--steps",
    "seeds": "--seeds",
    "train_length": "--train-length",
    "batch": "--batch",
    "dim": "--dim",
    "num_layers": "--layers",
    "num_heads": "--heads",
    "image_size": "--image-size",
    "jobs": "--jobs",
    "time_limit_s": "--time-limit",
    "imports": "--import",
}


def run_inside(given: dict[str, Any], *, out: str | None, resume: bool, dry_run: bool) -> int:
    """Run the race, or go on with an interrupted one.

    Args:
        given: the options by name; None = left out.
        out: folder for the results; None = a new one in runs.
        resume: go on with the race in `out`, or the newest of its kind.
        dry_run: show the contestants and stop.

    Raises:
        UserError: options that make no sense, a model or a text that cannot be read.
    """
    from regard.cli.console import output, progress
    from regard.cli.errors import need
    from regard.compare.folder import find_earlier, read_results
    from regard.compare.pretrained.settings import TASK
    from regard.wording import shown

    need("transformers", extra="hf", command="compare --model")
    _refuse(given)
    earlier = find_earlier(out, TASK) if resume else None
    stored = read_results(earlier) if earlier is not None else None
    if stored is not None and earlier is not None and stored.get("task") != TASK:
        raise UserError(f"cannot resume {shown(earlier)}: it is not a race inside a trained model")
    settings, found = _prepare(given, stored, earlier)
    if dry_run:
        return _show_contestants(settings, found, output())
    if stored is not None and earlier is not None and stored.get("finished") is True:
        progress().print(f"{shown(earlier)}: this race is finished, nothing is left to do", soft_wrap=True)
        return _show(stored, earlier, output())
    return _race(settings, found, earlier, stored, out=out, resume=resume)


def _refuse(given: dict[str, Any]) -> None:
    if given["task"] not in (None, "text"):
        raise UserError(f"--model races on text, got the task {given['task']}")
    for name, option in OF_TRAINING.items():
        if given[name] is not None:
            raise UserError(f"{option} belongs to mechanisms that are trained: with --model nothing is")


def _prepare(
    given: dict[str, Any], stored: dict[str, Any] | None, earlier: Path | None
) -> tuple[PretrainedSettings, Pretrained]:
    """The settings, and the loaded model, whose positions decide the default lengths."""
    import os

    from regard.cli.evaluate import chosen_device
    from regard.compare.pretrained.contestants import choose, contestants
    from regard.compare.pretrained.settings import (
        BUDGETS,
        PASSAGES,
        SCORED,
        PretrainedSettings,
        absolute_model,
        default_lengths,
        parse_budgets,
    )
    from regard.compare.settings import parse_lengths
    from regard.integrations.transformers.pretrained import load_pretrained
    from regard.wording import shown

    before = PretrainedSettings.from_json(stored["settings"]) if stored is not None else None

    def chosen(name: str, default: Any) -> Any:
        return given[name] if given[name] is not None else getattr(before, name) if before is not None else default

    model = absolute_model(chosen("model", None))
    device = given["device"] or (before.device if before is not None else "cpu")
    scored = chosen("scored", SCORED)
    lengths = None if given["lengths"] is None else parse_lengths(given["lengths"])
    budgets = None if given["budgets"] is None else parse_budgets(given["budgets"])
    mechanisms = None if given["mechanisms"] is None else choose(given["mechanisms"])
    data = given["data"] and os.path.abspath(given["data"])
    # what can be refused is refused before a large model is read
    checked = PretrainedSettings(
        model=model,
        data=data or (before.data if before else None),
        mechanisms=mechanisms or (before.mechanisms if before else choose(None)),
        lengths=lengths or (before.lengths if before else (1,)),
        budgets=budgets or (before.budgets if before else BUDGETS),
        passages=chosen("passages", PASSAGES),
        scored=scored,
        device=chosen_device(device),
    )
    contestants(checked.mechanisms, checked.budgets, num_layers=1)
    if before is not None and earlier is not None and (differing := checked.differences(before)):
        raise UserError(f"cannot resume {shown(earlier)} with other settings: {'; '.join(differing)}")
    found = load_pretrained(model, device=checked.device)
    if lengths is not None or before is not None:
        return checked, found
    from dataclasses import replace

    positions = getattr(found.model.config.get_text_config(), "max_position_embeddings", None)
    return replace(checked, lengths=default_lengths(positions, scored)), found


def _race(
    settings: PretrainedSettings,
    found: Pretrained,
    earlier: Path | None,
    stored: dict[str, Any] | None,
    *,
    out: str | None,
    resume: bool,
) -> int:
    from regard.cli.console import output, progress
    from regard.cli.errors import EXIT_INTERRUPTED
    from regard.compare.folder import RunFolder
    from regard.compare.pretrained.race import PretrainedRace
    from regard.compare.race import stamp
    from regard.compare.settings import default_out
    from regard.wording import shown

    console = progress()
    if earlier is not None and stored is not None:
        folder = RunFolder.earlier(earlier, stored)
    else:
        folder = RunFolder.new(Path(out) if out is not None else default_out("text", stamp()))
        if resume:
            console.print("nothing to resume: a new race starts", soft_wrap=True)
    try:
        race = PretrainedRace(settings, found, folder, console=console, earlier=stored)
        console.print(f"{race.passages.description}; results go to {shown(folder.path)}", soft_wrap=True)
        try:
            results = race.run()
        except KeyboardInterrupt:
            console.print(
                f"interrupted; results so far are in {shown(folder.path)}, --resume continues", soft_wrap=True
            )
            return EXIT_INTERRUPTED
        folder.write_report(results)
        folder.clear_work()
    finally:
        folder.release()
    return _show(results, folder.path, output())


def _show(results: dict[str, Any], folder: Path, console: Console) -> int:
    from regard.cli.compare import show_outcome
    from regard.compare.pretrained.summary import legend, table

    return show_outcome(results, folder, console, table=table, legend=legend)


def _show_contestants(settings: PretrainedSettings, found: Pretrained, console: Console) -> int:
    from rich.table import Table

    from regard.compare.pretrained.contestants import contestants
    from regard.wording import count_in_words

    layers = found.model.config.get_text_config().num_hidden_layers
    drawn = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for title in ("contestant", "keys", "options"):
        drawn.add_column(title, justify="right" if title == "keys" else "left")
    everyone = contestants(settings.mechanisms, settings.budgets, num_layers=layers)
    for each in everyone:
        options = ", ".join(f"{name} {value}" for name, value in each.options.items())
        drawn.add_row(each.name, "all" if each.budget is None else f"{each.budget:,}", options)
    console.print(drawn)
    per_length = settings.passages * 2 + 3
    console.print(
        f"{count_in_words(len(everyone), 'contestant')}; each reads about {per_length} prompts of "
        f"{', '.join(f'{length:,}' for length in settings.lengths)} tokens and decodes "
        f"{settings.passages * settings.scored:,} tokens after each length, on {settings.device}"
    )
    return 0
