"""Attention in blocks against a map of what each token sees; padding, gradients and cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regard.measure import contraction_macs
from regard.ops.block_local_attention import block_local_attention, block_local_macs, near_blocks

SIZES = pytest.mark.parametrize(
    ("tokens", "block", "back"), [(23, 4, 1), (23, 5, 0), (23, 3, 2), (24, 4, 1), (7, 40, 1), (1, 3, 1), (11, 2, 9)]
)
FORMS = pytest.mark.parametrize("causal", [True, False])


def by_map(q: Tensor, k: Tensor, v: Tensor, block: int, back: int, causal: bool, mask: Tensor | None = None) -> Tensor:
    """Every token and key by itself."""
    tokens = q.shape[2]
    seen = torch.zeros(tokens, tokens, dtype=torch.bool)
    for i in range(tokens):
        for j in range(tokens):
            near = i // block - back <= j // block <= i // block + (0 if causal else back)
            seen[i, j] = near and (j <= i or not causal)
    visible = seen if mask is None else seen & mask[:, None, None]
    scores = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).masked_fill(~visible, -torch.inf)
    return scores.softmax(dim=-1).nan_to_num() @ v


@SIZES
@FORMS
def test_is_the_map(tokens: int, block: int, back: int, causal: bool) -> None:
    q, k, v = (torch.randn(2, 3, tokens, 6, dtype=torch.float64, requires_grad=True) for _ in range(3))
    ours = block_local_attention(q, k, v, block_size=block, look_back=back, causal=causal)
    theirs = by_map(q, k, v, block, back, causal)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    gradients = [torch.autograd.grad((y * weights).sum(), (q, k, v)) for y in (ours, theirs)]
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


@SIZES
@FORMS
def test_padding_is_not_seen(tokens: int, block: int, back: int, causal: bool) -> None:
    q, k, v = (torch.randn(2, 3, tokens, 6, dtype=torch.float64) for _ in range(3))
    mask = torch.arange(tokens) < torch.tensor([tokens, (tokens + 1) // 2])[:, None]
    ours = block_local_attention(q, k, v, block_size=block, look_back=back, causal=causal, mask=mask)
    theirs = by_map(q, k, v, block, back, causal, mask)
    assert bool(ours.isfinite().all())
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1, :, : (tokens + 1) // 2], theirs[1, :, : (tokens + 1) // 2])


def test_keys_before_the_first_are_seen_by_none() -> None:
    seen = near_blocks(torch.tensor([4, 5]), torch.arange(-3, 6), block_size=3, look_back=5, causal=True)
    assert seen.sum(dim=-1).tolist() == [5, 6]


@SIZES
@FORMS
def test_cost_is_what_is_counted(tokens: int, block: int, back: int, causal: bool) -> None:
    q, k, v = (torch.randn(1, 1, tokens, 6) for _ in range(3))
    counted = contraction_macs(lambda: block_local_attention(q, k, v, block_size=block, look_back=back, causal=causal))
    sizes = {"tokens": tokens, "block_size": block, "look_back": back, "head_dim": 6, "value_dim": 6}
    assert block_local_macs(**sizes, causal=causal) == counted


@pytest.mark.parametrize(
    ("block", "back", "message"),
    [(0, 1, r"block_size must be positive, got 0"), (3, -1, r"look_back must not be negative, got -1")],
)
def test_ill_blocks_are_named(block: int, back: int, message: str) -> None:
    x = torch.randn(1, 1, 5, 4)
    with pytest.raises(ValueError, match=message):
        block_local_attention(x, x, x, block_size=block, look_back=back, causal=True)
