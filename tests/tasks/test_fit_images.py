"""Training on images: averages, levels of depth, frozen parts and augmentation, and the way back after a crash."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from tiny_images import write_images
from tiny_language import QUIET
from torch import nn

from regard.errors import UserError
from regard.models.vision.davit import DaViT
from regard.tasks import checkpoint
from regard.tasks.averaging import Average
from regard.tasks.classification import Classification, ClassificationSettings
from regard.tasks.depth import parameter_groups
from regard.tasks.evaluation import evaluate
from regard.tasks.fit import BEST, LAST, Hardware, Outcome, fit
from regard.tasks.logs import read_evaluations, read_steps
from regard.tasks.recipe import Recipe
from regard.tasks.task import rng

CONFIG = replace(
    DaViT.SMALL, in_channels=3, num_classes=2, dims=(8, 16), num_heads=(2, 2), drop_path=0.3, mlp_ratio=1.0
)
RECIPE = Recipe(steps=5, batch=4, evaluate_every=2)


@pytest.fixture
def task(tmp_path) -> Classification:
    task = Classification(
        ClassificationSettings(image_size=8, augment="strong", mixup=0.5, cutmix=0.5, label_smoothing=0.1)
    )
    task.read(write_images(tmp_path / "photos", {"cats": 8, "dogs": 8}))
    return task


def run(task: Classification, folder: Path, recipe: Recipe, *, hardware: Hardware = QUIET) -> tuple[Outcome, DaViT]:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = DaViT(CONFIG)
    outcome = fit(
        task, model, model_name="davit", config=CONFIG, recipe=recipe, folder=folder, hardware=hardware, resume=True
    )
    return outcome, model


def test_the_average_is_evaluated_and_kept_beside_the_weights(task, tmp_path):
    recipe = replace(RECIPE, ema=0.7)
    _, trained = run(task, tmp_path / "run", recipe)
    torch.manual_seed(0)
    model = DaViT(CONFIG)
    average = Average(model, recipe)
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe), betas=(0.9, recipe.beta2), weight_decay=0.01)
    values = []
    for step in range(5):
        optimizer.param_groups[0]["lr"] = recipe.rate(step)
        batch = task.batch(rng(0, step), 4)
        torch.manual_seed(int(rng(0, step).integers(2**62)))
        loss = task.loss(model.train(), batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model)
        values.append(float(loss.detach()))
        if step in (1, 3, 4):
            measured = evaluate(task, average.model, "validation", 4)
            assert dict(read_evaluations(tmp_path / "run"))[step + 1] == pytest.approx(measured, abs=1e-12)
    assert read_steps(tmp_path / "run")["loss"] == values
    for name, value in model.state_dict().items():
        assert torch.equal(trained.state_dict()[name], value)
    header, tensors = checkpoint.read(tmp_path / "run" / LAST)
    assert header.step == 5
    for name, value in average.model.state_dict().items():
        assert torch.equal(tensors[checkpoint.AVERAGE + name], value)
    kept = checkpoint.load(tmp_path / "run" / BEST)
    best = dict(read_evaluations(tmp_path / "run"))[kept.header.step]
    assert evaluate(task, kept.model, "validation", 4) == best
    assert best["accuracy"] == max(found["accuracy"] for _, found in read_evaluations(tmp_path / "run"))


@pytest.mark.parametrize(
    "changes",
    [{}, {"ema": 0.8}, {"ema": 0.8, "layer_decay": 0.7, "decay_vectors": False, "freeze": "stem"}],
    ids=["plain", "average", "everything"],
)
@pytest.mark.parametrize("stop", [2, 3])
def test_a_run_that_was_interrupted_goes_on_bit_for_bit(task, tmp_path, changes, stop):
    recipe = replace(RECIPE, **changes)
    run(task, tmp_path / "whole", recipe)
    draw, drawn = task.batch, []

    def interrupted(random, rows):
        drawn.append(1)
        if len(drawn) > stop:
            raise RuntimeError("the lights went out")
        return draw(random, rows)

    task.batch = interrupted
    with pytest.raises(RuntimeError, match="lights"):
        run(task, tmp_path / "halves", recipe)
    task.batch = draw
    outcome, _ = run(task, tmp_path / "halves", recipe)
    assert outcome.progress.resumed_from == [2]
    assert read_steps(tmp_path / "halves") == read_steps(tmp_path / "whole")
    assert read_evaluations(tmp_path / "halves") == read_evaluations(tmp_path / "whole")
    one, two = (checkpoint.read(tmp_path / name / LAST)[1] for name in ("whole", "halves"))
    assert set(one) == set(two)
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_other_averages_are_no_continuation(task, tmp_path):
    run(task, tmp_path / "run", replace(RECIPE, ema=0.8))
    with pytest.raises(UserError, match=r"with ema=0\.8, not 0\.9"):
        run(task, tmp_path / "run", replace(RECIPE, ema=0.9))


def test_workers_see_the_same_augmented_batches(task, tmp_path):
    run(task, tmp_path / "alone", RECIPE)
    run(task, tmp_path / "workers", RECIPE, hardware=Hardware(progress=False, workers=1))
    assert read_steps(tmp_path / "workers") == read_steps(tmp_path / "alone")


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_trains(task, tmp_path, precision):
    outcome, _ = run(
        task, tmp_path / "run", replace(RECIPE, ema=0.5), hardware=Hardware(progress=False, precision=precision)
    )
    assert outcome.finished
    assert all(0 < loss < 5 for loss in read_steps(tmp_path / "run")["loss"])
    assert evaluate(task, checkpoint.load(tmp_path / "run" / BEST).model, "validation", 4)["loss"] < 5


@dataclass(frozen=True, kw_only=True)
class NormedConfig:
    num_classes: int = 2


class Normed(nn.Module):
    """A network with batch norms and dropout in what is frozen."""

    def __init__(self, config: NormedConfig) -> None:
        super().__init__()
        self.config = config
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.head = nn.Linear(4, config.num_classes)

    def forward(self, images):
        return self.head(self.body(images).mean(dim=(2, 3)))


def test_what_is_frozen_keeps_its_statistics_and_drops_nothing(task, tmp_path):
    model = Normed(NormedConfig())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []
    model.body[2].register_forward_hook(lambda module, _, __: seen.append(module.training))
    recipe = replace(RECIPE, freeze="body", steps=2)
    fit(task, model, model_name="normed", config=model.config, recipe=recipe, folder=tmp_path, hardware=QUIET)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias"}
    assert seen
    assert not any(seen)


def test_the_whole_network_is_needed_for_an_average(task, tmp_path):
    with pytest.raises(UserError, match="ema needs the whole network on each device"):
        run(task, tmp_path / "run", replace(RECIPE, ema=0.9), hardware=Hardware(strategy="fsdp", progress=False))
