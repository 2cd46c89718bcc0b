from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from torch import nn

from regard.compare.attention import attention_map
from regard.compare.budget import build_host
from regard.compare.data import read_data
from regard.compare.decoding import why_no_decoding
from regard.compare.job import read_description
from regard.compare.problems import loss_of, make_problem
from regard.compare.series import baselines, read_series, shown_window
from regard.compare.speed import count_macs
from regard.compare.training import Trainer
from regard.errors import UserError
from regard.registry import entry_of

CPU = torch.device("cpu")
LENGTH, TRAIN, VALIDATION = 7, 70, 10


def nothing(*_: object) -> None:
    return None


def values_of(path) -> np.ndarray:
    """The series as the report on it counts: standardised by its first 70 rows."""
    with path.open(encoding="utf-8") as stream:
        rows = [[float(cell) for cell in line[1:]] for line in list(csv.reader(stream))[1:]]
    values = np.array(rows)
    spread = values[:TRAIN].std(axis=0)
    return (values - values[:TRAIN].mean(axis=0)) / np.where(spread > 0, spread, 1)


@pytest.fixture
def problem(settings, series_file, tmp_path):
    race = settings(task="series", data=str(series_file), train_length=LENGTH, steps=7)
    folder = tmp_path / "work"
    folder.mkdir()
    read_data(race).store(folder)
    return make_problem(race, read_description(folder), folder, CPU)


class Repeating(nn.Module):
    """The last value, over and over."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, series):
        return self.scale * series[:, -1:].expand(-1, LENGTH, -1)


def test_the_description_names_the_file_its_channels_and_its_parts(settings, series_file, tmp_path):
    data = read_data(settings(task="series", data=str(series_file), train_length=LENGTH))
    expected = "series.csv: 100 rows of 3 channels; 70 train, 10 validate, 20 test (70, 10 and 20 %)"
    assert data.description == expected
    assert (data.shape.channels, data.shape.horizon) == (3, LENGTH)
    described = data.store(tmp_path)
    assert described == read_description(tmp_path)
    assert described["channels"] == ["wave", "slope", "still"]
    assert described["notes"] == ["constant in the training part, so only shifted: still"]
    assert (tmp_path / "series.csv").read_bytes() == series_file.read_bytes()


def test_the_generated_series_needs_no_file(settings, tmp_path):
    race = settings(task="series", train_length=LENGTH)
    described = read_data(race).store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["data.json"]
    assert described["source"] == "a generated seasonal series"
    problem = make_problem(race, described, tmp_path, CPU)
    assert problem.batch(0, 0)[0].shape == (2, LENGTH, 4)


def test_windows_that_are_not_all_evaluated_are_noted_for_the_validation_part_alone(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("regard.compare.series.EVALUATION_WINDOWS", 50)
    described = read_data(settings(task="series", train_length=96)).store(tmp_path)
    assert described["notes"] == ["validation: 50 of 305 windows, evenly spaced, are evaluated"]


def test_a_series_that_is_too_short_is_one_line_with_the_races_own_option(series_file):
    expected = (
        "has 100 rows, of which 10 validate, and a window of 11 rows and 11 to forecast needs 11 there: "
        "give more rows or a smaller --train-length"
    )
    with pytest.raises(UserError) as caught:
        read_series(str(series_file), train_length=11)
    assert str(caught.value).endswith(expected)


def test_baselines_are_those_of_every_window(series_file):
    values = values_of(series_file)
    last, mean = [], []
    for start in range(TRAIN, TRAIN + VALIDATION - LENGTH + 1):
        for step in range(start, start + LENGTH):
            for channel in range(3):
                last.append((values[step, channel] - values[start - 1, channel]) ** 2)
                mean.append(values[step, channel] ** 2)
    for rows in (1, 2, 64):
        found = baselines(read_series(str(series_file), train_length=LENGTH), rows=rows)
        assert found == {
            "repeating the last value": pytest.approx(sum(last) / len(last), rel=1e-5),
            "training mean": pytest.approx(sum(mean) / len(mean), rel=1e-5),
        }


def test_networks_are_judged_on_the_windows_of_the_baselines(problem):
    told = problem.described["baselines"]
    found = problem.quality(Repeating(), nothing, nothing)
    assert found == {"quality": pytest.approx(told["repeating the last value"], rel=1e-5), "extrapolation": []}
    at_mean = Repeating()
    nn.init.zeros_(at_mean.scale)
    assert problem.validation_loss(at_mean) == pytest.approx(told["training mean"], rel=1e-5)


def test_the_mse_is_that_of_every_window(problem, series_file):
    host = build_host("linear", problem.settings, problem.shape, 9).eval()
    values = torch.from_numpy(values_of(series_file)).float()
    errors = []
    for start in range(TRAIN, TRAIN + VALIDATION - LENGTH + 1):
        with torch.no_grad():
            forecast = host(values[None, start - LENGTH : start])[0]
        for step in range(LENGTH):
            errors += [float(forecast[step, channel] - values[start + step, channel]) ** 2 for channel in range(3)]
    assert len(errors) == 4 * LENGTH * 3
    assert problem.quality(host, nothing, nothing)["quality"] == pytest.approx(sum(errors) / len(errors), rel=1e-4)


def test_the_test_part_has_no_influence(settings, series_file, tmp_path):
    lines = series_file.read_text(encoding="utf-8").splitlines()
    changed = [f"{line.split(',')[0]},-9e5,7,1e6" for line in lines[1 + TRAIN + VALIDATION :]]
    other = tmp_path / "other.csv"
    other.write_text("\n".join(lines[: 1 + TRAIN + VALIDATION] + changed), encoding="utf-8")
    seen = []
    for name, path in (("a", series_file), ("b", other)):
        race = settings(task="series", data=str(path), train_length=LENGTH)
        folder = tmp_path / name
        folder.mkdir()
        described = read_data(race).store(folder)
        problem = make_problem(race, described, folder, CPU)
        batches = [problem.batch(0, step) for step in range(50)]
        seen.append((described["baselines"], batches, problem.validation_loss(Repeating()), problem.shown_example()[0]))
    torch.testing.assert_close(seen[0], seen[1], atol=0, rtol=0)


def test_batches_are_decided_by_seed_and_step_and_stay_in_the_training_part(problem, series_file):
    context, truth = problem.batch(1, 5)
    assert context.shape == truth.shape == (2, LENGTH, 3)
    assert torch.equal(context, problem.batch(1, 5)[0])
    for seed, step in ((1, 6), (2, 5)):
        assert not torch.equal(context, problem.batch(seed, step)[0])
    values = torch.from_numpy(values_of(series_file)).float()
    windows = [values[start : start + 2 * LENGTH] for start in range(TRAIN - 2 * LENGTH + 1)]
    for step in range(30):
        for row in torch.cat(problem.batch(0, step), dim=1):
            assert any(torch.allclose(row, window, atol=1e-4) for window in windows)


def test_the_loss_of_numbers_is_their_mean_squared_error():
    outputs, targets = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    assert float(loss_of(outputs, targets)) == pytest.approx(float(((outputs - targets) ** 2).sum() / 30))


def test_training_on_a_series_learns_and_its_curve_is_the_mse(problem, tmp_path):
    torch.manual_seed(0)
    trainer = Trainer(build_host("softmax", problem.settings, problem.shape, 9).train(), problem, 0)
    expected = float(problem.loss(trainer.host, *problem.batch(0, 0)).detach())
    first = problem.validation_loss(trainer.host.eval())
    trainer.host.train()
    trainer.run(tmp_path / "c.pt", nothing, nothing)
    assert trainer.curve.train[0] == pytest.approx(expected, rel=1e-5)
    assert trainer.curve.validation[-1] < 0.95 * first
    quality = problem.quality(trainer.host.eval(), nothing, nothing)["quality"]
    assert quality == pytest.approx(trainer.curve.validation[-1], rel=1e-5)


def test_a_tick_between_batches_may_stop_the_evaluation(problem):
    class Stop(Exception):
        pass

    def stop():
        raise Stop

    with pytest.raises(Stop):
        problem.quality(Repeating(), stop, nothing)


def test_tokens_are_time_steps(problem):
    host = build_host("softmax", problem.settings, problem.shape, 9).eval()
    assert problem.tokens_per_step == 2 * LENGTH
    attention = 4 * 12 * 12 + 2 * LENGTH * 12
    per_window = LENGTH * (3 * 12 + 2 * (attention + 2 * 12 * 9)) + 12 * 3 * LENGTH
    assert count_macs(host, problem) == pytest.approx(per_window / LENGTH)


def test_causal_mixers_decode_on_series(outsiders):
    assert why_no_decoding("softmax", "series") == ""
    assert why_no_decoding("toy_mean", "series") == "has no state"


def test_the_map_is_that_of_one_validation_window(problem, series_file):
    sample, labels = problem.shown_example()
    values = torch.from_numpy(values_of(series_file)).float()
    middle = TRAIN + (VALIDATION - LENGTH + 1) // 2
    torch.testing.assert_close(sample[0], values[middle - LENGTH : middle], atol=1e-4, rtol=1e-4)
    assert labels == ["t\u22126", "t\u22125", "t\u22124", "t\u22123", "t\u22122", "t\u22121", "t"]
    host = build_host("softmax", problem.settings, problem.shape, 9).eval()
    shown = attention_map(host, problem, entry_of("softmax").traits)
    rows = torch.tensor(shown["heads"])
    assert rows.shape == (3, LENGTH, LENGTH)
    assert rows.triu(1).abs().max() == 0
    assert shown["labels"] == labels


def test_of_a_long_window_the_last_time_steps_are_shown():
    task = read_series(None, train_length=150)
    window, labels = shown_window(task)
    assert window.shape == (1, 96, 4)
    assert (labels[0], labels[-1], len(labels)) == ("t\u221295", "t", 96)
    contexts = [context for context, _ in task.evaluation_batches("validation", 1)]
    assert torch.equal(window[0], contexts[len(contexts) // 2][0, -96:])


def test_a_tiny_error_keeps_its_digits(problem):
    trainer = Trainer(Repeating(), problem, 0)
    trainer.next_step = 1
    trainer._record(0.000123456789, 7)
    assert trainer.curve.train == [0.000123457]
    assert trainer.curve.validation[0] == float(f"{problem.validation_loss(trainer.host):.6g}")
