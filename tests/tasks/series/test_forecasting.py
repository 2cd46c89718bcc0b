from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regard.errors import UserError
from regard.models.series.forecaster import SeriesForecaster
from regard.tasks.evaluation import evaluate
from regard.tasks.series.forecasting import Forecasting, ForecastingSettings
from regard.tasks.task import rng

CONTEXT, HORIZON, ROWS = 5, 3, 70
TRAIN, VALIDATION = 49, 7


def _values() -> np.ndarray[Any, Any]:
    random = np.random.default_rng(9)
    return random.standard_normal((ROWS, 2)).cumsum(axis=0) * [1, 50] + [0, 1000]


def _write(path: Path, values: np.ndarray[Any, Any]) -> Path:
    lines = ["date,low,high"]
    lines += [f"2020-01-{1 + row // 24:02d} {row % 24:02d}:00:00,{a},{b}" for row, (a, b) in enumerate(values.tolist())]
    path.write_text("\n".join(lines) + "\n")
    return path


def _task(path: Path | None, **settings: int) -> Forecasting:
    task = Forecasting(ForecastingSettings(**{"context_len": CONTEXT, "horizon": HORIZON, **settings}))
    task.read(path)
    return task


def test_windows_and_scaling_by_hand(tmp_path: Path) -> None:
    values = _values()
    task = _task(_write(tmp_path / "s.csv", values))
    train = values[:TRAIN]
    mean = np.array([sum(column) / TRAIN for column in train.T])
    std = np.array(
        [(sum((x - m) ** 2 for x in column) / TRAIN) ** 0.5 for column, m in zip(train.T, mean, strict=True)]
    )
    scaled = (values - mean) / std
    for part, first, end in (("validation", TRAIN, TRAIN + VALIDATION), ("test", TRAIN + VALIDATION, ROWS)):
        batches = list(task.evaluation_batches(part, 4))
        contexts, futures = (torch.cat([batch[side] for batch in batches]) for side in (0, 1))
        targets = [row for row in range(first, end) if row + HORIZON <= end]
        assert len(contexts) == len(targets)
        for row, target in enumerate(targets):
            np.testing.assert_allclose(contexts[row], scaled[target - CONTEXT : target], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(futures[row], scaled[target : target + HORIZON], rtol=1e-5, atol=1e-6)
    assert "49 train, 7 validate, 14 test (70, 10 and 20 %)" in task.described


def test_training_never_sees_what_is_held_out(tmp_path: Path) -> None:
    values = _values()
    plain = _task(_write(tmp_path / "a.csv", values))
    values[TRAIN:] = 1e6 * np.random.default_rng(1).standard_normal((ROWS - TRAIN, 2))
    changed = _task(_write(tmp_path / "b.csv", values))
    assert plain.facts() == changed.facts()
    for step in range(20):
        for ours, theirs in zip(plain.batch(rng(0, step), 16), changed.batch(rng(0, step), 16), strict=True):
            assert torch.equal(ours, theirs)


def test_batches_depend_on_the_generator_alone_and_reach_all_windows(tmp_path: Path) -> None:
    task = _task(_write(tmp_path / "s.csv", _values()))
    first, again = task.batch(rng(3, 5), 8), task.batch(rng(3, 5), 8)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], task.batch(rng(3, 6), 8)[0])
    seen = {tuple(row.flatten().tolist()) for step in range(40) for row in task.batch(rng(0, step), 32)[1]}
    assert len(seen) == TRAIN - CONTEXT - HORIZON + 1


def test_metrics_by_hand(tmp_path: Path) -> None:
    task = _task(_write(tmp_path / "s.csv", _values()))

    class Last(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, series: torch.Tensor) -> torch.Tensor:
            return series[:, -1:].expand(-1, HORIZON, -1)

    errors = []
    for context, future in task.evaluation_batches("test", 100):
        errors += [
            (context[row, -1, c] - future[row, t, c]).item()
            for row in range(len(future))
            for t in range(HORIZON)
            for c in (0, 1)
        ]
    metrics = evaluate(task, Last(), "test", 5)
    assert metrics["mse"] == pytest.approx(sum(error**2 for error in errors) / len(errors), rel=1e-5)
    assert metrics["mae"] == pytest.approx(sum(map(abs, errors)) / len(errors), rel=1e-5)
    extras = task.extras(Last(), "test")
    title, header, rows = extras.tables[0]
    assert "how far ahead" in title
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert all(row[1] == row[3] for row in rows)
    assert len(header) == len(rows[0])
    assert [line[2] for line in extras.lines] == ["low", "high"]
    assert len(extras.lines[0][3]["truth"]) == CONTEXT + HORIZON


def test_ett_is_split_by_months(shared_data: Path) -> None:
    path = shared_data / "ett" / "ETTh1.csv"
    if not path.is_file():
        pytest.skip("no ETTh1")
    task = Forecasting(ForecastingSettings())
    start = time.process_time()
    task.read(path)
    assert time.process_time() - start < 1
    with path.open() as stream:
        rows = [list(map(float, row[1:])) for row in list(csv.reader(stream))[1 : 1 + 8640]]
    np.testing.assert_allclose(task.facts()["mean"], np.mean(rows, axis=0))
    np.testing.assert_allclose(task.facts()["std"], np.std(rows, axis=0))
    assert "8,640 train, 2,880 validate, 2,880 test (12, 4 and 4 months" in task.described
    assert sum(len(batch[0]) for batch in task.evaluation_batches("test", 512)) == 2880 - 96 + 1
    first = next(iter(task.evaluation_batches("test", 1)))
    assert first[0].shape == (1, 96, 7)
    assert task.model_fields() == {"channels": 7, "context_len": 96, "horizon": 96}


def test_an_evaluation_can_be_limited(tmp_path: Path) -> None:
    task = _task(_write(tmp_path / "s.csv", _values()), evaluation_windows=4)
    assert sum(len(batch[0]) for batch in task.evaluation_batches("test", 3)) == 4
    assert any("4 of 12 windows" in note for note in task.notes)


def test_fit_evaluate_and_predict(tmp_path: Path, trained: Callable[..., Any], restored: Callable[..., Any]) -> None:
    values = _values()
    path = _write(tmp_path / "s.csv", values)
    task = _task(path)
    model = trained(task, SeriesForecaster)
    again = restored(task)
    (written,) = again.predict(model, [path], tmp_path)
    with written.open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["date", "low", "high"]
    assert [row["date"] for row in rows] == ["2020-01-03 22:00:00", "2020-01-03 23:00:00", "2020-01-04 00:00:00"]
    mean, std = (np.array(task.facts()[name]) for name in ("mean", "std"))
    context = torch.tensor((values[-CONTEXT:] - mean) / std, dtype=torch.float32)
    with torch.no_grad():
        expected = model(context[None])[0].double().numpy() * std + mean
    found = np.array([[float(row["low"]), float(row["high"])] for row in rows])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    again.read(path)
    assert evaluate(again, model, "test", 4) == evaluate(task, model, "test", 4)


def test_prediction_follows_the_order_of_its_file_and_counts_where_dates_break(
    tmp_path: Path, trained: Callable[..., Any]
) -> None:
    task = _task(_write(tmp_path / "s.csv", _values()))
    model = trained(task, SeriesForecaster)
    lines = ["high,time,low"] + [f"{1000 + row},{row * row},{row}" for row in range(CONTEXT)]
    (tmp_path / "p.csv").write_text("\n".join(lines) + "\n")
    (written,) = task.predict(model, [tmp_path / "p.csv"], tmp_path)
    rows = written.read_text().splitlines()
    assert rows[0] == "high,time,low"
    assert [row.split(",")[1] for row in rows[1:]] == ["+1", "+2", "+3"]
    (tmp_path / "p.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(UserError, match=r"p\.csv has 4 rows, and 5 are read"):
        task.predict(model, [tmp_path / "p.csv"], tmp_path)
    (tmp_path / "p.csv").write_text("low,middle\n1,2\n")
    with pytest.raises(UserError, match="has the columns low, middle, and the network was trained on low, high"):
        task.predict(model, [tmp_path / "p.csv"], tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("date\n2020-01-01\n", "no column with numbers beside date"),
        (
            "date,x\n" + "2020-01-01,1\n" * 30,
            "has 30 rows, of which 3 validate, and a window of 5 rows and 4 to forecast needs 4 there",
        ),
        ("day,x\nMonday,1\n", "line 2, column day: 'Monday' is not a number"),
        ("date,x\n2020-01-01,?\n", r"line 2, column x: '\?' is not a number"),
    ],
)
def test_ill_files(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "s.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        _task(tmp_path / "s.csv", horizon=4)


def test_a_constant_channel_is_noted(tmp_path: Path) -> None:
    values = _values()
    values[:, 0] = 0.3
    task = _task(_write(tmp_path / "s.csv", values))
    assert any("low" in note and "constant" in note for note in task.notes)
    assert task.facts()["std"][0] == 1
    assert torch.isfinite(task.batch(rng(0, 0), 4)[0]).all()


def test_the_sample_and_ill_settings_and_facts() -> None:
    task = Forecasting(ForecastingSettings())
    task.read(None)
    assert task.parts()[:2] == ("validation", "test")
    context, future = task.batch(rng(0, 0), 3)
    assert context.shape == future.shape == (3, 96, len(task.channels))
    with pytest.raises(ValueError, match="horizon must be at least 1, got 0"):
        ForecastingSettings(horizon=0)
    with pytest.raises(ValueError, match="mean must be 4 finite numbers"):
        Forecasting(ForecastingSettings()).restore({**task.facts(), "mean": [0.0]})
