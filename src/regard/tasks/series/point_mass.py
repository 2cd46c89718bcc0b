"""A point mass on a line that is to be brought to rest at the origin: a small simulator, and trajectories of scripted
policies of mixed quality.

The mass is pushed by a force between -1 and 1 and slowed by friction; a time step is worth exp(-4 (x^2 + v^2 / 4)), so
that a whole episode is worth less than its number of time steps. Times in seconds, the mass is 1 kg.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from regard.tasks.series.trajectories import Trajectories

STEP_S = 0.1
FRICTION = 0.2
EPISODE_STEPS = 60
STIFFNESS, DAMPING = 6.0, 4.0
"""Of the expert: force = -stiffness x - damping v."""
QUALITIES = (0.1, 0.5, 0.95)
"""Shares of skill in the recorded episodes."""

States = NDArray[np.float64]
"""`(episodes, 2)`: position and velocity."""
Policy = Callable[[States, int], NDArray[np.float64]]
"""Forces `(episodes,)` from states and the number of the time step."""


def beginnings(random: np.random.Generator, episodes: int) -> States:
    """Positions between 0.8 and 1.2 from the origin on either side, velocities between -0.2 and 0.2."""
    side = random.choice((-1.0, 1.0), size=episodes)
    return np.stack((side * random.uniform(0.8, 1.2, episodes), random.uniform(-0.2, 0.2, episodes)), axis=1)


def advance(states: States, forces: NDArray[np.float64]) -> tuple[States, NDArray[np.float64]]:
    """The states a time step later, and the rewards of being there; the velocity moves first (semi-implicit Euler)."""
    position, velocity = states.T
    velocity = velocity + STEP_S * (np.clip(forces, -1, 1) - FRICTION * velocity)
    position = position + STEP_S * velocity
    return np.stack((position, velocity), axis=1), np.exp(-4 * (position**2 + velocity**2 / 4))


def expert(states: States, step: int) -> NDArray[np.float64]:
    """A damped spring: near the best that a bounded force can do."""
    return np.clip(-STIFFNESS * states[:, 0] - DAMPING * states[:, 1], -1, 1)


def random_policy(random: np.random.Generator) -> Policy:
    """Forces that are drawn anew at every time step."""
    return lambda states, step: random.uniform(-1, 1, len(states))


def run(
    policy: Policy, start: States, *, steps: int = EPISODE_STEPS
) -> tuple[States, NDArray[np.float64], NDArray[np.float64]]:
    """Whole episodes.

    Args:
        policy: what chooses the forces.
        start: the first states.
        steps: time steps.

    Returns:
        States `(episodes, steps, 2)` before each action, forces `(episodes, steps)` as applied, rewards
        `(episodes, steps)`.
    """
    states, seen, done, earned = start, [], [], []
    for step in range(steps):
        forces = np.clip(policy(states, step), -1, 1)
        seen.append(states)
        done.append(forces)
        states, rewards = advance(states, forces)
        earned.append(rewards)
    return np.stack(seen, axis=1), np.stack(done, axis=1), np.stack(earned, axis=1)


def mixed_trajectories(*, episodes: int = 200, seed: int = 0) -> Trajectories:
    """Episodes by policies of one quality each, a third poor, a third middling and a third good: so much of a skilled
    force, the rest noise. The skilled force is the expert's, mixed with one that swings about the origin undamped.

    Args:
        episodes: number of them.
        seed: of all random numbers.
    """
    random = np.random.default_rng(seed)
    quality = random.choice(QUALITIES, size=episodes)
    lazy = (1 - quality) * random.uniform(0, 1, episodes)
    noise = random_policy(random)

    def policy(states: States, step: int) -> NDArray[np.float64]:
        swing = np.clip(-2 * states[:, 0], -1, 1)
        skilled = (1 - lazy) * expert(states, step) + lazy * swing
        return quality * skilled + (1 - quality) * noise(states, step)

    states, forces, rewards = run(policy, beginnings(random, episodes))
    return Trajectories(
        states.reshape(-1, 2).astype(np.float32),
        forces.reshape(-1, 1).astype(np.float32),
        rewards.reshape(-1),
        np.full(episodes, EPISODE_STEPS, dtype=np.int64),
    )
