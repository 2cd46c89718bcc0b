"""Training any task's network with Lightning: the loop, its checkpoints, its logs, and its way back after a crash.

What the steps compute depends on the seed and the step's number alone: batches are drawn from `(seed, step)`, dropout
is seeded anew at every step, and the learning rate is a function of the step. So a run that was killed and resumed
from `last.safetensors` has, on the CPU, the same loss curve bit for bit.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from regard.errors import UserError
from regard.tasks import checkpoint
from regard.tasks.averaging import Average
from regard.tasks.checkpoint import BEST, LAST
from regard.tasks.depth import freeze, frozen_parts, parameter_groups
from regard.tasks.evaluation import is_better, sums_over
from regard.tasks.hardware import Hardware, quiet, trainer_for
from regard.tasks.logs import Logs
from regard.tasks.progress_bar import ProgressBar
from regard.tasks.recipe import Recipe
from regard.tasks.task import Batch, Task, rng

SAVE_EVERY_S = 60.0


@dataclass
class Progress:
    """How far a run has come: what, beside weights and optimiser, its continuation needs."""

    step: int = 0
    best: float | None = None
    best_step: int = 0
    without_better: int = 0
    resumed_from: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Args:
        progress: how far it came.
        stopped: why it ended, in words.
        finished: whether nothing is left to do.
        data_share: share of the time of a step that was spent waiting for its batch; None where no step ran.
        seconds_per_step: mean over the steps of this call.
        is_first_process: False in all processes but one, where several train together.
    """

    progress: Progress
    stopped: str
    finished: bool
    data_share: float | None
    seconds_per_step: float | None
    is_first_process: bool = True


class _Steps(Dataset[Batch]):
    """The batches of the steps that are left, each made when it is asked for."""

    def __init__(self, task: Task, recipe: Recipe, *, start: int, rank: int, world: int) -> None:
        self.task, self.recipe, self.start, self.rank = task, recipe, start, rank
        self.rows = max(1, recipe.batch // world)

    def __len__(self) -> int:
        return self.recipe.steps - self.start

    def __getitem__(self, index: int) -> Batch:
        return self.task.batch(rng(self.recipe.seed, self.start + index, self.rank), self.rows)


class _Waiting:
    """Batches as they come, and how long the loop waited for them."""

    def __init__(self, loader: DataLoader[Batch]) -> None:
        self.loader = loader
        self.seconds = 0.0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        while True:
            begin = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.seconds += time.monotonic() - begin
            yield batch


class _Module(lightning.LightningModule):
    """The network, its task and its recipe as Lightning wants them."""

    def __init__(self, task: Task, model: nn.Module, recipe: Recipe, progress: Progress, workers: int) -> None:
        super().__init__()
        self.model = model
        self.task, self.recipe, self.progress, self.workers = task, recipe, progress, workers
        self.start = progress.step
        self.earlier_optimizer: dict[str, Any] | None = None
        self.earlier_average: dict[str, Tensor] = {}
        self.average: Average | None = None
        self._frozen = frozen_parts(model)

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and kept: the average, where there is one."""
        return self.model if self.average is None else self.average.model

    def on_train_start(self) -> None:
        # the network is on its device only now
        if self.recipe.ema:
            self.average = Average(self.model, self.recipe, step=self.start)
            if self.earlier_average:
                self.average.load(self.earlier_average)

    def train_dataloader(self) -> Any:
        rank, world = self.global_rank, self.trainer.world_size
        steps = _Steps(self.task, self.recipe, start=self.start, rank=rank, world=world)
        loader = DataLoader(steps, batch_size=None, num_workers=self.workers, shuffle=False)
        self.waiting = _Waiting(loader)
        return self.waiting

    def configure_optimizers(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        optimizer = torch.optim.AdamW(
            parameter_groups(self.model, recipe),
            lr=recipe.learning_rate,
            betas=(0.9, recipe.beta2),
            weight_decay=recipe.weight_decay,
        )
        if self.earlier_optimizer is not None:
            optimizer.load_state_dict(self.earlier_optimizer)
        return optimizer

    def training_step(self, batch: Batch, index: int) -> Tensor:
        step = self.start + index
        rate = self.recipe.rate(step)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        for part in self._frozen:
            part.eval()
        torch.manual_seed(int(rng(self.recipe.seed, step, self.global_rank).integers(2**62)))
        loss = self.task.loss(self.model, batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            self._stop_at(step, rate, value)
        self.log("loss", value, prog_bar=True, logger=False)
        return loss

    def _stop_at(self, step: int, rate: float, value: float) -> None:
        kept = self.progress.step
        good = f"the last good checkpoint is {LAST} of step {kept}" if kept else "there is no checkpoint yet"
        kind = "NaN" if math.isnan(value) else "infinite"
        raise UserError(
            f"the loss became {kind} at step {step + 1} with learning rate {rate:.3g}; {good}: try a smaller "
            "--learning-rate, and --precision 32-true"
        )


class _Housekeeping(Callback):
    """Evaluates, logs, saves, and stops early."""

    def __init__(self, header: checkpoint.Header, folder: Path, logs: Logs) -> None:
        self.header, self.folder, self.logs = header, folder, logs
        self.stopped = ""
        self.steps_done = 0
        self._saved = time.monotonic()
        self._begin = self._spent = self._waited = 0.0
        self.interrupted = False
        self._in_step = False

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self._begin = time.monotonic()
        self._in_step = True

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        progress, recipe = module.progress, module.recipe
        step = module.start + batch_idx + 1
        if module.average is not None:
            module.average.update(module.model)
        self.steps_done += 1
        self._spent += time.monotonic() - self._begin
        self._waited = module.waiting.seconds
        if trainer.is_global_zero:
            self.logs.step(step, float(outputs["loss"]), recipe.rate(step - 1))
        progress.step = step
        self._in_step = False
        done = step == recipe.steps
        if step % recipe.evaluation_interval == 0 or done:
            self._evaluate(trainer, module)
        if step % recipe.evaluation_interval == 0 or done or self._save_is_due(trainer):
            self.save(trainer, module)
        if done:
            self.stopped = "all steps done"
        elif recipe.patience and progress.without_better >= recipe.patience:
            self.stopped = f"early stopping: no better value in {recipe.patience} evaluations"
            trainer.should_stop = True

    def _save_is_due(self, trainer: lightning.Trainer) -> bool:
        # with several processes all must take part in a save, and their clocks differ
        return trainer.world_size == 1 and time.monotonic() - self._saved > SAVE_EVERY_S

    def _evaluate(self, trainer: lightning.Trainer, module: Any) -> None:
        task, progress = module.task, module.progress
        part = task.parts()[0]
        sums = sums_over(
            task, module.evaluated, part, module.recipe.batch, rank=trainer.global_rank, world=trainer.world_size
        )
        if trainer.world_size > 1:
            sums = _over_processes(sums)
        metrics = task.summary(sums)
        module.log("validation", metrics[task.metric], prog_bar=True, logger=False)
        if trainer.is_global_zero:
            self.logs.evaluation(progress.step, metrics)
        if is_better(task, metrics, progress.best):
            progress.best, progress.best_step, progress.without_better = metrics[task.metric], progress.step, 0
            average = None if module.average is None else module.average.model.state_dict()
            self._write(trainer, BEST, state=average, metrics=metrics, step=progress.step)
        else:
            progress.without_better += 1

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        """After Ctrl-C keep the steps since the last checkpoint, unless it came in the middle of one."""
        self.interrupted = isinstance(exception, KeyboardInterrupt)
        whole = not self._in_step and module.progress.step > module.start
        if self.interrupted and whole and trainer.world_size == 1:
            self.save(trainer, module)

    def save(self, trainer: lightning.Trainer, module: Any) -> None:
        """Write what a continuation needs."""
        optimizer = trainer.strategy.optimizer_state(trainer.optimizers[0])
        run = asdict(module.progress) | {"recipe": asdict(module.recipe)}
        average = None if module.average is None else module.average.model.state_dict()
        self._write(trainer, LAST, optimizer=optimizer, average=average, step=module.progress.step, run=run)
        self._saved = time.monotonic()

    def _write(
        self,
        trainer: lightning.Trainer,
        name: str,
        *,
        state: dict[str, Tensor] | None = None,
        optimizer: Any = None,
        average: dict[str, Tensor] | None = None,
        **more: Any,
    ) -> None:
        """Write a checkpoint; the state is the trained network's, unless another is given."""
        if state is None:
            whole = trainer.strategy.lightning_module_state_dict()
            state = {key.removeprefix("model."): value for key, value in whole.items()}
        if trainer.is_global_zero:
            header = checkpoint.Header(**{**vars(self.header), **more})
            checkpoint.save(self.folder / name, header, state, optimizer, average)

    @property
    def data_share(self) -> float | None:
        """Share of the time of the steps that was spent waiting for a batch."""
        total = self._waited + self._spent
        return self._waited / total if total else None

    @property
    def seconds_per_step(self) -> float | None:
        """Mean time of a step, evaluations and checkpoints left out."""
        return (self._waited + self._spent) / self.steps_done if self.steps_done else None


def fit(
    task: Task,
    model: nn.Module,
    *,
    model_name: str,
    config: Any,
    recipe: Recipe,
    folder: Path,
    hardware: Hardware | None = None,
    resume: bool = False,
) -> Outcome:
    """Train `model` in place and keep the folder up to date.

    Args:
        task: with its data.
        model: the network.
        model_name: its registered name, for the checkpoints.
        config: its config, for the checkpoints.
        recipe: how to train.
        folder: for `last.safetensors`, `model.safetensors`, `log.csv` and `evaluations.csv`; must exist.
        hardware: where to run.
        resume: go on from `last.safetensors`, if there is one.

    Raises:
        UserError: the loss is no number any more, an earlier run had other settings, or Lightning refuses the
            hardware.
        OSError: a checkpoint cannot be written.
    """
    hardware = hardware or Hardware()
    freeze(model, recipe.freeze)
    module = _Module(task, model, recipe, Progress(), hardware.workers)
    header = checkpoint.header_of(task, model_name, config)
    if resume and (folder / LAST).is_file():
        _take_up(module, folder / LAST, header)
    logs = Logs(folder, upto=module.progress.step)
    if module.progress.step >= recipe.steps:
        return Outcome(module.progress, "all steps done", True, None, None)
    if recipe.patience and module.progress.without_better >= recipe.patience:
        return Outcome(module.progress, "early stopping", True, None, None)
    keeping = _Housekeeping(header, folder, logs)
    callbacks: list[Callback] = [keeping]
    if hardware.progress:
        callbacks.append(ProgressBar(recipe.steps, task.metric))
    trainer = trainer_for(recipe, hardware, callbacks, folder)
    on_interrupt = signal.getsignal(signal.SIGINT)
    with quiet(), logs:
        try:
            trainer.fit(module)
        except SystemExit:
            # Lightning's answer to Ctrl-C, after which it ignores the signal
            signal.signal(signal.SIGINT, on_interrupt)
            if not keeping.interrupted:
                raise
            raise KeyboardInterrupt from None
    return Outcome(
        module.progress,
        keeping.stopped,
        True,
        keeping.data_share,
        keeping.seconds_per_step,
        trainer.is_global_zero,
    )


def _over_processes(sums: dict[str, float]) -> dict[str, float]:
    """The sums of all processes together; one that had no batch has none."""
    gathered: list[dict[str, float]] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, sums)
    names = {name for part in gathered for name in part}
    return {name: sum(part.get(name, 0.0) for part in gathered) for name in sorted(names)}


def _take_up(module: _Module, path: Path, header: checkpoint.Header) -> None:
    """Load weights, optimiser and progress of an earlier run.

    Raises:
        UserError: it is damaged, or was another run.
    """
    stored, tensors = checkpoint.read(path)
    for name in ("task", "model", "config", "settings", "facts"):
        if getattr(stored, name) != getattr(header, name):
            raise UserError(f"{path} was written by a run with another {name}: give another --out, or its settings")
    run = dict(stored.run)
    recipe, plain = run.pop("recipe"), asdict(module.recipe)
    # a run of an earlier version did what a field that it does not know does by default
    recipe = {**asdict(Recipe()), **recipe}
    changed = [name for name in plain if recipe[name] != plain[name] and name != "patience"]
    if changed:
        was, now = recipe[changed[0]], plain[changed[0]]
        raise UserError(f"{path} was written by a run with {changed[0]}={was}, not {now}: its curve cannot go on")
    module.earlier_optimizer = checkpoint.optimizer_state(
        run.pop("optimizer"), {name: value for name, value in tensors.items() if name.startswith(checkpoint.OPTIMIZER)}
    )
    module.model.load_state_dict(checkpoint.network_state(stored, tensors))
    module.earlier_average = {
        name.removeprefix(checkpoint.AVERAGE): value
        for name, value in tensors.items()
        if name.startswith(checkpoint.AVERAGE)
    }
    module.progress = Progress(**run)
    module.progress.resumed_from.append(module.progress.step)
    module.start = module.progress.step


__all__ = ["BEST", "LAST", "Hardware", "Outcome", "Progress", "fit"]
