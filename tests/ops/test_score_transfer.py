"""The distillation losses against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from regard.ops.score_transfer import probability_error, score_divergence, teacher_targets
from regard.ops.softmax_attention import softmax_attention_reference
from regard.ops.visibility import visible_keys


def softmax_of(scores: Tensor, seen: list[int]) -> dict[int, float]:
    powers = {j: math.exp(float(scores[j])) for j in seen}
    return {j: power / sum(powers.values()) for j, power in powers.items()}


@pytest.mark.parametrize("over_heads", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_losses_are_the_formulas(masked: bool, over_heads: bool) -> None:
    teacher, student = (torch.randn(2, 3, 5, 5, dtype=torch.float64) for _ in range(2))
    rows = torch.tensor([[True] * 5, [True] * 3 + [False] * 2]) if masked else None
    visible = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
    divergence = squares = counted = 0.0
    for b in range(2):
        for i in range(5):
            if rows is not None and not rows[b, i]:
                continue
            counted += 1
            for h in range(3):
                p, found = (softmax_of(scores[b, h, i], list(range(i + 1))) for scores in (teacher, student))
                divergence += sum(p[j] * math.log(p[j] / found[j]) for j in p)
                squares += sum((p[j] - found[j]) ** 2 for j in p) / 5
    found_divergence = score_divergence(teacher, student, visible=visible, rows=rows, over_heads=over_heads)
    assert float(found_divergence) == pytest.approx(divergence / counted / (3 if over_heads else 1))
    assert float(probability_error(teacher, student, visible=visible, rows=rows)) == pytest.approx(
        squares / counted / 3
    )


def test_equal_scores_cost_nothing_and_extreme_ones_stay_finite() -> None:
    scores = torch.randn(1, 2, 4, 4)
    assert float(score_divergence(scores, scores + 3, over_heads=True)) == pytest.approx(0, abs=1e-6)
    assert float(probability_error(scores, scores + 3)) == pytest.approx(0, abs=1e-6)
    far = (1e4 * torch.randn(1, 2, 4, 4)).requires_grad_()
    visible = torch.ones(4, 4, dtype=torch.bool).tril()[None, None]
    loss = score_divergence(-far.detach(), far, visible=visible, over_heads=True)
    (gradient,) = torch.autograd.grad(loss, far)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert torch.equal(gradient.triu(1), torch.zeros_like(gradient))


@pytest.mark.parametrize("causal", [False, True])
def test_targets_are_a_softmax_teachers(causal: bool) -> None:
    q, k, v = (torch.randn(2, heads, 7, 5, requires_grad=True) for heads in (4, 2, 2))
    mask = torch.arange(7) < torch.tensor([[7], [3]])
    scores, context = teacher_targets(q, k, v, causal=causal, mask=mask)
    visible = visible_keys(7, 7, causal=causal, mask=mask, device=q.device)
    torch.testing.assert_close(context, softmax_attention_reference(q, k, v, visible=visible).detach())
    for head in range(4):
        torch.testing.assert_close(scores[:, head], (q[:, head] @ k[:, head // 2].mT / 5**0.5).detach())
    assert not scores.requires_grad
    assert not context.requires_grad


def test_gradients_by_differences() -> None:
    teacher = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    student = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    visible = torch.ones(3, 3, dtype=torch.bool).tril()[None, None]
    for loss in (
        lambda s: score_divergence(teacher, s, visible=visible, over_heads=False),
        lambda s: probability_error(teacher, s, visible=visible),
    ):
        assert torch.autograd.gradcheck(loss, student)


def test_scores_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 1, 2, 3\) and the student's \(1, 1, 2, 2\)"):
        probability_error(torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 2, 2))
