from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from sklearn.metrics import precision_score, recall_score, roc_auc_score

from regard.tasks.radiographs.scores import log_odds, metrics, roc_points, sums


def totals(scores: torch.Tensor, labels: torch.Tensor, rows: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for part, truth in zip(scores.split(rows), labels.split(rows), strict=True):
        for name, value in sums(part, truth).items():
            found[name] = found.get(name, 0.0) + float(value)
    return found


def test_log_odds_are_those_of_the_softmax() -> None:
    scores = torch.randn(11, 4, dtype=torch.float64)
    p = scores.softmax(dim=1)
    torch.testing.assert_close(log_odds(scores), (p / (1 - p)).log())


@pytest.mark.parametrize("classes", [2, 3])
def test_metrics_are_sklearns(classes: int) -> None:
    labels = torch.randint(classes, (331,))
    scores = torch.randn(331, classes) + 1.2 * torch.nn.functional.one_hot(labels, classes)
    names = ["a", "b", "c"][:classes]
    found = metrics(totals(scores, labels, 40), names)
    answers, p = scores.argmax(dim=1), scores.softmax(dim=1)
    expected = roc_auc_score(labels, p[:, 1]) if classes == 2 else roc_auc_score(labels, p, multi_class="ovr")
    assert found["auc"] == pytest.approx(expected, abs=0.002)
    assert found["accuracy"] == pytest.approx(float((answers == labels).float().mean()))
    for number, name in enumerate(names):
        chosen = {"labels": [number], "average": "macro"}
        assert found[f"sensitivity {name}"] == pytest.approx(recall_score(labels, answers, **chosen))
        assert found[f"PPV {name}"] == pytest.approx(precision_score(labels, answers, **chosen))


def test_extreme_scores_are_counted() -> None:
    scores = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [0.0, 0.0]])
    assert metrics(totals(scores, torch.tensor([0, 1, 1]), 2), ["no", "yes"])["auc"] == 1.0


def test_what_has_no_images_is_no_number() -> None:
    found = metrics(totals(torch.tensor([[2.0, 1.0], [0.3, 0.1]]), torch.tensor([0, 0]), 2), ["no", "yes"])
    assert found["sensitivity no"] == 1.0
    assert all(math.isnan(found[name]) for name in ("auc", "sensitivity yes", "PPV yes"))


def test_the_curve_has_the_area() -> None:
    truth = torch.rand(200) < 0.4
    values = torch.randn(200) + truth
    points = roc_points(values.numpy(), truth.numpy())
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))
    assert area == pytest.approx(roc_auc_score(truth, values))
    assert roc_points(values.numpy(), torch.ones(200, dtype=torch.bool).numpy()) == []
