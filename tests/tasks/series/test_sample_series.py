from __future__ import annotations

import numpy as np

from regard.tasks.series.sample_series import CLASSES, seasonal_series, waves


def test_the_seasonal_series_has_the_rhythm_of_a_day() -> None:
    values = seasonal_series(rows=1344, channels=3, seed=5)
    assert values.shape == (1344, 3)
    power = np.abs(np.fft.rfft(values - values.mean(axis=0), axis=0))
    # 1,344 hours are 56 days; slow levels are left out
    assert (power[20:].argmax(axis=0) + 20 == 56).all()
    np.testing.assert_array_equal(values, seasonal_series(rows=1344, channels=3, seed=5))
    assert (values != seasonal_series(rows=1344, channels=3, seed=6)).all()


def test_waves_have_all_classes_lengths_and_parts() -> None:
    data = waves(train=60, test=20, seed=1)
    assert data.labels is not None
    assert data.splits is not None
    assert set(data.labels) == set(CLASSES)
    assert (data.lengths.min() >= 20, data.lengths.max() <= 60) == (True, True)
    assert len(data.values) == data.lengths.sum()
    assert data.splits.count("test") == 20
    np.testing.assert_array_equal(data.values, waves(train=60, test=20, seed=1).values)
