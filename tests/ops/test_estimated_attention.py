"""Attention to kept keys: the gathered form against the masked square, and the square against loops."""

from __future__ import annotations

import math

import pytest
import torch

from regard.measure import contraction_macs
from regard.ops.column_choice import Choice
from regard.ops.estimated_attention import (
    chunk_spans,
    gathered_attention,
    gathered_macs,
    kept_attention_reference,
    kept_keys,
)

DOUBLE = torch.float64


def test_square_is_softmax_over_kept_keys_alone() -> None:
    q, k, v = (torch.randn(1, heads, 5, 4, dtype=DOUBLE) for heads in (4, 2, 2))
    kept = torch.rand(1, 4, 5, 5) < 0.5
    kept[0, 1, 2] = False
    found = kept_attention_reference(q, k, v, kept, scale=0.7)
    for h in range(4):
        for i in range(5):
            weights = {j: math.exp(0.7 * float(q[0, h, i] @ k[0, h // 2, j])) for j in range(5) if kept[0, h, i, j]}
            expected = torch.zeros(4, dtype=DOUBLE)
            for j, weight in weights.items():
                expected += weight / sum(weights.values()) * v[0, h // 2, j]
            torch.testing.assert_close(found[0, h, i], expected)


@pytest.mark.parametrize("oversample", [1.0, 1.7])
@pytest.mark.parametrize("jittered", [False, True])
@pytest.mark.parametrize("form", ["causal", "bidirectional", "masked", "query"])
@pytest.mark.parametrize("tokens", [1, 7, 149])
def test_gathered_form_is_the_masked_square(tokens: int, form: str, jittered: bool, oversample: float) -> None:
    causal = form == "causal"
    pooling = "query" if form == "query" else "causal_batch"
    choice = Choice(heads=4, columns=12, kept=5, pooling=pooling, oversample=oversample)
    leaves = [torch.randn(2, heads, tokens, 6, dtype=DOUBLE).requires_grad_() for heads in (4, 2, 2)]
    estimate = torch.randn(2, 4, tokens, 12, dtype=DOUBLE).softmax(dim=-1)
    jitter = 0.75 * (2 * torch.rand(tokens) - 1) if jittered else None
    real, shortest = None, 1 if causal else tokens
    lengths = (torch.arange(1, tokens + 1) if causal else torch.full((tokens,), tokens))[None]
    if form == "masked":
        counts, shortest = torch.tensor([[tokens], [tokens // 2]]), 1
        lengths, real = counts.expand(-1, tokens), torch.arange(tokens) < counts
    kept = kept_keys(estimate, lengths, tokens, choice, real=real, jitter=jitter)
    weight = torch.randn(2, 4, tokens, 6, dtype=DOUBLE)
    gathered = gathered_attention(
        *leaves,
        estimate,
        lengths,
        choice,
        scale=0.5,
        spans=chunk_spans(tokens, shortest, tokens, causal=causal),
        real=real,
        jitter=jitter,
    )
    square = kept_attention_reference(*leaves, kept, scale=0.5)
    torch.testing.assert_close(gathered, square)
    for ours, expected in zip(
        *(torch.autograd.grad((y * weight).sum(), leaves) for y in (gathered, square)), strict=True
    ):
        torch.testing.assert_close(ours, expected)


def test_gathered_macs_are_what_is_counted() -> None:
    choice, spans = Choice(heads=3, columns=8, kept=4), chunk_spans(149, 1, 149, causal=True)
    q, k, v = (torch.randn(2, 3, 149, 5) for _ in range(3))
    estimate, lengths = torch.rand(2, 3, 149, 8), torch.arange(1, 150)[None]
    counted = contraction_macs(lambda: gathered_attention(q, k, v, estimate, lengths, choice, scale=1.0, spans=spans))
    assert counted == 2 * gathered_macs(choice, spans, queries=149, head_dim=5, value_dim=5)


def test_listed_keys_do_not_grow_with_the_length() -> None:
    choice = Choice(heads=8, columns=128, kept=64)
    most = [choice.most_keys(length, length + 63) for length in (1024, 4096, 16_384)]
    assert max(most) <= 1.3 * 8 * 64


@pytest.mark.parametrize("causal", [False, True])
def test_bfloat16_and_extreme_scores_stay_finite(causal: bool) -> None:
    choice = Choice(heads=2, columns=8, kept=3)
    q, k, v = (1e3 * torch.randn(1, 2, 71, 4).bfloat16() for _ in range(3))
    lengths = (torch.arange(1, 72) if causal else torch.full((71,), 71))[None]
    spans = chunk_spans(71, 1 if causal else 71, 71, causal=causal)
    y = gathered_attention(q, k, v, torch.rand(1, 2, 71, 8), lengths, choice, scale=1.0, spans=spans)
    assert y.dtype == torch.float32
    assert y.isfinite().all()


def test_pooling_over_queries_cannot_be_gathered() -> None:
    x = torch.randn(1, 2, 3, 4)
    choice = Choice(heads=2, columns=4, kept=1, pooling="head")
    with pytest.raises(ValueError, match="budget per query, got the pooling 'head'"):
        gathered_attention(x, x, x, x, torch.tensor([[3, 3, 3]]), choice, scale=1.0, spans=((3, 3),))
