"""Attention of one narrow head against a loop over queries, on both sides of the switch to the fused kernel."""

from __future__ import annotations

import math

import pytest
import torch

from regard.ops.single_head_attention import FEW, single_head_attention, single_head_weights


def by_loop(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Query by query, with exponentials written out."""
    y = torch.empty(*q.shape[:2], v.shape[2], dtype=v.dtype)
    for row in range(q.shape[0]):
        for query in range(q.shape[1]):
            scores = (k[row] * q[row, query]).sum(dim=-1) / math.sqrt(q.shape[2])
            weights = (scores if bias is None else scores + bias[query]).exp()
            y[row, query] = (weights[:, None] * v[row]).sum(dim=0) / weights.sum()
    return y


def tensors(positions: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k = torch.randn(2, 3, positions, 5, dtype=torch.float64)
    return q, k, torch.randn(3, positions, 7, dtype=torch.float64)


@pytest.mark.parametrize("positions", [1, 13, FEW + 1])
@pytest.mark.parametrize("biased", [False, True])
def test_is_a_loop_over_queries(positions: int, biased: bool) -> None:
    q, k, v = tensors(positions)
    bias = torch.randn(positions, positions, dtype=torch.float64) if biased else None
    torch.testing.assert_close(single_head_attention(q, k, v, bias=bias), by_loop(q, k, v, bias))
    weights = single_head_weights(q, k, bias=bias)
    torch.testing.assert_close(weights @ v, by_loop(q, k, v, bias))
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, positions, dtype=torch.float64))


def test_gradients_are_those_of_the_loop() -> None:
    leaves = [tensor.requires_grad_() for tensor in (*tensors(11), torch.randn(11, 11, dtype=torch.float64))]
    q, k, v, bias = leaves
    weights = torch.randn(3, 11, 7, dtype=torch.float64)
    ours = torch.autograd.grad((single_head_attention(q, k, v, bias=bias) * weights).sum(), leaves)
    torch.testing.assert_close(ours, torch.autograd.grad((by_loop(q, k, v, bias) * weights).sum(), leaves))


def test_stays_in_its_type_under_autocast() -> None:
    q, k, v = (tensor.float() for tensor in tensors(13))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = single_head_attention(q, k, v)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, single_head_attention(q, k, v))
    low = single_head_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), bias=torch.zeros(13, 13))
    assert low.dtype == torch.bfloat16
