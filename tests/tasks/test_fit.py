from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_language import QUIET, TINY

from regard.errors import UserError
from regard.models.language.decoder import Decoder
from regard.tasks import checkpoint
from regard.tasks.evaluation import evaluate
from regard.tasks.fit import BEST, LAST, Hardware, fit
from regard.tasks.logs import read_evaluations, read_steps
from regard.tasks.recipe import Recipe
from regard.tasks.task import rng


def weights(path: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(path).model.state_dict()


def test_the_loop_is_adamw_with_the_recipes_rates(language, run_tiny):
    _, trained, folder = run_tiny(steps=4)
    torch.manual_seed(0)
    model = Decoder(TINY)
    recipe = Recipe(steps=4, batch=3, evaluate_every=3)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, recipe.beta2), weight_decay=recipe.weight_decay)
    losses = []
    for step in range(4):
        optimizer.param_groups[0]["lr"] = recipe.rate(step)
        loss = language.loss(model, language.batch(rng(0, step), 3))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert read_steps(folder)["loss"] == losses
    assert read_steps(folder)["learning_rate"] == [recipe.rate(step) for step in range(4)]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], value, rtol=0, atol=0)


def test_the_best_network_is_kept_and_measured(language, run_tiny):
    outcome, _, folder = run_tiny(steps=6)
    assert outcome.finished
    assert outcome.stopped == "all steps done"
    assert outcome.progress.step == 6
    loaded = checkpoint.load(folder / BEST)
    measured = evaluate(language, loaded.model, "validation", 3)["bits_per_byte"]
    recorded = dict(read_evaluations(folder))
    assert measured == recorded[outcome.progress.best_step]["bits_per_byte"]
    assert measured == min(metrics["bits_per_byte"] for metrics in recorded.values())
    assert 0 <= outcome.data_share < 1


def test_a_run_that_was_killed_goes_on_bit_for_bit(text_file, tmp_path):
    random = np.random.default_rng()
    steps = [int(step) for step in sorted(random.choice(np.arange(1, 11), size=3, replace=False))]
    # -2 and -4: in the middle of writing a checkpoint
    kills = [str(kill) for kill in (-2, *steps[:2], -4, steps[2])]
    here = Path(__file__)
    modules = os.pathsep.join([str(here.parent), *sys.path])
    ran = subprocess.run(
        [sys.executable, str(here.with_name("killed_runs.py")), str(tmp_path), *kills],
        env={**os.environ, "PYTHONPATH": modules},
        capture_output=True,
        text=True,
        timeout=300,
    )
    *_, last_line = ran.stdout.strip().splitlines()
    first, *killed, last = map(int, last_line.split())
    assert (first, last) == (0, 0), ran.stderr
    assert -9 in killed, f"no kill hit: {kills}"
    assert set(killed) <= {-9, 0}, ran.stderr
    for name in ("log.csv", "evaluations.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), kills
    whole, again = weights(tmp_path / "whole" / LAST), weights(tmp_path / "killed" / LAST)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    assert len(read_steps(tmp_path / "whole")["loss"]) == 11


def test_early_stopping_counts_evaluations_without_a_better_value(run_tiny):
    # a rate so small that nothing improves beyond rounding, and one that ruins the network
    outcome, _, folder = run_tiny(steps=40, evaluate_every=2, patience=2, learning_rate=3.0)
    assert outcome.stopped.startswith("early stopping")
    assert outcome.finished
    assert outcome.progress.step < 40
    values = [metrics["bits_per_byte"] for _, metrics in read_evaluations(folder)]
    assert len(values) >= 3
    assert min(values[-2:]) >= min(values[:-2])
    again, _, _ = run_tiny(steps=40, evaluate_every=2, patience=2, learning_rate=3.0, resume=True)
    assert again.progress.step == outcome.progress.step


def test_a_loss_that_is_no_number_stops_with_step_rate_and_checkpoint(language, tmp_path):
    class Breaks(Decoder):
        calls = 0

        def forward(self, tokens, **arguments):
            if self.training:
                self.calls += 1
            scores = super().forward(tokens, **arguments)
            return scores * math.nan if self.calls == 5 else scores

    model = Breaks(TINY)
    recipe = Recipe(steps=9, batch=2, evaluate_every=2)
    with pytest.raises(UserError) as stopped:
        fit(
            language,
            model,
            model_name="decoder_lm",
            config=TINY,
            recipe=recipe,
            folder=tmp_path,
            hardware=QUIET,
        )
    message = str(stopped.value)
    assert "NaN at step 5" in message
    assert f"learning rate {recipe.rate(4):.3g}" in message
    assert "last.safetensors of step 4" in message
    assert checkpoint.load(tmp_path / LAST).header.step == 4


def test_ctrl_c_keeps_the_steps_since_the_last_checkpoint(language, run_tiny, monkeypatch):
    handler = signal.getsignal(signal.SIGINT)
    draw, seen = language.batch, iter(range(100))

    def batch(random, rows):
        if next(seen) == 5:
            raise KeyboardInterrupt
        return draw(random, rows)

    monkeypatch.setattr(language, "batch", batch)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(steps=9)
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is handler
    outcome, _, folder = run_tiny(steps=9, resume=True)
    assert outcome.progress.resumed_from == [5]
    assert read_steps(folder)["step"] == list(range(1, 10))


def test_another_recipe_or_network_is_no_continuation(run_tiny, tmp_path):
    run_tiny(steps=3)
    with pytest.raises(UserError, match="steps=3, not 6"):
        run_tiny(steps=6, resume=True)
    with pytest.raises(UserError, match="another config"):
        run_tiny(steps=3, config=replace(TINY, dropout=0.5), resume=True)


def test_workers_see_the_same_batches(language, run_tiny, tmp_path):
    _, _, folder = run_tiny(steps=3)
    torch.manual_seed(0)
    other = tmp_path / "workers"
    other.mkdir()
    fit(
        language,
        Decoder(TINY),
        model_name="decoder_lm",
        config=TINY,
        recipe=Recipe(steps=3, batch=3, evaluate_every=3),
        folder=other,
        hardware=Hardware(progress=False, workers=1),
    )
    assert read_steps(other) == read_steps(folder)


def test_devices_that_are_not_there_are_refused(language, tmp_path):
    with pytest.raises(UserError, match="devices cannot be used"):
        fit(
            language,
            Decoder(TINY),
            model_name="decoder_lm",
            config=TINY,
            recipe=Recipe(steps=1),
            folder=tmp_path,
            hardware=Hardware(accelerator="nonsense", progress=False),
        )
