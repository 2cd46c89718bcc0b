"""The soft Dice coefficient against sums written out, and against MONAI's loss."""

from __future__ import annotations

import pytest
import torch

from regard.ops.soft_dice import soft_dice


def test_is_the_formula() -> None:
    p = torch.rand(2, 3, 5, 7, dtype=torch.float64)
    t = torch.nn.functional.one_hot(torch.randint(0, 3, (2, 5, 7)), 3).movedim(-1, 1).double()
    for number, value in enumerate(soft_dice(p, t)):
        both = sum(float(p[row, number].flatten() @ t[row, number].flatten()) for row in range(2))
        squares = float((p[:, number] ** 2).sum() + (t[:, number] ** 2).sum())
        assert float(value) == pytest.approx((2 * both + 1) / (squares + 1))


def test_an_absent_class_that_is_not_predicted_agrees() -> None:
    assert soft_dice(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)).tolist() == [1.0, 1.0]


def test_narrow_types_are_summed_in_float32() -> None:
    p = torch.full((1, 2, 71, 73, 79), 0.5, dtype=torch.float16)
    found = soft_dice(p, p)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.ones(2), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_equals_monais_loss() -> None:
    losses = pytest.importorskip("monai.losses")
    logits, labels = torch.randn(2, 3, 5, 7, 3), torch.randint(0, 3, (2, 5, 7, 3))
    t = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    loss = losses.DiceLoss(
        include_background=False, softmax=True, squared_pred=True, smooth_nr=1.0, smooth_dr=1.0, batch=True
    )
    torch.testing.assert_close(1 - soft_dice(logits.softmax(dim=1), t)[1:].mean(), loss(logits, t))
