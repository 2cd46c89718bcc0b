"""Landmark attention against the grouped softmax restated with loops: weights, gradients, layouts, dropout."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from regard.measure import contraction_macs
from regard.ops import landmark_attention as module
from regard.ops.landmark_attention import (
    grouped_softmax,
    grouped_softmax_reference,
    landmark_attention,
    landmark_attention_macs,
    landmark_attention_of_layout,
    landmark_bias,
    landmark_weights,
    landmark_weights_of_layout,
)
from regard.ops.landmark_sections import is_landmark, landmarks_of_segments, sections_of_places
from regard.ops.softmax_attention import softmax_attention_reference
from regard.ops.visibility import visible_keys

CAUSAL = torch.ones(23, 23, dtype=torch.bool).tril()[None, None]


def row_by_loops(scores: Tensor, landmarks: list[bool]) -> Tensor:
    """The weights of the last of these tokens: a softmax over its own block and earlier landmarks, one per block."""
    last = len(landmarks) - 1
    ends = [place for place in range(last) if landmarks[place]]
    begin = ends[-1] + 1 if ends else 0
    own = [place for place in range(begin, last + 1) if not landmarks[place]]
    weights = torch.zeros_like(scores)
    shares = scores[own + ends].softmax(dim=0)
    weights[own] = shares[: len(own)]
    for end, begin, share in zip(ends, [0, *(end + 1 for end in ends)], shares[len(own) :], strict=False):
        weights[begin:end] = share * scores[begin:end].softmax(dim=0)
    return weights


def by_loops(scores: Tensor, landmarks: Tensor) -> Tensor:
    weights = torch.zeros_like(scores)
    for b, h, i in itertools.product(*map(range, scores.shape[:3])):
        weights[b, h, i, : i + 1] = row_by_loops(scores[b, h, i, : i + 1], landmarks[b, : i + 1].tolist())
    return weights


def inputs(tokens: int, *, gradients: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.randn(2, 4, tokens, 6, dtype=torch.float64, requires_grad=gradients)
    k = torch.randn(2, 2, tokens, 6, dtype=torch.float64, requires_grad=gradients)
    return q, k, torch.randn(2, 2, tokens, 5, dtype=torch.float64, requires_grad=gradients)


def products(q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("bhid,bhjd->bhij", q, k.repeat_interleave(2, dim=1)) * 6**-0.5


@pytest.mark.parametrize("layout", ["equal", "any", "none"])
def test_both_forms_are_the_grouped_softmax(layout: str) -> None:
    marks = is_landmark(torch.arange(23), 4).expand(2, -1).clone()
    if layout == "any":
        marks = torch.zeros(2, 23, dtype=torch.bool)
        marks[0, [1, 3, 9, 21]] = True
        marks[1, [6, 14]] = True
    if layout == "none":
        marks[:] = False
    scores = 3 * torch.randn(2, 3, 23, 23, dtype=torch.float64)
    expected = by_loops(scores, marks)
    torch.testing.assert_close(grouped_softmax_reference(scores, marks, CAUSAL), expected)
    torch.testing.assert_close(grouped_softmax(scores, marks, CAUSAL), expected)
    torch.testing.assert_close(expected.sum(dim=-1), torch.ones(2, 3, 23, dtype=torch.float64))
    if layout == "none":
        torch.testing.assert_close(expected, scores.masked_fill(~CAUSAL, -torch.inf).softmax(dim=-1))


def test_gradients_of_one_softmax_are_those_of_the_groups() -> None:
    marks = torch.zeros(2, 23, dtype=torch.bool)
    marks[0, [1, 3, 9, 21]] = True
    marks[1, [6, 14]] = True
    scores = torch.randn(2, 3, 23, 23, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 3, 23, 23, dtype=torch.float64)
    forms = (grouped_softmax_reference, grouped_softmax)
    one, other = (torch.autograd.grad(form(scores, marks, CAUSAL), scores, upstream)[0] for form in forms)
    torch.testing.assert_close(one, other)
    assert torch.equal(one.triu(1), torch.zeros_like(one))


def test_large_scores_are_no_trouble() -> None:
    marks = is_landmark(torch.arange(23), 4).expand(2, -1)
    scores = 1e4 * torch.randn(2, 3, 23, 23)
    expected = by_loops(scores.double(), marks).float()
    torch.testing.assert_close(grouped_softmax(scores, marks, CAUSAL), expected, rtol=1e-2, atol=1e-3)
    blind = torch.zeros(1, 1, 23, 23, dtype=torch.bool)
    assert torch.equal(grouped_softmax(scores, marks, blind), torch.zeros_like(scores))


@pytest.mark.parametrize(("tokens", "block_size"), [(1, 1), (2, 1), (17, 3), (41, 4), (263, 7), (263, 50), (29, 40)])
def test_attention_is_the_loops(tokens: int, block_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 16)
    q, k, v = inputs(tokens, gradients=True)
    marks = is_landmark(torch.arange(tokens), block_size).expand(2, -1)
    small = tokens < 100
    scores = products(q, k)
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()[None, None]
    weights = by_loops(scores, marks) if small else grouped_softmax_reference(scores, marks, causal)
    expected = weights @ v.repeat_interleave(2, dim=1)
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (q, k, v), upstream)
    for form in (
        lambda: landmark_attention(q, k, v, block_size=block_size),
        lambda: landmark_attention_of_layout(q, k, v, landmarks=marks),
    ):
        y = form()
        torch.testing.assert_close(y, expected)
        for ours, theirs in zip(torch.autograd.grad(y, (q, k, v), upstream), wanted, strict=True):
            torch.testing.assert_close(ours, theirs)
        with torch.no_grad():
            torch.testing.assert_close(form(), expected)
    torch.testing.assert_close(landmark_weights(q, k, block_size=block_size), weights)
    torch.testing.assert_close(landmark_weights_of_layout(q, k, landmarks=marks), weights)


def test_the_bias_makes_any_softmax_attention_landmark_attention() -> None:
    """Whoever has a fused kernel that takes a bias can use it."""
    q, k, v = inputs(31)
    scores = products(q, k)
    sections = sections_of_places(torch.arange(31)[None], 31, block_size=4)
    bias = landmark_bias(scores, sections, block_size=4)
    expected = landmark_attention(q, k, v, block_size=4)
    torch.testing.assert_close(softmax_attention_reference(q, k, v, bias=bias), expected)
    torch.testing.assert_close(
        torch.nn.functional.scaled_dot_product_attention(
            q, k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1), attn_mask=bias
        ),
        expected,
    )


def test_a_bias_is_added_to_the_scores() -> None:
    q, k, v = inputs(23)
    bias = torch.randn(1, 4, 23, 23, dtype=torch.float64)
    marks = is_landmark(torch.arange(23), 3).expand(2, -1)
    expected = by_loops(products(q, k) + bias, marks) @ v.repeat_interleave(2, dim=1)
    torch.testing.assert_close(landmark_attention(q, k, v, block_size=3, bias=bias), expected)
    torch.testing.assert_close(landmark_attention_of_layout(q, k, v, landmarks=marks, bias=bias), expected)


def test_segments_do_not_see_each_other() -> None:
    q, k, v = inputs(23)
    segments = torch.tensor([[0] * 9 + [1] * 1 + [0] * 13, [3] * 14 + [5] * 9])
    marks = landmarks_of_segments(segments, 3)
    y = landmark_attention_of_layout(q, k, v, landmarks=marks, segments=segments)
    for row, borders in enumerate(([0, 9, 10, 23], [0, 14, 23])):
        for begin, end in itertools.pairwise(borders):
            alone = (x[row : row + 1, :, begin:end] for x in (q, k, v))
            torch.testing.assert_close(y[row, :, begin:end], landmark_attention(*alone, block_size=3)[0])


def test_dropping_gates_spares_the_own_block() -> None:
    q, k, v = inputs(400)
    ones = torch.ones_like(v)
    torch.manual_seed(0)
    marks = is_landmark(torch.arange(400), 9).expand(2, -1)
    kept = landmark_weights(q, k, block_size=9)
    dropped = landmark_weights_of_layout(q, k, landmarks=marks, gate_dropout=0.4)
    number = torch.arange(400) // 10
    own = number[:, None] == number
    torch.testing.assert_close(dropped[..., own], kept[..., own])
    ratio = torch.where(kept > 0, dropped / kept, 0)[..., 390, :390].unflatten(-1, (39, 10))[..., :9]
    # whole blocks are dropped, and what is left is scaled up
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio))
    assert set(ratio.flatten().mul(1e6).round().unique().tolist()) == {0.0, round(1e6 / 0.6)}
    assert (ratio > 0).double().mean() == pytest.approx(0.6, abs=0.1)
    sums = landmark_attention(q, k, ones, block_size=9, gate_dropout=0.4)
    assert sums.mean() == pytest.approx(1.0, abs=0.02)
    assert sums.std() > 0.01
    assert landmark_attention(q, k, ones, block_size=9, attn_dropout=0.4).std() > 0.1


@pytest.mark.parametrize("tokens", [1, 41, 263])
def test_macs_are_those_counted(tokens: int) -> None:
    q, k, v = inputs(tokens)
    counted = contraction_macs(lambda: landmark_attention(q, k, v, block_size=6))
    assert counted == 2 * 4 * landmark_attention_macs(tokens=tokens, block_size=6, head_dim=6, value_dim=5)


def test_bfloat16_is_computed_in_float32() -> None:
    q, k, v = (x.bfloat16() for x in inputs(67))
    y = landmark_attention(q, k, v, block_size=6)
    assert y.dtype == torch.bfloat16
    wide = landmark_attention(q.float(), k.float(), v.float(), block_size=6)
    torch.testing.assert_close(y, wide.bfloat16())


def test_without_ordinary_tokens_there_is_no_block() -> None:
    with pytest.raises(ValueError, match="block_size must be at least 1 ordinary token, got 0"):
        landmark_attention(*inputs(5), block_size=0)


def test_visible_keys_of_one_segment_are_causal() -> None:
    visible = visible_keys(23, 23, causal=True, device=torch.device("cpu"))
    assert visible is not None
    assert torch.equal(visible, CAUSAL)
