"""Folding a fixed query into the key projection gives the scores and gradients of projected keys."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from regard.ops.fixed_query import fold_query, fold_query_macs, project_wide


@pytest.mark.parametrize("biased", [True, False])
def test_scores_are_those_of_projected_keys(biased: bool) -> None:
    dim, heads, width = 10, 3, 21
    made = [torch.randn(dim), torch.randn(width, dim), torch.randn(width), torch.randn(width, dim), torch.randn(width)]
    query, q_weight, q_bias, k_weight, k_bias = leaves = [each.double().requires_grad_() for each in made]
    x = torch.randn(2, 5, dim, dtype=torch.float64)
    biases = (q_bias, k_bias) if biased else (None, None)
    folded, constant = fold_query(query, q_weight, biases[0], k_weight, biases[1], num_heads=heads)
    assert (constant is None) != biased
    scores = project_wide(x, folded, constant).transpose(1, 2)
    expected = torch.zeros(2, heads, 5, dtype=torch.float64)
    for b in range(2):
        for h in range(heads):
            rows = slice(7 * h, 7 * h + 7)
            for i in range(5):
                q, k = q_weight[rows] @ query, k_weight[rows] @ x[b, i]
                if biased:
                    q, k = q + q_bias[rows], k + k_bias[rows]
                expected[b, h, i] = (q @ k) / 7**0.5
    torch.testing.assert_close(scores, expected)
    weight = torch.randn_like(expected)
    used = leaves if biased else [query, q_weight, k_weight]
    found = torch.autograd.grad((scores * weight).sum(), used)
    for ours, wanted in zip(found, torch.autograd.grad((expected * weight).sum(), used), strict=True):
        torch.testing.assert_close(ours, wanted)


def test_scores_are_in_single_precision_under_autocast_and_in_bfloat16() -> None:
    x, weight = torch.randn(1, 3, 8), torch.randn(2, 8)
    exact = project_wide(x, weight, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(project_wide(x, weight, None), exact)
    assert project_wide(x.bfloat16(), weight, None).dtype == torch.float32
    folded, _ = fold_query(*(torch.randn(*s).bfloat16() for s in ((8,), (8, 8), (8,), (8, 8), (8,))), num_heads=2)
    assert folded.dtype == torch.float32


def test_macs_are_those_of_the_counter() -> None:
    with FlopCounterMode(display=False) as counter:
        fold_query(torch.randn(12), torch.randn(12, 12), None, torch.randn(12, 12), None, num_heads=3)
    assert counter.get_total_flops() == 2 * fold_query_macs(12)
