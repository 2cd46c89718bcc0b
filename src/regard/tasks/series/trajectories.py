"""Trajectories of a control problem, one after the other, from an `.npz` file as offline data sets have them."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regard.errors import UserError
from regard.tasks.series.ragged import starts_of
from regard.tasks.text_files import reason_of
from regard.wording import listed, shown

ENDS = ("ends", "terminals", "dones", "timeouts")
"""Arrays that say where a trajectory ends; where there are several, any of them may say so."""


@dataclass(frozen=True)
class Trajectories:
    """Time steps of all trajectories.

    Args:
        observations: `(steps, observation_dim)`.
        actions: `(steps, action_dim)`.
        rewards: `(steps,)`; None where the file has none.
        lengths: time steps of each trajectory; none is 0.
        notes: what the user should know.
    """

    observations: NDArray[np.float32]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float64] | None
    lengths: NDArray[np.int64]
    notes: tuple[str, ...] = ()

    @property
    def starts(self) -> NDArray[np.int64]:
        """Where each trajectory begins."""
        return starts_of(self.lengths)

    def returns_to_go(self) -> NDArray[np.float64]:
        """Sum of the rewards from each time step to the end of its trajectory.

        Raises:
            ValueError: there are no rewards.
        """
        if self.rewards is None:
            raise ValueError("trajectories without rewards have no returns")
        before = np.concatenate((np.zeros(1), np.cumsum(self.rewards)))
        ends = np.repeat(self.starts + self.lengths, self.lengths)
        return before[ends] - before[:-1]

    def timesteps(self) -> NDArray[np.int64]:
        """The number of each time step in its trajectory, from 0."""
        return np.arange(len(self.actions)) - np.repeat(self.starts, self.lengths)


def read_trajectories(path: Path, *, need_rewards: bool = True) -> Trajectories:
    """The trajectories of a file.

    Args:
        path: an `.npz` file with the arrays observations, actions, rewards, and ends (or terminals, dones, timeouts).
        need_rewards: whether a file without rewards is refused.

    Raises:
        UserError: missing, damaged, with pickled objects, or arrays that are not of such shapes; named.
    """
    arrays = _load(path)
    missing = [
        name for name in ("observations", "actions", *(["rewards"] if need_rewards else [])) if name not in arrays
    ]
    if not any(name in arrays for name in ENDS):
        missing.append("ends")
    if missing:
        has = listed([shown(name, 40) for name in arrays], 10) or "none"
        raise UserError(f"{shown(path)} has no array {listed(missing)}: it has {has}")
    steps = arrays["actions"].shape[0] if arrays["actions"].ndim else 0
    if not steps:
        raise UserError(f"{shown(path)} has no time step: actions have shape {arrays['actions'].shape}")
    observations = _matrix(path, "observations", arrays["observations"], steps)
    actions = _matrix(path, "actions", arrays["actions"], steps)
    if arrays["actions"].dtype.kind in "iub":
        raise UserError(f"{shown(path)}: actions are {arrays['actions'].dtype}, and continuous ones are needed")
    rewards = None
    if "rewards" in arrays:
        rewards = _vector(path, "rewards", arrays["rewards"], steps).astype(np.float64)
        _check_finite(path, "rewards", rewards)
    ended = np.zeros(steps, dtype=bool)
    for name in ENDS:
        if name in arrays:
            ended |= _vector(path, name, arrays[name], steps).astype(bool)
    notes: tuple[str, ...] = ()
    if not ended[-1]:
        notes = ("the last trajectory has no end: it is taken to end with the file",)
        ended[-1] = True
    lengths = np.diff(np.flatnonzero(ended), prepend=-1).astype(np.int64)
    return Trajectories(observations, actions, rewards, lengths, notes)


def _load(path: Path) -> dict[str, NDArray[np.generic]]:
    wanted: Sequence[str] = ("observations", "actions", "rewards", *ENDS)
    try:
        with path.open("rb") as stream:
            stored = np.load(stream, allow_pickle=False)
            if isinstance(stored, np.ndarray):
                raise UserError(f"{shown(path)} holds a single array: an .npz file with several is needed")
            with stored:
                return {name: stored[name] for name in stored.files if name in wanted}
    except FileNotFoundError:
        raise UserError(f"there is no file {shown(path)}") from None
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError) as error:
        raise UserError(
            f"{shown(path)} is no .npz file of plain arrays, or a damaged one: {shown(str(error))}"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {shown(path)}: {reason_of(error)}") from None


def _matrix(path: Path, name: str, array: NDArray[np.generic], steps: int) -> NDArray[np.float32]:
    """`(steps, width)`, finite; one number per time step is a width of 1."""
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.shape[0] != steps or not array.shape[1]:
        raise UserError(
            f"{shown(path)}: {name} must have shape ({steps}, numbers per time step), as there are {steps} actions, "
            f"got {array.shape}"
        )
    _check_numbers(path, name, array)
    values = array.astype(np.float32)
    _check_finite(path, name, values)
    return values


def _vector(path: Path, name: str, array: NDArray[np.generic], steps: int) -> NDArray[np.generic]:
    if array.shape not in ((steps,), (steps, 1)):
        raise UserError(f"{shown(path)}: {name} must have shape ({steps},), got {array.shape}")
    _check_numbers(path, name, array)
    return array.reshape(steps)


def _check_numbers(path: Path, name: str, array: NDArray[np.generic]) -> None:
    if array.dtype.kind not in "fiub":
        raise UserError(f"{shown(path)}: {name} must be numbers, got {array.dtype}")


def _check_finite(path: Path, name: str, values: NDArray[Any]) -> None:
    wrong = ~np.isfinite(values)
    if wrong.any():
        row = int(np.argwhere(wrong)[0][0])
        raise UserError(f"{shown(path)}: {name} of time step {row:,} (from 0) is not a finite float32 number")
