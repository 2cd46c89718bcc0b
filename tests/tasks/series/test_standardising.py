from __future__ import annotations

import json

import numpy as np
import pytest

from regard.errors import UserError
from regard.tasks.series.standardising import Scaler, fit_scaler


def test_mean_and_deviation_by_hand() -> None:
    scaler, notes = fit_scaler(np.array([[1.0, 10.0], [3.0, 10.0], [5.0, 40.0]]), ("a", "b"))
    np.testing.assert_allclose(scaler.mean, [3, 20])
    np.testing.assert_allclose(scaler.std, [(8 / 3) ** 0.5, 200**0.5])
    assert notes == []
    np.testing.assert_allclose(scaler.undo(scaler.apply(np.array([[7.0, -5.0]]))), [[7, -5]], rtol=1e-6)


def test_a_channel_that_stands_still_is_only_shifted_and_named() -> None:
    values = np.array([[0.1, 1.0]] * 7 + [[0.1, 2.0]])
    scaler, notes = fit_scaler(values, ("still", "moving"))
    assert scaler.std[0] == 1
    assert "still" in notes[0]
    assert "moving" not in notes[0]


def test_numbers_that_cannot_be_squared_are_refused() -> None:
    with pytest.raises(UserError, match="column b has numbers that are too large"):
        fit_scaler(np.array([[1.0, 1e300], [2.0, -1e300]]), ("a", "b"))


def test_stored_exactly_and_refused_where_it_does_not_fit() -> None:
    scaler, _ = fit_scaler(np.random.default_rng(0).standard_normal((11, 3)), ("a", "b", "c"))
    stored = json.loads(json.dumps(scaler.stored()))
    again = Scaler.restored(stored, 3)
    np.testing.assert_array_equal(again.std, scaler.std)
    with pytest.raises(ValueError, match="mean must be 2 finite numbers"):
        Scaler.restored(stored, 2)
    with pytest.raises(ValueError, match="std must be positive"):
        Scaler.restored({"mean": [0.0], "std": [0.0]}, 1)
    with pytest.raises(KeyError):
        Scaler.restored({"mean": [0.0]}, 1)
