from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regard.errors import UserError
from regard.models.series.series_classifier import SeriesClassifier
from regard.tasks.evaluation import evaluate
from regard.tasks.series.classification import SeriesClassification, SeriesClassificationSettings
from regard.tasks.task import rng

PER_CLASS = 7


def _series(seed: int, low: int = 3) -> list[tuple[str, np.ndarray[Any, Any]]]:
    random = np.random.default_rng(seed)
    return [
        (label, random.standard_normal((int(random.integers(low, 9)), 2)) * [1, 20] + [0, 5])
        for label in ("2", "10")
        for _ in range(PER_CLASS)
    ]


def _write_ts(path: Path, series: list[tuple[str, np.ndarray[Any, Any]]]) -> None:
    lines = ["@classLabel true 2 10", "@data"]
    for label, values in series:
        lines.append(":".join([",".join(map(repr, column)) for column in values.T.tolist()] + [label]))
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    folder = tmp_path / "Toy"
    folder.mkdir()
    _write_ts(folder / "Toy_TRAIN.ts", _series(1))
    _write_ts(folder / "Toy_TEST.ts", _series(2))
    return folder


def _task(path: Path | None) -> SeriesClassification:
    task = SeriesClassification(SeriesClassificationSettings())
    task.read(path)
    return task


def test_a_pair_has_a_validation_part_of_its_training_file(pair: Path) -> None:
    task = _task(pair)
    assert task.parts() == ("validation", "test", "all")
    assert task.classes == ("2", "10")
    validation = list(task.evaluation_batches("validation", 10))
    assert [sorted(batch.classes.tolist()) for batch in validation] == [[0, 1]]
    (test,) = task.evaluation_batches("test", 100)
    assert test.mask.sum(dim=1).tolist() == [len(values) for _, values in _series(2)]
    assert "12 train, 2 validation, 14 test" in task.described


def test_channels_are_standardised_by_the_series_that_train(pair: Path) -> None:
    task = _task(pair)
    (held,) = task.evaluation_batches("validation", 100)
    (test,) = task.evaluation_batches("test", 100)
    lengths = [len(values) for _, values in _series(1)]
    mean, std = (np.array(task.facts()[name]) for name in ("mean", "std"))
    kept = []
    for _, values in _series(1):
        scaled = torch.tensor((values - mean) / std, dtype=torch.float32)
        is_held = any(
            len(values) == int(mask.sum()) and torch.allclose(row[: len(values)], scaled, atol=1e-5)
            for row, mask in zip(held.series, held.mask, strict=True)
        )
        if not is_held:
            kept.append(values)
    assert len(kept) == len(lengths) - 2
    together = np.concatenate(kept)
    np.testing.assert_allclose(mean, together.mean(axis=0))
    np.testing.assert_allclose(std, together.std(axis=0))
    for row, (_, values) in enumerate(_series(2)):
        np.testing.assert_allclose(test.series[row, : len(values)], (values - mean) / std, rtol=1e-4, atol=1e-5)
        assert not test.series[row, len(values) :].any()


def test_the_scaler_knows_nothing_of_what_is_held_out(pair: Path) -> None:
    before = _task(pair)
    _write_ts(pair / "Toy_TEST.ts", [(label, 1e5 * values) for label, values in _series(2)])
    assert _task(pair).facts() == before.facts()
    assert torch.equal(_task(pair).batch(rng(0, 0), 8).series, before.batch(rng(0, 0), 8).series)


def test_batches_depend_on_the_generator_alone_and_never_hold_what_validates(pair: Path) -> None:
    task = _task(pair)
    assert torch.equal(task.batch(rng(1, 2), 6).series, task.batch(rng(1, 2), 6).series)
    (held,) = task.evaluation_batches("validation", 100)
    known = {tuple(row[mask].flatten().tolist()) for row, mask in zip(held.series, held.mask, strict=True)}
    seen = set()
    for step in range(30):
        batch = task.batch(rng(0, step), 8)
        seen |= {tuple(row[mask].flatten().tolist()) for row, mask in zip(batch.series, batch.mask, strict=True)}
    assert len(seen) == 12
    assert not seen & known


def test_a_table_with_its_own_parts(tmp_path: Path) -> None:
    lines = ["series,split,label,x"]
    for name, split, label in (("a", "train", "u"), ("b", "train", "v"), ("c", "validation", "u"), ("d", "test", "v")):
        lines += [f"{name},{split},{label},{step}" for step in range(3)]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    task = _task(tmp_path / "t.csv")
    assert task.parts() == ("validation", "test", "all")
    assert "2 train, 1 validation, 1 test" in task.described


def test_metrics_and_confusion_by_hand(pair: Path) -> None:
    task = _task(pair)

    class Long(torch.nn.Module):
        """Calls every series of more than 5 steps a "10", with 2 to 1."""

        def __init__(self) -> None:
            super().__init__()
            self.odds = torch.nn.Parameter(torch.tensor([1.0, 2.0]).log())

        def forward(self, series: torch.Tensor, *, mask: torch.Tensor) -> torch.Tensor:
            is_long = mask.sum(dim=1, keepdim=True) > 5
            return torch.where(is_long, self.odds, self.odds.flip(0))

    pairs = [(label, "10" if len(values) > 5 else "2") for label, values in _series(2)]
    hits = sum(label == found for label, found in pairs)
    metrics = evaluate(task, Long(), "test", 4)
    assert metrics["accuracy"] == pytest.approx(hits / len(pairs))
    nats = -(hits * np.log(2 / 3) + (len(pairs) - hits) * np.log(1 / 3)) / len(pairs)
    assert metrics["loss"] == pytest.approx(nats, rel=1e-6)
    ((_, header, rows),) = task.extras(Long(), "test").tables
    assert header == ("class", "2", "10")
    assert rows == tuple((true, *(str(pairs.count((true, found))) for found in ("2", "10"))) for true in ("2", "10"))


def test_fit_evaluate_and_predict(
    pair: Path, tmp_path: Path, trained: Callable[..., Any], restored: Callable[..., Any]
) -> None:
    task = _task(pair)
    model = trained(task, SeriesClassifier)
    again = restored(task)
    lines = ["series,time,x,y"]
    for number, (_, values) in enumerate(_series(3)):
        lines += [f"s{number},{step},{x!r},{y!r}" for step, (x, y) in enumerate(values.tolist())]
    (tmp_path / "p.csv").write_text("\n".join(lines) + "\n")
    files = again.predict(model, [pair / "Toy_TEST.ts", tmp_path / "p.csv"], tmp_path)
    assert [file.name for file in files] == ["Toy_TEST.ts.predicted.csv", "p.csv.predicted.csv"]
    mean, std = (np.array(task.facts()[name]) for name in ("mean", "std"))
    with files[1].open() as stream:
        rows = list(csv.DictReader(stream))
    for number, (row, (_, values)) in enumerate(zip(rows, _series(3), strict=True)):
        scaled = torch.tensor((values - mean) / std, dtype=torch.float32)
        with torch.no_grad():
            shares = model(scaled[None]).softmax(dim=1)[0]
        assert row["series"] == f"s{number}"
        assert row["class"] == task.classes[int(shares.argmax())]
        assert float(row["probability"]) == pytest.approx(float(shares.max()), rel=1e-4)
    again.read(pair)
    assert evaluate(again, model, "test", 5) == evaluate(task, model, "test", 5)


def test_ill_data(pair: Path, tmp_path: Path, restored: Callable[..., Any]) -> None:
    again = restored(_task(pair))
    (tmp_path / "c.csv").write_text("series,label,x,y\n1,2,0,0\n2,7,0,0\n")
    with pytest.raises(UserError, match="has the class 7, and the network knows 2, 10"):
        again.read(tmp_path / "c.csv")
    (tmp_path / "c.csv").write_text("series,label,x\n1,2,0\n2,10,0\n")
    with pytest.raises(UserError, match="has 1 channel, and the network was trained on 2"):
        again.read(tmp_path / "c.csv")
    with pytest.raises(UserError, match="has 1 channel, and the network was trained on 2"):
        again.predict(torch.nn.Linear(1, 1), [tmp_path / "c.csv"], tmp_path)
    (tmp_path / "c.csv").write_text("series,x\n1,0\n")
    with pytest.raises(UserError, match="has no class labels"):
        _task(tmp_path / "c.csv")
    (tmp_path / "c.csv").write_text("series,label,x\n1,a,0\n2,a,0\n")
    with pytest.raises(UserError, match="series of one class only, a"):
        _task(tmp_path / "c.csv")


def test_japanese_vowels(shared_data: Path) -> None:
    folder = shared_data / "uea" / "JapaneseVowels"
    if not folder.is_dir():
        pytest.skip("no JapaneseVowels")
    task = _task(folder)
    assert task.model_fields() == {"channels": 12, "num_classes": 9}
    assert "243 train, 27 validation, 370 test" in task.described
    assert task.batch(rng(0, 0), 16).series.shape[0] == 16


def test_the_sample_and_ill_settings() -> None:
    task = _task(None)
    assert task.parts()[0] == "validation"
    assert torch.isfinite(task.batch(rng(0, 0), 4).series).all()
    with pytest.raises(ValueError, match="validation_share must be between 0 and 1, got 1"):
        SeriesClassificationSettings(validation_share=1)
