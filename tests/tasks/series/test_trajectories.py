from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regard.errors import UserError
from regard.tasks.series.trajectories import read_trajectories


def _arrays(**changed: Any) -> dict[str, Any]:
    random = np.random.default_rng(0)
    arrays = {
        "observations": random.standard_normal((7, 3)),
        "actions": random.standard_normal((7, 2)),
        "rewards": np.arange(7.0),
        "ends": np.array([0, 0, 1, 0, 0, 0, 1], dtype=bool),
    }
    return {name: value for name, value in {**arrays, **changed}.items() if value is not None}


def _file(folder: Path, arrays: dict[str, Any]) -> Path:
    np.savez(folder / "t.npz", **arrays)
    return folder / "t.npz"


def test_returns_to_go_by_hand(tmp_path: Path) -> None:
    data = read_trajectories(_file(tmp_path, _arrays()))
    assert data.lengths.tolist() == [3, 4]
    assert data.returns_to_go().tolist() == [3, 3, 2, 18, 15, 11, 6]
    assert data.timesteps().tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert data.notes == ()


def test_terminals_or_timeouts_end_a_trajectory_and_so_does_the_file(tmp_path: Path) -> None:
    terminals, timeouts = np.zeros((7, 1)), np.zeros(7, dtype=bool)
    terminals[1], timeouts[3] = 1, True
    data = read_trajectories(_file(tmp_path, _arrays(ends=None, terminals=terminals, timeouts=timeouts)))
    assert data.lengths.tolist() == [2, 2, 3]
    assert "the last trajectory has no end" in data.notes[0]


def test_one_number_per_step_may_come_as_a_vector(tmp_path: Path) -> None:
    data = read_trajectories(_file(tmp_path, _arrays(actions=np.linspace(0, 1, 7))))
    assert data.actions.shape == (7, 1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rewards": None}, "has no array rewards: it has observations, actions, ends"),
        ({"ends": None, "observations": None}, "has no array observations, ends"),
        ({"observations": np.zeros((6, 3))}, r"observations must have shape \(7, .*got \(6, 3\)"),
        ({"rewards": np.zeros(6)}, r"rewards must have shape \(7,\), got \(6,\)"),
        ({"actions": np.zeros((7, 2), dtype=np.int64)}, "actions are int64, and continuous ones are needed"),
        ({"actions": np.zeros((0, 2))}, "has no time step"),
        ({"observations": np.array(["a"] * 7)}, "observations must be numbers"),
        ({"rewards": np.array([0, 0, np.nan, 0, 0, 0, 0])}, "rewards of time step 2"),
        ({"observations": np.full((7, 3), 1e300)}, "observations of time step 0"),
    ],
)
def test_ill_arrays_are_named(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with (
        np.errstate(over="ignore"),
        pytest.raises(UserError, match=message),
    ):
        read_trajectories(_file(tmp_path, _arrays(**changed)))


def test_rewards_are_needed_for_returns_alone(tmp_path: Path) -> None:
    data = read_trajectories(_file(tmp_path, _arrays(rewards=None)), need_rewards=False)
    with pytest.raises(ValueError, match="without rewards"):
        data.returns_to_go()


def test_objects_damage_and_other_files_are_refused(tmp_path: Path) -> None:
    path = _file(tmp_path, _arrays(observations=np.array([{}] * 7, dtype=object)))
    with pytest.raises(UserError, match="plain arrays"):
        read_trajectories(path)
    whole = _file(tmp_path, _arrays()).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        read_trajectories(path)
    path.write_bytes(b"hello")
    with pytest.raises(UserError, match="damaged"):
        read_trajectories(path)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(UserError, match="a single array"):
        read_trajectories(tmp_path / "one.npy")
    with pytest.raises(UserError, match="there is no file"):
        read_trajectories(tmp_path / "none.npz")
