from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regard.errors import UserError
from regard.models.series.decision_transformer import DecisionTransformer
from regard.tasks.evaluation import evaluate
from regard.tasks.series import point_mass
from regard.tasks.series.control import Control, ControlSettings, Rollouts, Windows
from regard.tasks.task import rng

CONTEXT = 4


def _arrays(seed: int = 0, trajectories: int = 10) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    lengths = random.integers(3, 12, trajectories)
    ends = np.zeros(lengths.sum(), dtype=bool)
    ends[np.cumsum(lengths) - 1] = True
    steps = len(ends)
    return {
        "observations": random.standard_normal((steps, 3)) * [1, 10, 0.1] + 5,
        "actions": random.uniform(-2, 2, (steps, 2)),
        "rewards": random.standard_normal(steps),
        "ends": ends,
    }


def _write(path: Path, arrays: dict[str, Any]) -> Path:
    np.savez(path, **arrays)
    return path


def _task(path: Path | None) -> Control:
    task = Control(ControlSettings(context_steps=CONTEXT))
    task.read(path)
    return task


def _split(arrays: dict[str, Any]) -> list[dict[str, Any]]:
    borders = np.flatnonzero(arrays["ends"]) + 1
    names = ("observations", "actions", "rewards")
    return [
        dict(zip(names, parts, strict=True))
        for parts in zip(*(np.split(arrays[n], borders[:-1]) for n in names), strict=True)
    ]


def test_windows_by_hand(tmp_path: Path) -> None:
    arrays = _arrays()
    task = _task(_write(tmp_path / "t.npz", arrays))
    facts = task.facts()
    mean, std = (np.array(facts["observations"][name]) for name in ("mean", "std"))
    expected = []
    for trajectory in _split(arrays):
        rewards = trajectory["rewards"]
        returns = np.array([rewards[step:].sum() for step in range(len(rewards))])
        for first in range(0, len(rewards), CONTEXT):
            window = slice(first, first + CONTEXT)
            expected.append(
                (
                    returns[window] / facts["return_scale"],
                    (trajectory["observations"][window] - mean) / std,
                    trajectory["actions"][window] / facts["action_scale"],
                    np.arange(len(rewards))[window],
                )
            )
    found = [batch for batch in task.evaluation_batches("all", 5) if isinstance(batch, Windows)]
    rows = [tuple(part[row] for part in batch) for batch in found for row in range(len(batch.mask))]
    for (*parts, mask), wanted in zip(rows, expected, strict=True):
        assert int(mask.sum()) == len(wanted[0])
        for part, values in zip(parts, wanted, strict=True):
            np.testing.assert_allclose(part[mask], values, rtol=1e-4, atol=1e-5)
            assert not part[~mask].any()


def test_scales_are_those_of_the_training_part(tmp_path: Path) -> None:
    arrays = _arrays()
    task = _task(_write(tmp_path / "t.npz", arrays))
    lengths = [len(trajectory["rewards"]) for trajectory in _split(arrays)]
    held = set()
    for part in ("validation", "test"):
        count = sum(int(batch.mask.sum()) for batch in task.evaluation_batches(part, 100) if isinstance(batch, Windows))
        held.add(count)
    assert held <= set(lengths)
    # change what does not train and nothing that is learned may change
    numbers = np.repeat(np.arange(len(lengths)), lengths)
    changed = {name: values.copy() for name, values in arrays.items()}
    outside = np.isin(numbers, np.concatenate([task._parts["validation"], task._parts["test"]]))
    for name in ("observations", "actions", "rewards"):
        changed[name][outside] *= 1000
    other = _task(_write(tmp_path / "u.npz", changed))
    assert other.facts() == task.facts()
    for ours, theirs in zip(task.batch(rng(0, 1), 8), other.batch(rng(0, 1), 8), strict=True):
        assert torch.equal(ours, theirs)
    trained = [trajectory for number, trajectory in enumerate(_split(arrays)) if not outside[numbers == number].any()]
    together = np.concatenate([trajectory["observations"] for trajectory in trained])
    np.testing.assert_allclose(task.facts()["observations"]["mean"], together.mean(axis=0), rtol=1e-6)
    assert task.facts()["target_return"] == pytest.approx(max(each["rewards"].sum() for each in trained))
    assert task.facts()["action_scale"] == pytest.approx(max(np.abs(each["actions"]).max() for each in trained))


def test_batches_depend_on_the_generator_alone_and_begin_at_any_step(tmp_path: Path) -> None:
    arrays = _arrays()
    task = _task(_write(tmp_path / "t.npz", arrays))
    assert torch.equal(task.batch(rng(0, 3), 8).actions, task.batch(rng(0, 3), 8).actions)
    seen = {tuple(row.tolist()) for step in range(60) for row in task.batch(rng(0, step), 16).actions[:, 0]}
    assert len(seen) == sum(len(_split(arrays)[member]["rewards"]) for member in task._parts["train"])


def test_metrics_by_hand(tmp_path: Path) -> None:
    arrays = _arrays()
    task = _task(_write(tmp_path / "t.npz", arrays))

    class Still(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, returns: Any, observations: Any, actions: Any, steps: Any, *, mask: Any) -> torch.Tensor:
            return torch.zeros_like(actions)

    metrics = evaluate(task, Still(), "all", 6)
    assert metrics == {"action_mse": pytest.approx(float((arrays["actions"] ** 2).mean()), rel=1e-5)}
    batch = task.batch(rng(0, 0), 5)
    real = batch.actions[batch.mask]
    assert float(task.loss(Still(), batch)) == pytest.approx(float(real.square().mean()), rel=1e-5)


def test_fit_evaluate_and_predict(tmp_path: Path, trained: Callable[..., Any], restored: Callable[..., Any]) -> None:
    arrays = _arrays()
    path = _write(tmp_path / "t.npz", arrays)
    task = _task(path)
    model = trained(task, DecisionTransformer)
    again = restored(task)
    written = again.predict(model, [path], tmp_path)
    assert [file.name for file in written] == ["t.npz.predicted.npz", "t.npz.predicted.csv"]
    with np.load(written[0]) as stored:
        actions, ends = stored["actions"], stored["ends"]
    np.testing.assert_array_equal(ends, arrays["ends"])
    facts = task.facts()
    mean, std = (np.array(facts["observations"][name]) for name in ("mean", "std"))
    row = 0
    for trajectory in _split(arrays):
        rewards = trajectory["rewards"]
        for step in range(len(rewards)):
            window = slice(max(0, step + 1 - CONTEXT), step + 1)
            returns = [rewards[at:].sum() / facts["return_scale"] for at in range(len(rewards))][window]
            given = (
                returns,
                (trajectory["observations"][window] - mean) / std,
                trajectory["actions"][window] / facts["action_scale"],
            )
            known = [torch.tensor(np.array(part), dtype=torch.float32)[None] for part in given]
            with torch.no_grad():
                expected = model(*known, torch.arange(len(rewards))[None, window])[0, -1] * facts["action_scale"]
            np.testing.assert_allclose(actions[row], expected, rtol=1e-3, atol=1e-4)
            row += 1
    lines = written[1].read_text().splitlines()
    assert lines[0] == "trajectory,step,action 0,action 1"
    assert len(lines) == 1 + row
    again.read(path)
    assert evaluate(again, model, "test", 3) == evaluate(task, model, "test", 3)


def test_without_rewards_the_best_return_is_asked_for(tmp_path: Path, trained: Callable[..., Any]) -> None:
    arrays = _arrays()
    task = _task(_write(tmp_path / "t.npz", arrays))
    model = trained(task, DecisionTransformer)
    constant = np.where(arrays["ends"], task.facts()["target_return"], 0.0)
    paths = [
        _write(tmp_path / "a.npz", {name: values for name, values in arrays.items() if name != "rewards"}),
        _write(tmp_path / "b.npz", {**arrays, "rewards": constant}),
    ]
    first, _, second, _ = task.predict(model, paths, tmp_path)
    with np.load(first) as ours, np.load(second) as theirs:
        np.testing.assert_allclose(ours["actions"], theirs["actions"], atol=1e-6)


def test_rollouts_of_the_expert_earn_100_and_of_noise_0(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Control(ControlSettings(context_steps=3))
    task.read(None)
    scale = task.facts()["observations"]
    mean, std = (torch.tensor(scale[name], dtype=torch.float32) for name in ("mean", "std"))

    class Expert(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))
            self.longest = 0

        def forward(
            self, returns: Any, observations: torch.Tensor, actions: Any, steps: Any, *, mask: Any = None
        ) -> torch.Tensor:
            self.longest = max(self.longest, observations.shape[1])
            states = (observations * std + mean).double()
            forces = [point_mass.expert(row.numpy(), 0) for row in states]
            return torch.tensor(np.array(forces), dtype=torch.float32)[..., None]

    model = Expert()
    metrics = evaluate(task, model, "validation", 64)
    assert metrics["normalised_return"] == pytest.approx(100, abs=0.1)
    assert model.longest == 3
    *_, last = task.evaluation_batches("validation", 64)
    assert isinstance(last, Rollouts)
    assert last.expert.mean() > 2 * last.random.mean()
    *_, other = task.evaluation_batches("test", 64)
    assert not torch.equal(last.start, other.start)
    rows = task.extras(model, "validation").tables[0][2]
    assert rows[-1][0] == "scripted expert"
    assert float(rows[0][1]) == pytest.approx(float(rows[-1][1]), abs=0.1)


def test_what_is_wanted_falls_by_what_was_earned() -> None:
    task = Control(ControlSettings(context_steps=2))
    task.read(None)
    facts, asked = task.facts(), []

    class Still(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, returns: torch.Tensor, *known: torch.Tensor) -> torch.Tensor:
            asked.append(returns[:, -1].double().numpy() * facts["return_scale"])
            return torch.zeros_like(known[1])

    start = np.array([[0.4, 0.0], [-1.0, 0.2]])
    earned = task._play(Still(), start, 30.0)
    _, _, rewards = point_mass.run(lambda states, step: np.zeros(len(states)), start)
    np.testing.assert_allclose(earned, rewards.sum(axis=1))
    np.testing.assert_allclose(asked[-1], 30 - rewards[:, :-1].sum(axis=1), rtol=1e-5)


def test_ill_data_settings_and_facts(tmp_path: Path, restored: Callable[..., Any]) -> None:
    task = _task(_write(tmp_path / "t.npz", _arrays()))
    with pytest.raises(UserError, match="has 2 trajectories: at least 3"):
        _task(_write(tmp_path / "u.npz", _arrays(trajectories=2)))
    wider = _arrays()
    wider["observations"] = wider["observations"][:, :2]
    with pytest.raises(UserError, match="has 2 numbers per observation, and the network was trained on 3"):
        restored(task).read(_write(tmp_path / "v.npz", wider))
    longer = _arrays()
    longer["ends"][:-1] = False
    with pytest.raises(UserError, match="a trajectory of 58 time steps, and the network knows 10 at most"):
        restored(task).predict(torch.nn.Linear(1, 1), [_write(tmp_path / "w.npz", longer)], tmp_path)
    with pytest.raises(ValueError, match="context_steps must be at least 1, got 0"):
        ControlSettings(context_steps=0)
    with pytest.raises(ValueError, match="return_scale must be positive"):
        Control(ControlSettings()).restore({**task.facts(), "return_scale": 0})
