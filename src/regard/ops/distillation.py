"""Attention transfer: teach linear attention the weights of softmax attention, and measure how alike they are.

Paper: "The Hedgehog & the Porcupine", Zhang et al., ICLR 2024, https://arxiv.org/abs/2402.04347, section 4 (the loss)
and section 3 (spikiness and monotonicity). Compared with HazyResearch/lolcats@375df84f
`src/trainer/distill_attention_xent_mse.py`. All of this is quadratic in the number of tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regard.ops.precision import compute_dtype, without_autocast

LOG_FLOOR = 1e-12
"""The smallest weight of which a logarithm is taken."""

Rows = Bool[Tensor, "#batch #heads queries"]


def attention_transfer_loss(
    teacher: Float[Tensor, "batch heads queries keys"],
    student: Float[Tensor, "batch heads queries keys"],
    *,
    rows: Rows | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of two attention maps: -sum_j teacher_ij log student_ij, in nats, mean over rows and heads.

    Args:
        teacher: rows that sum to 1.
        student: the same, of the attention that learns.
        rows: which rows count; None = all.

    Raises:
        ValueError: no teacher's weights, or maps of different shapes.
    """
    if teacher is None:
        raise ValueError("the distillation loss needs the teacher's weights, got None")
    if teacher.shape != student.shape:
        raise ValueError(
            f"the teacher's map has shape {tuple(teacher.shape)} and the student's {tuple(student.shape)}: "
            "they must be equal"
        )
    dtype = compute_dtype(student)
    log_student = student.to(dtype).clamp(min=LOG_FLOOR).log()
    return _mean_over_rows(-(teacher.to(dtype) * log_student).sum(dim=-1), rows)


@without_autocast
def output_transfer_loss(
    teacher: Float[Tensor, "batch heads queries value_dim"], student: Float[Tensor, "batch heads queries value_dim"]
) -> Float[Tensor, ""]:
    """Mean squared error of two attentions' outputs (what LoLCATs adds to the cross-entropy, a thousandfold).

    Raises:
        ValueError: outputs of different shapes.
    """
    if teacher.shape != student.shape:
        raise ValueError(
            f"the teacher's output has shape {tuple(teacher.shape)} and the student's {tuple(student.shape)}: "
            "they must be equal"
        )
    dtype = compute_dtype(student)
    return (student.to(dtype) - teacher.to(dtype)).square().mean()


@without_autocast
def row_entropy(weights: Float[Tensor, "batch heads queries keys"], *, rows: Rows | None = None) -> Float[Tensor, ""]:
    """Mean entropy of the rows in nats: the lower, the spikier."""
    weights = weights.to(compute_dtype(weights))
    return _mean_over_rows(-(weights * weights.clamp(min=LOG_FLOOR).log()).sum(dim=-1), rows)


@without_autocast
def order_agreement(
    scores: Float[Tensor, "batch heads queries keys"],
    weights: Float[Tensor, "batch heads queries keys"],
    *,
    visible: Bool[Tensor, "#batch #heads #queries keys"] | None = None,
) -> Float[Tensor, ""]:
    """Monotonicity: the share of a row's pairs of keys that scores and weights put in the same order.

    1 means that larger scores always have larger weights. Pairs with equal scores do not count; cubic in tokens.

    Args:
        scores: the products q . k.
        weights: the map to judge.
        visible: which keys a row may see; None = all.

    Raises:
        ValueError: maps of different shapes.
    """
    if scores.shape != weights.shape:
        raise ValueError(
            f"scores have shape {tuple(scores.shape)} and weights {tuple(weights.shape)}: they must be equal"
        )
    first = scores[..., :, None] - scores[..., None, :]
    second = weights[..., :, None] - weights[..., None, :]
    counted = first != 0
    if visible is not None:
        counted = counted & visible[..., :, None] & visible[..., None, :]
    agreeing = (first.sign() == second.sign()) & counted
    return agreeing.sum() / counted.sum().clamp(min=1)


def _mean_over_rows(values: Float[Tensor, "batch heads queries"], rows: Rows | None) -> Float[Tensor, ""]:
    if rows is None:
        return values.mean()
    rows = rows.expand(values.shape)
    return torch.where(rows, values, 0).sum() / rows.sum().clamp(min=1)
