"""Offline control: actions that lead to a wanted return, learned from recorded trajectories.

A window of time steps is read as returns-to-go, observations and actions, and every action is predicted from what came
before it (Decision Transformer). On the built-in sample the network also acts in the simulator that made it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from regard.errors import UserError
from regard.files import write_atomically
from regard.tasks.recipe import Recipe
from regard.tasks.series import point_mass
from regard.tasks.series.csv_table import csv_text, number_text, result_file
from regard.tasks.series.ragged import padded
from regard.tasks.series.splitting import check_shares, three_parts
from regard.tasks.series.standardising import Scaler, fit_scaler
from regard.tasks.series.trajectories import Trajectories, read_trajectories
from regard.tasks.task import Extras, Task, device_of
from regard.wording import count_in_words, shown

ROLLOUTS = 32
ROLLOUT_SEEDS = {"validation": 1, "test": 2}
ROWS = 256
TARGET_SHARES = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, kw_only=True)
class ControlSettings:
    """How trajectories become windows.

    Args:
        context_steps: time steps that a decision is made from.
        validation_share: share of the trajectories that validate.
        test_share: share that tests.
        split_seed: of the choice of trajectories.
    """

    context_steps: int = 20
    validation_share: float = 0.1
    test_share: float = 0.1
    split_seed: int = 0

    def __post_init__(self) -> None:
        if self.context_steps < 1:
            raise ValueError(f"context_steps must be at least 1, got {self.context_steps}")
        check_shares(self)


class Windows(NamedTuple):
    """Padded windows of trajectories, in the network's units."""

    returns_to_go: Tensor
    """`(rows, steps)`"""
    observations: Tensor
    """`(rows, steps, observation_dim)`"""
    actions: Tensor
    """`(rows, steps, action_dim)`"""
    timesteps: Tensor
    """`(rows, steps)`"""
    mask: Tensor
    """`(rows, steps)`, True = real time step"""


class Rollouts(NamedTuple):
    """Episodes to be played in the simulator."""

    start: Tensor
    """`(rows, 2)`"""
    expert: Tensor
    """`(rows,)`: the scripted expert's returns from there."""
    random: Tensor
    """`(rows,)`: the returns of random forces."""


class Control(Task):
    """Predicting the actions that lead to a wanted return.

    Args:
        settings: how trajectories become windows.
    """

    name: ClassVar[str] = "control"
    metric: ClassVar[str] = "action_mse"
    better: ClassVar[Literal["lower", "higher"]] = "lower"
    data_format: ClassVar[str] = "an .npz file with the arrays observations, actions, rewards, ends (or terminals)"
    Settings: ClassVar[type] = ControlSettings
    recipe: ClassVar[Recipe] = Recipe(steps=300, batch=32, learning_rate=3e-3)

    def __init__(self, settings: ControlSettings) -> None:
        super().__init__(settings)
        self.scaler: Scaler | None = None
        self.action_dim = 0
        self.action_scale = self.return_scale = 1.0
        self.target_return = 0.0
        self.longest = 0
        self._simulated = False
        self._flat: tuple[NDArray[Any], ...] = ()
        self._starts = self._lengths = np.zeros(0, dtype=np.int64)
        self._parts: dict[str, NDArray[np.int64]] = {}

    # -- raw files

    def read(self, path: Path | None, *, cache: Path | None = None) -> None:
        """Split the trajectories, and learn the scales of observations, actions and returns from the training part."""
        name = "generated trajectories of a point mass" if path is None else shown(path)
        self._simulated = path is None
        data = point_mass.mixed_trajectories() if path is None else read_trajectories(path)
        self.notes += data.notes
        if len(data.lengths) < 3:
            raise UserError(
                f"{name} has {count_in_words(len(data.lengths), 'trajectory', 'trajectories')}: at least 3 are needed, "
                "for training, validation and test"
            )
        settings = self.settings
        self._parts = three_parts(
            len(data.lengths), validation=settings.validation_share, test=settings.test_share, seed=settings.split_seed
        )
        returns = data.returns_to_go()
        if self.scaler is None:
            self._learn_scales(data, returns)
        self._check_sizes(name, data)
        self._parts["all"] = np.arange(len(data.lengths))
        self._starts, self._lengths = data.starts, data.lengths
        self._flat = self._in_units_of_the_network(data, returns)
        sizes = ", ".join(f"{len(members):,} {part}" for part, members in self._parts.items() if part != "all")
        self.described = (
            f"{name}: {count_in_words(len(data.actions), 'time step')} in "
            f"{count_in_words(len(data.lengths), 'trajectory', 'trajectories')}, "
            f"{count_in_words(data.observations.shape[1], 'number')} per observation, "
            f"{data.actions.shape[1]} per action; {sizes}"
        )

    def _learn_scales(self, data: Trajectories, returns: NDArray[np.float64]) -> None:
        train = self._parts["train"]
        members = np.zeros(len(data.lengths), dtype=bool)
        members[train] = True
        steps = np.repeat(members, data.lengths)
        width = data.observations.shape[1]
        names = [f"{number} of the observations" for number in range(width)]
        self.scaler, notes = fit_scaler(data.observations[steps].astype(np.float64), names)
        self.notes += notes
        self.action_dim = data.actions.shape[1]
        # a tanh bounds the network's actions to 1
        self.action_scale = max(1.0, float(np.abs(data.actions[steps]).max()))
        self.return_scale = float(np.abs(returns[steps]).max()) or 1.0
        self.target_return = float(returns[data.starts[train]].max())
        self.longest = int(data.lengths.max())

    def _check_sizes(self, name: str, data: Trajectories) -> None:
        assert self.scaler is not None
        for what, given, known in (
            ("observation", data.observations.shape[1], len(self.scaler.mean)),
            ("action", data.actions.shape[1], self.action_dim),
        ):
            if given != known:
                raise UserError(f"{name} has {given} numbers per {what}, and the network was trained on {known}")
        if (longest := int(data.lengths.max())) > self.longest:
            raise UserError(
                f"{name} has a trajectory of {longest:,} time steps, and the network knows {self.longest:,} at most"
            )

    def _in_units_of_the_network(self, data: Trajectories, returns: NDArray[np.float64]) -> tuple[NDArray[Any], ...]:
        assert self.scaler is not None
        return (
            (returns / self.return_scale).astype(np.float32),
            self.scaler.apply(data.observations),
            (data.actions / self.action_scale).astype(np.float32),
            data.timesteps(),
        )

    def facts(self) -> dict[str, Any]:
        """The scales, the return to ask for, and the longest trajectory."""
        assert self.scaler is not None
        return {
            "observations": self.scaler.stored(),
            "action_dim": self.action_dim,
            "action_scale": self.action_scale,
            "return_scale": self.return_scale,
            "target_return": self.target_return,
            "longest_trajectory": self.longest,
        }

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Take the scales of an earlier run."""
        self.scaler = Scaler.restored(facts["observations"], len(facts["observations"]["mean"]))
        self.action_dim, self.longest = int(facts["action_dim"]), int(facts["longest_trajectory"])
        self.action_scale, self.return_scale = float(facts["action_scale"]), float(facts["return_scale"])
        self.target_return = float(facts["target_return"])
        for name in ("action_dim", "longest", "action_scale", "return_scale"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def model_fields(self) -> dict[str, Any]:
        """Numbers per observation and action, and the numbers of time steps."""
        assert self.scaler is not None
        return {
            "observation_dim": len(self.scaler.mean),
            "action_dim": self.action_dim,
            "context_steps": self.settings.context_steps,
            "max_episode_steps": self.longest,
            "max_action": 1.0,
        }

    # -- training and evaluation

    def batch(self, random: np.random.Generator, rows: int) -> Windows:
        """Windows that begin at any time step of the training trajectories."""
        train = self._parts["train"]
        ends = np.cumsum(self._lengths[train])
        drawn = random.integers(0, ends[-1], size=rows)
        which = np.searchsorted(ends, drawn, side="right")
        inside = drawn - (ends[which] - self._lengths[train][which])
        return self._gather(train[which], inside)

    def _gather(self, trajectories: NDArray[np.int64], inside: NDArray[np.int64]) -> Windows:
        """Windows of `context_steps` from these places in trajectories on, or to their end."""
        starts = self._starts[trajectories] + inside
        lengths = np.minimum(self._lengths[trajectories] - inside, self.settings.context_steps)
        return _windows(self._flat, starts, lengths)

    def loss(self, model: nn.Module, batch: Windows) -> Tensor:
        """Mean squared error of the actions, in the network's unit."""
        return self._squared(model, batch).sum() / (batch.mask.sum() * batch.actions.shape[2])

    def _squared(self, model: nn.Module, batch: Windows) -> Tensor:
        returns_to_go, observations, actions, timesteps, mask = batch
        predicted = model(returns_to_go, observations, actions, timesteps, mask=mask).float()
        return torch.where(mask[..., None], (predicted - actions).square(), 0)

    def parts(self) -> tuple[str, ...]:
        """What was held out, and everything."""
        return ("validation", "test", "all")

    def evaluation_batches(self, part: str, rows: int) -> Iterator[Windows | Rollouts]:
        """All time steps of a part in windows one after the other, and for the sample episodes in the simulator."""
        members, context = self._parts[part], self.settings.context_steps
        pairs = [(member, place) for member in members for place in range(0, self._lengths[member], context)]
        places = np.array(pairs, dtype=np.int64)
        for first in range(0, len(places), rows):
            yield self._gather(*places[first : first + rows].T)
        if self._simulated and part in ROLLOUT_SEEDS:
            yield _rollouts(np.random.default_rng(ROLLOUT_SEEDS[part]))

    def score(self, model: nn.Module, batch: Windows | Rollouts) -> dict[str, Tensor]:
        """Squared errors of the actions, or returns."""
        if isinstance(batch, Rollouts):
            earned = torch.from_numpy(self._play(model, batch.start.cpu().numpy(), self.target_return))
            sums = {"earned": earned, "expert": batch.expert, "random": batch.random}
            return {name: values.sum() for name, values in sums.items()}
        numbers = batch.mask.sum() * batch.actions.shape[2]
        return {"squared": self._squared(model, batch).double().sum() * self.action_scale**2, "numbers": numbers}

    def summary(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Mean squared error of the actions in the data's units; where episodes were played, the return on a scale on
        which random forces earn 0 and the scripted expert 100.
        """
        metrics = {"action_mse": sums["squared"] / sums["numbers"]}
        if "earned" in sums:
            above = sums["earned"] - sums["random"]
            metrics["normalised_return"] = 100 * above / (sums["expert"] - sums["random"])
        return metrics

    @torch.no_grad()
    def extras(self, model: nn.Module, part: str) -> Extras:
        """For the sample, the mean return earned by the return asked for."""
        if not self._simulated:
            return Extras()
        model.eval()
        episodes = _rollouts(np.random.default_rng(ROLLOUT_SEEDS.get(part, 0)))
        rows = []
        for share in TARGET_SHARES:
            earned = self._play(model, episodes.start.numpy(), share * self.target_return)
            rows.append((f"{share * self.target_return:.1f}", f"{earned.mean():.1f}"))
        for name, returns in (("random forces", episodes.random), ("scripted expert", episodes.expert)):
            rows.append((name, f"{float(returns.mean()):.1f}"))
        return Extras(tables=(("Return of episodes in the simulator", ("asked for", "earned, mean"), tuple(rows)),))

    def _play(self, model: nn.Module, start: NDArray[np.float64], target: float) -> NDArray[np.float64]:
        """Returns of episodes in which the network acts, and is asked for what is left of `target`."""
        steps, device, context = point_mass.EPISODE_STEPS, device_of(model), self.settings.context_steps
        assert self.scaler is not None
        scaler = self.scaler
        returns_to_go = torch.full((len(start), steps), target / self.return_scale)
        observations = torch.zeros(len(start), steps, start.shape[1])
        actions = torch.zeros(len(start), steps, 1)
        timesteps = torch.arange(steps).expand(len(start), steps)
        earned = np.zeros(len(start))
        states = start
        for step in range(steps):
            observations[:, step] = torch.from_numpy(scaler.apply(states))
            returns_to_go[:, step] = torch.from_numpy(((target - earned) / self.return_scale).astype(np.float32))
            window = slice(max(0, step + 1 - context), step + 1)
            known = (part[:, window].to(device) for part in (returns_to_go, observations, actions, timesteps))
            chosen = model(*known)[:, -1].float().cpu()
            forces = chosen[:, 0].double().numpy() * self.action_scale
            actions[:, step, 0] = torch.from_numpy((np.clip(forces, -1, 1) / self.action_scale).astype(np.float32))
            states, rewards = point_mass.advance(states, forces)
            earned = earned + rewards
        return earned

    # -- results

    @torch.no_grad()
    def predict(self, model: nn.Module, inputs: list[Path], out: Path) -> list[Path]:
        """For every .npz file the action of each time step, given those before it, as .npz and as CSV.

        Where the file has rewards, its own returns are asked for, otherwise the best return of the training part.
        """
        written: list[Path] = []
        for path in inputs:
            data = read_trajectories(path, need_rewards=False)
            self._check_sizes(shown(path), data)
            target = np.full(len(data.actions), self.target_return)
            flat = self._in_units_of_the_network(data, target if data.rewards is None else data.returns_to_go())
            actions, timesteps = self._actions(model, flat), data.timesteps()
            stored = io.BytesIO()
            np.savez(stored, actions=actions, ends=np.append(timesteps[1:] == 0, True))
            targets = [result_file(out, path, suffix, written) for suffix in (".npz", ".csv")]
            write_atomically(targets[0], stored.getvalue())
            numbers = np.repeat(np.arange(len(data.lengths)), data.lengths)
            rows = (
                (str(number), str(step), *map(number_text, action))
                for number, step, action in zip(numbers.tolist(), timesteps.tolist(), actions.tolist(), strict=True)
            )
            columns = ("trajectory", "step", *(f"action {number}" for number in range(self.action_dim)))
            write_atomically(targets[1], csv_text(columns, rows))
            written += targets
        return written

    def _actions(self, model: nn.Module, flat: tuple[NDArray[Any], ...]) -> NDArray[np.float32]:
        """The action of each time step, from the `context_steps` that end with it."""
        lengths = np.minimum(flat[-1] + 1, self.settings.context_steps)
        ends, device, found = np.arange(len(lengths)) + 1, device_of(model), []
        for first in range(0, len(lengths), ROWS):
            chosen = slice(first, first + ROWS)
            windows = _windows(flat, ends[chosen] - lengths[chosen], lengths[chosen])
            *known, mask = (part.to(device) for part in windows)
            predicted = model(*known, mask=mask).float().cpu()
            last = torch.from_numpy(lengths[chosen] - 1)[:, None, None]
            found.append(predicted.take_along_dim(last, dim=1)[:, 0].numpy())
        return np.concatenate(found) * np.float32(self.action_scale)


def _windows(flat: tuple[NDArray[Any], ...], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Windows:
    parts = [padded(values, starts, lengths) for values in flat]
    return Windows(*map(torch.from_numpy, (*(values for values, _ in parts), parts[0][1])))


def _rollouts(random: np.random.Generator) -> Rollouts:
    start = point_mass.beginnings(random, ROLLOUTS)
    expert, forces = (
        point_mass.run(policy, start)[2].sum(axis=1) for policy in (point_mass.expert, point_mass.random_policy(random))
    )
    return Rollouts(*map(torch.from_numpy, (start, expert, forces)))
