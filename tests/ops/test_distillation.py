"""The distillation loss and the measures of likeness, row by row."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch

from regard.ops.distillation import attention_transfer_loss, order_agreement, output_transfer_loss, row_entropy


def rows_that_sum_to_one(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64).softmax(dim=-1)


def test_loss_is_the_cross_entropy_of_rows() -> None:
    teacher, student = rows_that_sum_to_one(2, 3, 5, 7), rows_that_sum_to_one(2, 3, 5, 7)
    losses = [
        -sum(float(a) * math.log(float(b)) for a, b in zip(t, s, strict=True))
        for t, s in zip(teacher.reshape(-1, 7), student.reshape(-1, 7), strict=True)
    ]
    assert float(attention_transfer_loss(teacher, student)) == pytest.approx(sum(losses) / 30)
    rows = torch.arange(5) < torch.tensor([2, 5])[:, None]
    kept = [loss for index, loss in enumerate(losses) if index >= 15 or index % 5 < 2]
    assert float(attention_transfer_loss(teacher, student, rows=rows[:, None])) == pytest.approx(sum(kept) / len(kept))


def test_loss_is_least_at_the_teacher_and_finite_at_zero() -> None:
    teacher = rows_that_sum_to_one(1, 1, 4, 5)
    least = float(attention_transfer_loss(teacher, teacher))
    assert least == pytest.approx(float(row_entropy(teacher)))
    assert all(float(attention_transfer_loss(teacher, rows_that_sum_to_one(1, 1, 4, 5))) > least for _ in range(5))
    nothing = attention_transfer_loss(teacher, torch.zeros_like(teacher))
    assert float(nothing) == pytest.approx(-math.log(1e-12))


def test_entropy_runs_from_zero_to_the_logarithm_of_the_length() -> None:
    assert float(row_entropy(torch.eye(7)[None, None])) == pytest.approx(0.0, abs=1e-6)
    assert float(row_entropy(torch.full((1, 1, 3, 7), 1 / 7))) == pytest.approx(math.log(7))


def test_order_agreement_counts_pairs() -> None:
    scores, weights = torch.randn(1, 2, 5, 7), torch.rand(1, 2, 5, 7)
    visible = torch.ones(5, 7, dtype=torch.bool).tril(2)[None, None]
    agreeing, counted = 0, 0
    for h in range(2):
        for i in range(5):
            for a, b in combinations(range(min(7, i + 3)), 2):
                counted += 1
                agreeing += (scores[0, h, i, a] > scores[0, h, i, b]) == (weights[0, h, i, a] > weights[0, h, i, b])
    assert float(order_agreement(scores, weights, visible=visible)) == pytest.approx(agreeing / counted)
    assert float(order_agreement(scores, scores.exp())) == 1
    assert float(order_agreement(scores, -scores)) == 0


def test_output_loss() -> None:
    a, b = torch.randn(2, 3, 5, 7), torch.randn(2, 3, 5, 7)
    expected = sum(float(x - y) ** 2 for x, y in zip(a.flatten(), b.flatten(), strict=True)) / a.numel()
    assert float(output_transfer_loss(a, b)) == pytest.approx(expected, rel=1e-5)


def test_ill_arguments_are_named() -> None:
    weights = rows_that_sum_to_one(1, 2, 5, 7)
    with pytest.raises(ValueError, match="needs the teacher's weights, got None"):
        attention_transfer_loss(None, weights)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(1, 2, 5, 6\) and the student's \(1, 2, 5, 7\)"):
        attention_transfer_loss(weights[..., :6], weights)
    with pytest.raises(ValueError, match="must be equal"):
        output_transfer_loss(weights[..., :6], weights)
    with pytest.raises(ValueError, match="must be equal"):
        order_agreement(weights[..., :6], weights)
