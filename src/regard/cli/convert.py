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
    from regard.training.conversion import Stage

EXAMPLES = """
  regard convert runs/softmax --to hedgehog --out runs/hedgehog
  regard convert runs/softmax --to sea --set keys_per_query=16,estimate_width=32 --data my_corpus/ --out runs/sea
"""

STAGES = ("teacher", "swapped", "distilled", "finetuned")


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
    if transfer_steps < 0 or finetune_steps < 0:
        raise UserError("--transfer-steps and --finetune-steps must not be negative")
    loaded = checkpoints.load(checkpoint)
    if not isinstance(loaded.task, Language) or not isinstance(loaded.model, Decoder):
        raise UserError(f"{checkpoint} is no language model of regard train softmax: it holds {loaded.header.model}")
    torch.manual_seed(seed)
    student = swap(loaded.model, to, _options(to, set_))
    runs.claim_folder(out, resume=resume)
    path = data if data is not None else data_of_run(checkpoint)
    loaded.task.read(None if path is None else Path(path), cache=out)
    console = output()
    console.print(f"data: {loaded.task.described}", soft_wrap=True)
    hardware = Hardware(accelerator=accelerator, progress=sys.stderr.isatty())
    recipes = {
        "distilled": {"steps": transfer_steps, "learning_rate": transfer_rate, "batch": batch, "seed": seed},
        "finetuned": {"steps": finetune_steps, "learning_rate": finetune_rate, "batch": batch, "seed": seed},
    }
    return _convert(loaded.task, loaded.model, student, recipes, out, hardware, resume, console)


def _options(mechanism: str, text: str | None) -> dict[str, Any]:
    import inspect

    from regard.registry import get_class
    from regard.tasks.runs import split_settings

    cls: Any = get_class(mechanism)
    accepted = list(inspect.signature(getattr(cls, "from_softmax", cls)).parameters)
    options: dict[str, Any] = {}
    for name, value in split_settings(text).items():
        if name not in accepted:
            raise UserError(f"{mechanism} takes over softmax with {', '.join(accepted[1:])}, not with {name!r}")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def _convert(
    task: Language,
    teacher: Decoder,
    student: Decoder,
    recipes: dict[str, dict[str, Any]],
    out: Path,
    hardware: Hardware,
    resume: bool,
    console: Console,
) -> int:
    from regard.tasks import checkpoint as checkpoints
    from regard.tasks.evaluation import evaluate
    from regard.training.conversion import TEACHER_WEIGHT, AttentionTransfer, Stage, TaughtLanguage, train_mixers_alone

    stages: list[Stage] = []

    def judge(name: str, network: Decoder) -> None:
        stages.append(Stage(name, evaluate(task, network, "validation", 8)))
        console.print(_line(stages[-1], stages[0]))

    judge("teacher", teacher)
    judge("swapped", student)
    train_mixers_alone(student)
    if recipes["distilled"]["steps"]:
        student = _fit(
            AttentionTransfer(task, teacher), student, recipes["distilled"], out / "transfer", hardware, resume
        )
        judge("distilled", student)
    student.requires_grad_(True)
    if recipes["finetuned"]["steps"]:
        weight = TEACHER_WEIGHT.get(student.config.mixer, 0.0)
        taught = TaughtLanguage(task, teacher, weight)
        student = _fit(taught, student, recipes["finetuned"], out / "finetune", hardware, resume)
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


def _fit(
    task: Language, network: Decoder, recipe: dict[str, Any], folder: Path, hardware: Hardware, resume: bool
) -> Decoder:
    from regard.models.language.decoder import Decoder
    from regard.tasks import checkpoint as checkpoints
    from regard.tasks.fit import BEST, fit
    from regard.tasks.recipe import Recipe

    folder.mkdir(exist_ok=True)
    try:
        planned = Recipe(weight_decay=0.0, **recipe)
    except ValueError as error:
        raise UserError(str(error)) from None
    fit(
        task,
        network,
        model_name="decoder_lm",
        config=network.config,
        recipe=planned,
        folder=folder,
        hardware=hardware,
        resume=resume,
    )
    best = checkpoints.load(folder / BEST).model
    assert isinstance(best, Decoder)
    return best
