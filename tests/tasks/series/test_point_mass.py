from __future__ import annotations

import math

import numpy as np
import pytest

from regard.tasks.series import point_mass


def test_a_step_by_hand() -> None:
    states, rewards = point_mass.advance(np.array([[1.0, 0.5], [0.0, 0.0]]), np.array([-3.0, 0.5]))
    velocity = 0.5 + 0.1 * (-1 - 0.2 * 0.5)
    position = 1 + 0.1 * velocity
    np.testing.assert_allclose(states, [[position, velocity], [0.005, 0.05]])
    assert rewards[0] == pytest.approx(math.exp(-4 * (position**2 + velocity**2 / 4)))


def test_the_expert_comes_to_rest_and_beats_the_recorded_episodes() -> None:
    start = point_mass.beginnings(np.random.default_rng(4), 50)
    _, _, rewards = point_mass.run(point_mass.expert, start)
    assert rewards[:, -1].min() > 0.99
    noise = point_mass.random_policy(np.random.default_rng(5))
    recorded = point_mass.mixed_trajectories(episodes=50, seed=1).returns_to_go()[:: point_mass.EPISODE_STEPS]
    random_return = point_mass.run(noise, start)[2].sum(axis=1).mean()
    assert rewards.sum(axis=1).mean() > 1.3 * recorded.mean() > 1.3 * 1.3 * random_return


def test_trajectories_are_those_of_the_simulator_and_of_the_seed() -> None:
    data = point_mass.mixed_trajectories(episodes=9, seed=2)
    assert data.lengths.tolist() == [point_mass.EPISODE_STEPS] * 9
    assert np.abs(data.actions).max() <= 1
    states, rewards = point_mass.advance(data.observations[:-1].astype(np.float64), data.actions[:-1, 0])
    inside = np.arange(1, len(data.actions)) % point_mass.EPISODE_STEPS != 0
    np.testing.assert_allclose(states[inside], data.observations[1:][inside], atol=1e-5)
    assert data.rewards is not None
    np.testing.assert_allclose(rewards[inside], data.rewards[:-1][inside], atol=1e-5)
    again = point_mass.mixed_trajectories(episodes=9, seed=2)
    np.testing.assert_array_equal(data.actions, again.actions)
    other = point_mass.mixed_trajectories(episodes=9, seed=3)
    assert (data.actions != other.actions).any()
