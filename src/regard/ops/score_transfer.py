"""Distilling attention from scores: how far the softmax of a student's scores is from that of a teacher's.

Paper: "SEA: Sparse Linear Attention with Estimated Attention Mask", Lee et al., ICLR 2024,
https://arxiv.org/abs/2310.01777, section 3.3. Compared with gmlwns2000/sea-attention@5609413b
`src/models/perlin_attention/attention.py` and `src/models/common/kl_div_for_atten.py`. All of this is quadratic in
the number of tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regard.ops.heads import repeat_heads
from regard.ops.precision import compute_dtype, without_autocast
from regard.ops.visibility import visible_keys

Scores = Float[Tensor, "batch heads queries keys"]
Visible = Bool[Tensor, "#batch #heads #queries keys"]
Rows = Bool[Tensor, "batch queries"]


@torch.no_grad()
@without_autocast
def teacher_targets(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    v: Float[Tensor, "batch kv_heads keys value_dim"],
    *,
    causal: bool,
    mask: Bool[Tensor, "batch keys"] | None = None,
) -> tuple[Scores, Float[Tensor, "batch heads queries value_dim"]]:
    """What a softmax teacher gives a student to learn from: its scores q k^T / sqrt(d) and its outputs, no gradients.

    Args:
        q: the teacher's queries.
        k: its keys; their heads may be fewer.
        v: its values.
        causal: whether the future is hidden.
        mask: True = real key.
    """
    dtype = compute_dtype(q)
    q, k, v = (repeat_heads(x, q.shape[1]).to(dtype) for x in (q, k, v))
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5
    visible = visible_keys(q.shape[2], k.shape[2], causal=causal, mask=mask, device=q.device)
    hidden = scores if visible is None else scores.masked_fill(~visible, torch.finfo(dtype).min)
    return scores, hidden.softmax(dim=-1) @ v


@without_autocast
def score_divergence(
    teacher: Scores, student: Scores, *, visible: Visible | None = None, rows: Rows | None = None, over_heads: bool
) -> Float[Tensor, ""]:
    """KL(softmax(teacher) || softmax(student)) over the visible keys, in nats, mean over rows.

    Args:
        teacher: scores, before their softmax.
        student: the same, of the attention that learns.
        visible: which keys a query may see; None = all.
        rows: which queries count; None = all.
        over_heads: mean over heads too; else their sum.

    Raises:
        ValueError: scores of different shapes.
    """
    expected, found = _log_softmax(teacher, student, visible)
    weights = expected.exp()
    terms = torch.where(weights > 0, weights * (expected - found), 0).sum(dim=-1)
    heads = teacher.shape[1] if over_heads else 1
    if rows is None:
        return terms.sum() / (terms.shape[0] * terms.shape[2] * heads)
    return torch.where(rows[:, None], terms, 0).sum() / (rows.sum().clamp(min=1) * heads)


@without_autocast
def probability_error(
    teacher: Scores, student: Scores, *, visible: Visible | None = None, rows: Rows | None = None
) -> Float[Tensor, ""]:
    """Mean squared difference of softmax(teacher) and softmax(student), over all keys, the hidden ones included.

    Arguments and errors as for `score_divergence`.
    """
    expected, found = _log_softmax(teacher, student, visible)
    squares = (expected.exp() - found.exp()).square().mean(dim=-1)
    if rows is None:
        return squares.mean()
    return torch.where(rows[:, None], squares, 0).sum() / (rows.sum().clamp(min=1) * teacher.shape[1])


def _log_softmax(teacher: Tensor, student: Tensor, visible: Tensor | None) -> tuple[Tensor, Tensor]:
    if teacher.shape != student.shape:
        raise ValueError(
            f"the teacher's scores have shape {tuple(teacher.shape)} and the student's {tuple(student.shape)}: "
            "they must be equal"
        )
    dtype = compute_dtype(student)
    both = (teacher.to(dtype), student.to(dtype))
    if visible is not None:
        both = tuple(scores.masked_fill(~visible, torch.finfo(dtype).min) for scores in both)  # type: ignore[assignment]
    return both[0].log_softmax(dim=-1), both[1].log_softmax(dim=-1)
