from __future__ import annotations

import numpy as np
import pytest

from regard.tasks.series.point_processes import (
    BASE_RATES,
    EXCITATION,
    MEANS,
    NEXT_MARK,
    hawkes,
    mixed_processes,
    renewal,
)


def test_hawkes_rates_are_those_of_theory() -> None:
    # in the long run rate = base + excitation^T rate
    expected = np.linalg.solve(np.eye(3) - np.array(EXCITATION).T, BASE_RATES)
    times, marks = hawkes(np.random.default_rng(0), until=6000.0)
    assert (np.diff(times) > 0).all()
    np.testing.assert_allclose(np.bincount(marks) / 6000.0, expected, rtol=0.1)


def test_hawkes_without_excitation_is_a_poisson_process() -> None:
    none = np.zeros((2, 2)).tolist()
    times, marks = hawkes(np.random.default_rng(1), until=2000.0, base_rates=(0.5, 1.5), excitation=none)
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(0.5, rel=0.05)
    assert gaps.std() == pytest.approx(0.5, rel=0.07)
    assert marks.mean() == pytest.approx(0.75, abs=0.03)


def test_hawkes_events_cause_events() -> None:
    times, _ = hawkes(np.random.default_rng(2), until=2000.0)
    gaps = np.diff(times)
    # clustered: more spread than a Poisson process of the same rate
    assert gaps.std() > 1.2 * gaps.mean()


def test_an_explosive_excitation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be below 1, got 1\.2"):
        hawkes(np.random.default_rng(0), until=1.0, base_rates=(1.0,), excitation=((1.2,),))


def test_renewal_times_and_marks_follow_their_tables() -> None:
    times, marks = renewal(np.random.default_rng(3), until=6000.0)
    gaps = np.diff(times)
    for mark in range(3):
        after = marks[:-1] == mark
        assert gaps[after].mean() == pytest.approx(MEANS[mark], rel=0.06)
        shares = np.bincount(marks[1:][after], minlength=3) / after.sum()
        np.testing.assert_allclose(shares, NEXT_MARK[mark], atol=0.03)


def test_sequences_depend_on_the_seed_alone() -> None:
    first, again, other = (mixed_processes(sequences=4, until=20.0, seed=seed) for seed in (7, 7, 8))
    for (times, marks), (same_times, same_marks) in zip(first, again, strict=True):
        np.testing.assert_array_equal(times, same_times)
        np.testing.assert_array_equal(marks, same_marks)
    assert len(first[0][0]) != len(other[0][0]) or (first[0][0] != other[0][0]).any()
    assert all(len(times) for times, _ in first)
