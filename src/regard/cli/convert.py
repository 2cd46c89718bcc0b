"""`regard convert`: another mechanism for a trained softmax language model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regard.cli.errors import UserError, need
from regard.files import write_atomically

if TYPE_CHECKING:
    from regard.cli.console import Console
    from regard.models.language.decoder import Decoder
    from regard.tasks.fit import Hardware
    from regard.tasks.language import Language
    from regard.tasks.recipe import Recipe
    from regard.training.conversion import Stage

EXAMPLES = """
  regard convert runs/softmax --to hedgehog --out runs/hedgehog
  regard convert runs/softmax --to sea --set keys_per_query=16,estimate_width=32 --data my_corpus/ --out runs/sea
"""


def run(
    checkpoint: Path,
    *,
    to: str,
    out: Path,
    data: str | None = None,
    transfer_steps: int = 200,
    finetune_steps: int = 200,
    batch: int = 8,
    transfer_rate: float = 1e-2,
    finetune_rate: float = 1e-3,
    seed: int = 0,
    set_: str | None = None,
    accelerator: str = "auto",
    resume: bool = False,
) -> int:
    """Convert a trained softmax language model to another mechanism: take over its weights, distil, finetune.

    Prints the quality of the softmax network, of the swapped one before any training, after distillation of the
    attention weights, and after finetuning on the task. The result is model.safetensors in --out.

    Args:
        checkpoint: a language model with softmax attention that regard train wrote (regard train softmax), or its
            folder.
        to: the mechanism, such as hedgehog or sea.
        out: folder for the results.
        data: text to distil and finetune on; by default that of the run in whose folder the checkpoint lies, or else
            the built-in sample.
        transfer_steps: updates of the distillation; 0 leaves it out.
        finetune_steps: updates of all weights on the task; 0 leaves it out.
        batch: windows per update.
        transfer_rate: peak learning rate of the distillation.
        finetune_rate: peak learning rate of the finetuning.
        seed: of the new weights and the order of the data.
        set_: options of the mechanism, as NAME=VALUE,NAME=VALUE.
        accelerator: cpu, gpu, or auto (default), a GPU if there is one.
        resume: go on with an interrupted conversion in --out.
    """
    import sys

    need("lightning", extra="train", command="convert")
    import torch

    from regard.cli.console import output
    from regard.cli.evaluate import data_of_run
    from regard.models.language.decoder import Decoder
    from regard.registry import entry_of
    from regard.tasks import checkpoint as checkpoints
    from regard.tasks import runs
    from regard.tasks.fit import Hardware
    from regard.tasks.language import Language
    from regard.training.conversion import swap

    entry_of(to)
    recipes = {
        "distilled": _recipe("transfer", transfer_steps, transfer_rate, batch, seed),
        "finetuned": _recipe("finetune", finetune_steps, finetune_rate, batch, seed),
    }
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    if out.resolve() == folder.resolve():
        raise UserError(f"--out {out} holds the network that is to be converted: name another folder")
    loaded = checkpoints.load(checkpoint)
    if not isinstance(loaded.task, Language) or not isinstance(loaded.model, Decoder):
        raise UserError(f"{checkpoint} is no language model of regard train softmax: it holds {loaded.header.model}")
    torch.manual_seed(seed)
    student = swap(loaded.model, to, _options(to, set_))
    path = data if data is not None else data_of_run(checkpoint)
    with runs.claimed(out, resume=resume):
        loaded.task.read(None if path is None else Path(path), cache=out)
    console = output()
    console.print(f"data: {loaded.task.described}", soft_wrap=True)
    hardware = Hardware(accelerator=accelerator, progress=sys.stderr.isatty())
    try:
        return _convert(loaded.task, loaded.model, student, recipes, out, hardware, resume, console)
    except OSError as error:
        raise UserError(f"cannot write in {out}: {error.strerror or error}") from None


def _recipe(stage: str, steps: int, rate: float, batch: int, seed: int) -> Recipe | None:
    """How a stage is trained; None where it is left out."""
    from regard.tasks.recipe import Recipe

    if steps < 0:
        raise UserError(f"--{stage}-steps must not be negative, got {steps}")
    try:
        recipe = Recipe(steps=max(1, steps), learning_rate=rate, batch=batch, seed=seed, weight_decay=0.0)
    except ValueError as error:
        raise UserError(f"{stage}: {error}") from None
    return recipe if steps else None


def _options(mechanism: str, text: str | None) -> dict[str, Any]:
    import inspect

    from regard.registry import get_class
    from regard.tasks.set_option import split_settings
    from regard.training.conversion import convertible

    cls: Any = get_class(mechanism)
    if not convertible(mechanism):
        # `swap` says what is the matter
        return {}
    accepted = list(inspect.signature(cls.from_softmax).parameters)[1:]
    options: dict[str, Any] = {}
    for name, value in split_settings(text).items():
        if name not in accepted:
            raise UserError(f"{mechanism} takes over softmax with {', '.join(accepted)}, not with {name!r}")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def _convert(
    task: Language,
    teacher: Decoder,
    student: Decoder,
    recipes: dict[str, Recipe | None],
    out: Path,
    hardware: Hardware,
    resume: bool,
    console: Console,
) -> int:
    from regard.tasks import checkpoint as checkpoints
    from regard.tasks.evaluation import evaluate
    from regard.training.conversion import AttentionTransfer, Stage, TaughtLanguage, teacher_weight, train_mixers_alone

    stages: list[Stage] = []

    def judge(name: str, network: Decoder) -> None:
        stages.append(Stage(name, evaluate(task, network, "validation", 8)))
        console.print(_line(stages[-1], stages[0]))

    judge("teacher", teacher)
    judge("swapped", student)
    train_mixers_alone(student)
    if (recipe := recipes["distilled"]) is not None:
        student = _fit(AttentionTransfer(task, teacher), student, recipe, out / "transfer", hardware, resume)
        judge("distilled", student)
    student.requires_grad_(True)
    if (recipe := recipes["finetuned"]) is not None:
        taught = TaughtLanguage(task, teacher, teacher_weight(student.config.mixer))
        student = _fit(taught, student, recipe, out / "finetune", hardware, resume)
        judge("finetuned", student)
    header = checkpoints.header_of(task, "decoder_lm", student.config, metrics=stages[-1].metrics)
    checkpoints.save(out / "model.safetensors", header, student.state_dict())
    plain = {stage.name: stage.metrics for stage in stages}
    write_atomically(out / "conversion.json", json.dumps(plain, indent=1) + "\n")
    for name in ("model.safetensors", "conversion.json"):
        console.print(str(out / name), soft_wrap=True)
    return 0


def _line(stage: Stage, first: Stage) -> str:
    metrics = stage.metrics
    ratio = metrics["perplexity"] / first.metrics["perplexity"]
    return (
        f"{stage.name + ':':<11} bits per byte {metrics['bits_per_byte']:.4f}, perplexity {metrics['perplexity']:.3f}"
        f" ({ratio:.3f} of the teacher's)"
    )


def _fit(task: Language, network: Decoder, recipe: Recipe, folder: Path, hardware: Hardware, resume: bool) -> Decoder:
    from regard.models.language.decoder import Decoder
    from regard.tasks import checkpoint as checkpoints
    from regard.tasks.checkpoint import BEST
    from regard.tasks.fit import fit

    folder.mkdir(exist_ok=True)
    fit(
        task,
        network,
        model_name="decoder_lm",
        config=network.config,
        recipe=recipe,
        folder=folder,
        hardware=hardware,
        resume=resume,
    )
    best = checkpoints.load(folder / BEST).model
    assert isinstance(best, Decoder)
    return best
