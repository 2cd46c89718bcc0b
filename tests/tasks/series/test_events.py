from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regard.errors import UserError
from regard.models.series.event_model import EventModel
from regard.tasks.evaluation import evaluate
from regard.tasks.series.events import Events, EventsSettings
from regard.tasks.task import rng

Sequences = list[tuple[np.ndarray[Any, Any], list[str]]]


def _sequences(count: int, seed: int = 0, longest: int = 30) -> Sequences:
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        length = int(random.integers(4, longest))
        times = 100 + random.exponential(2.0, length).cumsum()
        found.append((times, [["b", "a", "c"][mark] for mark in random.integers(0, 3, length)]))
    return found


def _write(path: Path, sequences: Sequences) -> Path:
    lines = ["sequence,time,mark"]
    for number, (times, marks) in enumerate(sequences):
        lines += [f"{number},{time!r},{mark}" for time, mark in zip(times.tolist(), marks, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def _task(path: Path | None, **settings: Any) -> Events:
    task = Events(EventsSettings(**{"max_len": 5, **settings}))
    task.read(path)
    return task


def _network(task: Events) -> EventModel:
    torch.manual_seed(0)
    config = replace(EventModel.SMALL, dim=16, num_layers=1, num_heads=2, hidden=16, **task.model_fields())
    return EventModel(config).eval()


def test_every_event_with_a_predecessor_is_forecast_once(tmp_path: Path) -> None:
    sequences = _sequences(20)
    task = _task(_write(tmp_path / "e.csv", sequences))
    gaps: list[float] = []
    for batch in task.evaluation_batches("all", 7):
        assert batch.gaps.shape[1] <= 6
        gaps += batch.gaps[batch.forecast].tolist()
    expected = np.concatenate([np.diff(times) for times, _ in sequences])
    np.testing.assert_allclose(gaps, expected, rtol=1e-5, atol=1e-5)
    parts = [sum(int(batch.forecast.sum()) for batch in task.evaluation_batches(part, 7)) for part in task.parts()]
    trained = len(expected) - parts[0] - parts[1]
    assert parts[2] == len(expected)
    assert f"{trained:,} train" in task.described
    assert "by sequence" in task.described


def test_the_scale_of_time_is_that_of_the_training_part(tmp_path: Path) -> None:
    sequences = _sequences(1, longest=200)[:1]
    times, marks = sequences[0]
    cut = len(times) - 2 * round(0.1 * len(times))
    task = _task(_write(tmp_path / "e.csv", sequences))
    logs = np.log(np.diff(times[:cut]))
    assert task.facts()["log_time_mean"] == pytest.approx(logs.mean())
    assert task.facts()["log_time_std"] == pytest.approx(logs.std())
    assert task.facts()["longest_time"] == pytest.approx(np.diff(times[:cut]).max())
    assert "by time" in task.described
    later = times.copy()
    later[cut:] += 1e4 * np.arange(1, len(times) - cut + 1)
    changed = _task(_write(tmp_path / "f.csv", [(later, marks)]))
    assert changed.facts() == task.facts()
    for step in range(10):
        for ours, theirs in zip(task.batch(rng(0, step), 4), changed.batch(rng(0, step), 4), strict=True):
            assert torch.equal(ours, theirs)


def test_time_before_the_first_event_is_never_counted(tmp_path: Path) -> None:
    sequences = _sequences(20)
    task = _task(_write(tmp_path / "e.csv", sequences), max_len=64)
    shifted = _task(_write(tmp_path / "f.csv", [(times + 7e4, marks) for times, marks in sequences]), max_len=64)
    model = _network(task)
    first, second = (evaluate(each, model, "all", 8) for each in (task, shifted))
    assert first["nll"] == pytest.approx(second["nll"], rel=1e-4)


def test_metrics_by_hand(tmp_path: Path) -> None:
    sequences = _sequences(20)
    task = _task(_write(tmp_path / "e.csv", sequences), max_len=64)
    model = _network(task)
    nats, time_nats, right, squared, count = 0.0, 0.0, 0, 0.0, 0
    fill = math.exp(task.facts()["log_time_mean"])
    for times, marks in sequences:
        gaps = torch.tensor([[fill, *np.diff(times)]], dtype=torch.float32)
        numbers = torch.tensor([["abc".index(mark) for mark in marks]])
        with torch.no_grad():
            of_times, of_marks = model.log_prob(gaps, numbers)
            forecast = model(gaps, numbers)
        for event in range(1, len(times)):
            time_nats -= of_times[0, event].item()
            nats -= of_marks[0, event].item()
            right += int(forecast.mark_log_probs[0, event].argmax() == numbers[0, event])
            expected = min(model.expected_time(forecast)[0, event].item(), task.facts()["longest_time"])
            squared += (expected - gaps[0, event].item()) ** 2
            count += 1
    metrics = evaluate(task, model, "all", 6)
    assert metrics["time_nll"] == pytest.approx(time_nats / count, rel=1e-4)
    assert metrics["nll"] == pytest.approx((nats + time_nats) / count, rel=1e-4)
    assert metrics["mark_accuracy"] == pytest.approx(right / count)
    assert metrics["rmse"] == pytest.approx(math.sqrt(squared / count), rel=1e-4)
    losses = [task.loss(model, batch) for batch in task.evaluation_batches("all", 1000)]
    assert float(losses[0].detach()) == pytest.approx(metrics["nll"], rel=1e-4)
    titles = [table[0] for table in task.extras(model, "validation").tables]
    assert titles[0].startswith("Always")


def test_fit_evaluate_and_predict(tmp_path: Path, trained: Callable[..., Any], restored: Callable[..., Any]) -> None:
    path = _write(tmp_path / "e.csv", _sequences(20))
    task = _task(path)
    model = trained(task, EventModel)
    again = restored(task)
    inputs = _sequences(3, seed=5)
    (written,) = again.predict(model, [_write(tmp_path / "p.csv", inputs)], tmp_path)
    with written.open() as stream:
        rows = list(csv.DictReader(stream))
    fill = math.exp(task.facts()["log_time_mean"])
    for number, (row, (times, marks)) in enumerate(zip(rows, inputs, strict=True)):
        gaps = torch.tensor([[fill, *np.diff(times)]], dtype=torch.float32)[:, -5:]
        numbers = torch.tensor([["abc".index(mark) for mark in marks]])[:, -5:]
        with torch.no_grad():
            forecast = model(gaps, numbers)
        shares = forecast.mark_log_probs[0, -1].exp()
        after = min(model.expected_time(forecast)[0, -1].item(), task.facts()["longest_time"])
        assert row["sequence"] == str(number)
        assert float(row["after"]) == pytest.approx(after, rel=1e-4)
        assert float(row["time"]) == pytest.approx(times[-1] + after, rel=1e-6)
        assert row["mark"] == "abc"[int(shares.argmax())]
        assert [float(row[f"p({mark})"]) for mark in "abc"] == pytest.approx(shares.tolist(), rel=1e-3)
    again.read(path)
    assert evaluate(again, model, "test", 3) == evaluate(task, model, "test", 3)
    (tmp_path / "q.csv").write_text("time,mark\n1,a\n2,b\n")
    (alone,) = again.predict(model, [tmp_path / "q.csv"], tmp_path)
    assert alone.read_text().startswith("time,after,mark,p(a)")


def test_batches_depend_on_the_generator_alone(tmp_path: Path) -> None:
    task = _task(_write(tmp_path / "e.csv", _sequences(20)))
    assert torch.equal(task.batch(rng(0, 3), 8).gaps, task.batch(rng(0, 3), 8).gaps)
    batch = task.batch(rng(0, 4), 8)
    assert not batch.forecast[:, 0].any()
    assert (batch.forecast[:, 1:] == batch.mask[:, 1:]).all()


def test_simultaneous_events_count_as_the_shortest_time(tmp_path: Path) -> None:
    times = np.repeat(np.arange(40.0), 2)
    task = _task(_write(tmp_path / "e.csv", [(times, ["a", "b"] * 40)]))
    assert task.facts()["min_time"] == 1
    assert any("count as that" in note for note in task.notes)
    assert math.isfinite(evaluate(task, _network(task), "validation", 4)["nll"])


def test_ill_data_settings_and_facts(tmp_path: Path, restored: Callable[..., Any]) -> None:
    task = _task(_write(tmp_path / "e.csv", _sequences(20)))
    (tmp_path / "x.csv").write_text("time,mark\n1,a\n2,z\n")
    with pytest.raises(UserError, match="has the mark z, and the network knows a, b, c"):
        restored(task).read(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text("time,mark\n1,a\n2,a\n")
    with pytest.raises(UserError, match="2 events in 1 sequence: too few for a validation part"):
        _task(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text("time,mark\n" + "1,a\n" * 40)
    with pytest.raises(UserError, match="all events of the training part are at the same time"):
        _task(tmp_path / "x.csv")
    with pytest.raises(ValueError, match=r"together below 1, got 0\.5 and 0.5"):
        EventsSettings(validation_share=0.5, test_share=0.5)
    with pytest.raises(ValueError, match="min_time must be positive"):
        Events(EventsSettings()).restore({**task.facts(), "min_time": 0.0})


def test_the_sample() -> None:
    task = Events(EventsSettings())
    task.read(None)
    assert task.model_fields()["num_marks"] == 3
    assert torch.isfinite(task.batch(rng(0, 0), 4).gaps).all()
