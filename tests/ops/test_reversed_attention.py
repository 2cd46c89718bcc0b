"""Reversed attention against loops over senders and receivers; its sums, its blocks, and the arithmetic of pruning."""

from __future__ import annotations

import math

import pytest
import torch

from regard.ops import reversed_attention as ops
from regard.ops.reversed_attention import (
    best_tokens,
    choose_heads,
    dependency_mask,
    forward_weights,
    kept_part,
    put_tokens,
    reversed_attention,
    take_tokens,
    tokens_kept,
)


def inputs(tokens: int = 7, heads: int = 3, width: int = 5) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(tokens)
    q, k, v = torch.randn(3, 2, heads, tokens, width, dtype=torch.float64).unbind()
    return q, k, v, torch.rand(2, heads, tokens, dtype=torch.float64)


def by_loops(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Sender by sender: its message goes to every parent in the measure in which it chose it."""
    received, mask = torch.zeros_like(v), torch.zeros(2, q.shape[2], q.shape[2], dtype=q.dtype)
    for row in range(2):
        for head in range(q.shape[1]):
            for sender in range(q.shape[2]):
                scores = [float(q[row, head, sender] @ parent) / q.shape[3] ** 0.5 for parent in k[row, head]]
                total = sum(math.exp(score) for score in scores)
                for receiver, score in enumerate(scores):
                    sent = math.exp(score) / total * weights[row, head, sender]
                    received[row, head, receiver] += sent * v[row, head, sender]
                    mask[row, receiver, sender] += sent
    return received, mask


@pytest.mark.parametrize("tokens", [1, 7])
def test_is_what_senders_send(tokens: int) -> None:
    q, k, v, weights = inputs(tokens)
    received, mask = by_loops(q, k, v, weights)
    torch.testing.assert_close(reversed_attention(q, k, v * weights[..., None]), received)
    torch.testing.assert_close(dependency_mask(q, k, weights), mask)


def test_all_that_is_sent_is_received() -> None:
    q, k, _, weights = inputs()
    weights = choose_heads(weights.transpose(1, 2), 0.5) * torch.rand(2, 1, 7, dtype=torch.float64)
    torch.testing.assert_close(dependency_mask(q, k, weights).sum(dim=1), weights.sum(dim=1))
    torch.testing.assert_close(forward_weights(q, k).sum(dim=-1), torch.ones(2, 3, 7, dtype=torch.float64))


@pytest.mark.parametrize("gradients", [True, False])
def test_blocks_of_senders_change_nothing(monkeypatch: pytest.MonkeyPatch, gradients: bool) -> None:
    q, k, v, _ = (x.requires_grad_(gradients) for x in inputs(11))
    whole = reversed_attention(q, k, v)
    monkeypatch.setattr(ops, "AT_ONCE", 4)
    parts = reversed_attention(q, k, v)
    torch.testing.assert_close(parts, whole)
    assert parts.requires_grad is gradients
    if gradients:
        upstream = torch.randn_like(whole)
        ours = torch.autograd.grad(parts, (q, k, v), upstream)
        torch.testing.assert_close(ours, torch.autograd.grad(whole, (q, k, v), upstream))


def test_gradients_are_right() -> None:
    q, k, v, _ = (x.requires_grad_() for x in inputs(5, heads=2, width=3))
    assert torch.autograd.gradcheck(reversed_attention, (q, k, v))


def test_narrow_types_and_autocast() -> None:
    q, k, v, _ = (x.float() for x in inputs(13))
    expected = reversed_attention(q, k, v)
    narrow = reversed_attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert narrow.dtype == torch.bfloat16
    assert float((narrow.float() - expected).norm() / expected.norm()) < 0.02
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(reversed_attention(q, k, v), expected)


def test_cold_choices_are_made_in_float32() -> None:
    logits = torch.randn(2, 7, 3)
    chosen = choose_heads(logits.bfloat16(), 0.1)
    assert chosen.dtype == torch.float32
    torch.testing.assert_close(chosen, (logits.bfloat16().float() / 0.1).softmax(dim=-1).transpose(1, 2))


def test_tokens_of_the_published_pruning() -> None:
    tokens, left = 196, []
    for number in range(1, 5):
        tokens = tokens_kept(tokens, kept_part(number, 0.16))
        left.append(tokens)
    assert left == [164, 132, 100, 69]


@pytest.mark.parametrize(
    ("tokens", "number", "ratio", "left"),
    [
        (100, 1, 0.16, 84),
        # (1 - 0.6) / (1 - 0.4) of 3 and (1 - 0.8) / (1 - 0.64) of 9 come out below 2 and 5 in binary arithmetic
        (3, 3, 0.2, 2),
        (9, 5, 0.16, 5),
        (3, 1, 0.9, 1),
        (13, 1, 0.0, 13),
    ],
)
def test_tokens_are_counted_exactly(tokens: int, number: int, ratio: float, left: int) -> None:
    assert tokens_kept(tokens, kept_part(number, ratio)) == left


def test_tokens_are_taken_and_put_back() -> None:
    scores = torch.tensor([[3.0, 9.0, 1.0, 5.0, 7.0], [2.0, 0.0, 8.0, 6.0, 4.0]])
    chosen = best_tokens(scores, 3)
    assert chosen.tolist() == [[1, 3, 4], [2, 3, 4]]
    x = torch.randn(2, 5, 3)
    taken = take_tokens(x, chosen)
    assert torch.equal(taken[1], x[1, [2, 3, 4]])
    whole = put_tokens(taken, chosen, 5)
    assert torch.equal(take_tokens(whole, chosen), taken)
    assert not whole[0, [0, 2]].any()
