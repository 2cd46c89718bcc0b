"""Attention by groups of query heads against the plain form with repeated keys."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regard.ops import grouped_attention as module
from regard.ops.grouped_attention import group_weights, grouped_attention, weigh_values
from regard.ops.softmax_attention import softmax_attention_reference, softmax_weights


def inputs(queries: int = 3, keys: int = 11, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    sizes = ((2, 6, queries, 8), (2, 3, keys, 8), (2, 3, keys, 5))
    q, k, v = (torch.randn(size, dtype=torch.float64).to(dtype) for size in sizes)
    return q, k, v


def maps(queries: int, keys: int) -> list[Tensor | None]:
    """For all heads, for every head, for all queries; the first row of one sees nothing."""
    shapes = [(2, 1, queries, keys), (2, 3, queries, keys), (1, 1, 1, keys)]
    made = [torch.rand(shape) < 0.6 for shape in shapes]
    made[0][0, 0, 0] = False
    return [None, *made]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("queries", [1, 3])
def test_weights_and_values_are_softmax_attention(queries: int, number: int) -> None:
    q, k, v = inputs(queries)
    visible = maps(queries, 11)[number]
    by_head = None if visible is None else visible.repeat_interleave(6 // visible.shape[1], dim=1)
    weights = group_weights(q, k, visible=visible)
    assert weights.shape == (2, 3, 2, queries, 11)
    torch.testing.assert_close(weights.flatten(1, 2), softmax_weights(q, k, visible=by_head))
    expected = softmax_attention_reference(q, k, v, visible=by_head)
    torch.testing.assert_close(weigh_values(weights, v), expected)
    sees = torch.ones(()) if by_head is None else by_head.any(dim=-1, keepdim=True)
    found = grouped_attention(q, k, v, visible=visible)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found * sees, expected * sees)


def test_narrow_keys_are_widened_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = inputs(keys=29)
    narrow = k.bfloat16(), v.bfloat16()
    expected = softmax_attention_reference(q.float(), *(x.float() for x in narrow))
    for size in (2048, 7):
        monkeypatch.setattr(module, "WIDENED_KEYS", size)
        mixed = weigh_values(group_weights(q.float(), narrow[0]), narrow[1])
        assert mixed.dtype == torch.float32
        torch.testing.assert_close(mixed, expected)


def test_gradients_are_those_of_the_plain_form() -> None:
    leaves = [x.requires_grad_() for x in inputs()]
    q, k, v = leaves
    found = torch.autograd.grad(weigh_values(group_weights(q, k), v).square().sum(), leaves)
    expected = torch.autograd.grad(softmax_attention_reference(q, k, v).square().sum(), leaves)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
