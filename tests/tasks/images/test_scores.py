from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from regard.tasks.images import scores as module
from regard.tasks.images.scores import BINS, Confusion, metrics, sums


def batches(classes: int = 7, count: int = 53) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    labels = torch.randint(classes, (count,))
    scores = torch.randn(count, classes) + 2 * F.one_hot(labels, classes)
    return scores, labels


def added(scores: torch.Tensor, labels: torch.Tensor, rows: int) -> dict[str, float]:
    totals: dict[str, float] = {}
    for some, truths in zip(scores.split(rows), labels.split(rows), strict=True):
        for name, value in sums(some, truths).items():
            totals[name] = totals.get(name, 0.0) + float(value)
    return totals


@pytest.mark.parametrize("rows", [1, 4, 53])
def test_metrics_are_those_of_all_images_whatever_the_batch(rows):
    scores, labels = batches()
    found = metrics(added(scores, labels, rows))
    probabilities = scores.softmax(dim=1).numpy()
    answers = probabilities.argmax(axis=1)
    right = answers == labels.numpy()
    assert found["accuracy"] == pytest.approx(right.mean())
    order = np.argsort(-probabilities, axis=1)[:, :5]
    assert found["top5_accuracy"] == pytest.approx((order == labels.numpy()[:, None]).any(axis=1).mean())
    assert found["loss"] == pytest.approx(float(F.cross_entropy(scores, labels)), rel=1e-5)
    error = 0.0
    for index in range(BINS):
        confidence = probabilities.max(axis=1)
        member = (confidence > index / BINS) & (confidence <= (index + 1) / BINS)
        if member.any():
            error += member.mean() * abs(confidence[member].mean() - right[member].mean())
    assert found["calibration_error"] == pytest.approx(error, rel=1e-4)


def test_few_classes_have_no_top_5():
    assert "top5_accuracy" not in metrics(added(*batches(5), rows=9))
    assert "top5_accuracy" in metrics(added(*batches(6), rows=9))


def test_a_network_that_is_sure_and_right_is_calibrated():
    labels = torch.arange(6)
    found = metrics(added(1e4 * F.one_hot(labels, 6).float(), labels, rows=6))
    assert (found["accuracy"], found["calibration_error"]) == (1.0, 0.0)


def test_a_network_without_an_opinion_is_as_right_as_it_says():
    labels = torch.arange(4).repeat(5)
    found = metrics(added(torch.zeros(20, 4), labels, rows=7))
    assert found["loss"] == pytest.approx(math.log(4))
    assert found["calibration_error"] == pytest.approx(0.0, abs=1e-6)


def counted(scores: torch.Tensor, labels: torch.Tensor, classes: int) -> Confusion:
    confusion = Confusion([f"c{number}" for number in range(classes)])
    for some, truths in zip(scores.split(11), labels.split(11), strict=True):
        confusion.add(some, truths)
    return confusion


def test_the_tables_count_every_image():
    scores, labels = batches()
    extras = counted(scores, labels, 7).extras("validation")
    matrix, by_class, calibration = extras.tables
    assert extras.heat_maps == ()
    assert matrix[1] == ("class", *(f"c{number}" for number in range(7)))
    answers = scores.argmax(dim=1)
    counts = np.array([[int(cell) for cell in row[1:]] for row in matrix[2]])
    for truth in range(7):
        for answer in range(7):
            assert counts[truth, answer] == int(((labels == truth) & (answers == answer)).sum())
    for number, (name, images, accuracy, precision, mistaken) in enumerate(by_class[2]):
        assert name == f"c{number}"
        assert int(images) == counts[number].sum()
        assert float(accuracy.removesuffix(" %")) == pytest.approx(
            100 * counts[number, number] / counts[number].sum(), abs=0.05
        )
        assert float(precision.removesuffix(" %")) == pytest.approx(
            100 * counts[number, number] / counts[:, number].sum(), abs=0.05
        )
        others = counts[number].copy()
        others[number] = 0
        assert mistaken == ("-" if not others.any() else f"c{int(others.argmax())}")
    assert sum(int(row[1]) for row in calibration[2]) == 53
    ((title, _, _, series),) = extras.lines
    assert "validation" in title
    assert len(series["the network"]) == len(calibration[2])


def test_a_class_without_images_or_answers_has_dashes():
    confusion = Confusion(["a", "b", "c"])
    confusion.add(torch.tensor([[9.0, 0, 0]]), torch.tensor([0]))
    rows = confusion.extras("validation").tables[1][2]
    assert rows == (("a", "1", "100.0 %", "100.0 %", "-"), ("b", "0", "-", "-", "-"), ("c", "0", "-", "-", "-"))


def test_many_classes_are_drawn_and_not_tabled(monkeypatch):
    scores, labels = batches(23, 300)
    extras = counted(scores, labels, 23).extras("test")
    assert [table[0] for table in extras.tables] == ["Accuracy by class on test", "Calibration on test"]
    (drawn,) = extras.heat_maps
    assert len(drawn.names) == len(drawn.values) == 23
    answers = scores.argmax(dim=1)
    for truth in range(23):
        members = labels == truth
        for answer in range(23):
            share = float((answers[members] == answer).float().mean())
            assert drawn.values[truth][answer] == pytest.approx(share, abs=1e-4)
    monkeypatch.setattr(module, "LARGEST_MAP", 10)
    monkeypatch.setattr(module, "MOST_CONFUSED", 4)
    (some,) = counted(scores, labels, 23).extras("test").heat_maps
    mistakes = [int(((labels == truth) & (answers != truth)).sum()) for truth in range(23)]
    fewest_shown = min(mistakes[int(name[1:])] for name in some.names)
    assert len(some.names) == 4
    assert sum(count > fewest_shown for count in mistakes) < 4
    assert "the 4 classes with the most mistakes" in some.title
