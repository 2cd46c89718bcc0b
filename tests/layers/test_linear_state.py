"""The state of linear attention against the recurrence, written out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from regard.layers.linear_state import LinearState, empty_state

SLOPES = (0.0, 0.2, 50.0)


def empty(*, normalised: bool, dtype: torch.dtype = torch.float64) -> LinearState:
    like = torch.zeros(1, dtype=dtype)
    return empty_state(2, num_heads=3, head_dim=7, value_dim=5, normalised=normalised, like=like)


def features(tokens: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    q, k = (torch.rand(2, 3, tokens, 7, dtype=dtype) for _ in range(2))
    return q, k, torch.randn(2, 3, tokens, 5, dtype=dtype)


def recurrence(
    q: Tensor, k: Tensor, v: Tensor, *, slopes: Sequence[float] | None, normalised: bool, lengths: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Row by row, head by head, token by token: what each token reads, and the state after the last real one."""
    read = torch.zeros_like(v)
    states = torch.zeros(2, 3, 7, 5 + normalised, dtype=v.dtype)
    for b in range(2):
        for h in range(3):
            factor = 1.0 if slopes is None else math.exp(-slopes[h])
            sums, keys = torch.zeros(7, 5, dtype=v.dtype), torch.zeros(7, dtype=v.dtype)
            for t in range(lengths[b]):
                sums = factor * sums + torch.outer(k[b, h, t], v[b, h, t])
                keys = factor * keys + k[b, h, t]
                read[b, h, t] = q[b, h, t] @ sums
                if normalised:
                    read[b, h, t] /= float(q[b, h, t] @ keys)
            states[b, h] = torch.cat((sums, keys[:, None]), dim=1) if normalised else sums
    return read, states


@pytest.mark.parametrize("slopes", [None, SLOPES], ids=["plain", "decay"])
@pytest.mark.parametrize("normalised", [False, True], ids=["signed", "normalised"])
@pytest.mark.parametrize("chunks", [[1] * 13, [13], [4, 1, 1, 7], [11, 2]])
def test_steps_are_the_recurrence(chunks: list[int], normalised: bool, slopes: Sequence[float] | None) -> None:
    q, k, v = features(sum(chunks))
    expected, final = recurrence(q, k, v, slopes=slopes, normalised=normalised, lengths=(13, 13))
    state, pieces = empty(normalised=normalised), []
    for parts in zip(*(x.split(chunks, dim=2) for x in (q, k, v)), strict=True):
        y, state = state.step(*parts, slopes=slopes, normaliser_eps=0.0 if normalised else None, block_size=3)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=2), expected)
    torch.testing.assert_close(state.kv, final)
    assert state.position.tolist() == [13, 13]


@pytest.mark.parametrize("slopes", [None, SLOPES], ids=["plain", "decay"])
@pytest.mark.parametrize("normalised", [False, True], ids=["signed", "normalised"])
@pytest.mark.parametrize("tokens", [1, 11])
def test_time_stands_still_at_masked_tokens(tokens: int, normalised: bool, slopes: Sequence[float] | None) -> None:
    eps = 0.0 if normalised else None
    before = features(4)
    _, state = empty(normalised=normalised).step(*before, slopes=slopes, normaliser_eps=eps)
    q, k, v = features(tokens)
    lengths = (0, tokens - tokens // 3)
    mask = torch.arange(tokens) < torch.tensor(lengths)[:, None]
    y, after = state.step(q, k, v, slopes=slopes, normaliser_eps=eps, mask=mask, block_size=4)
    together = [torch.cat(pair, dim=2) for pair in zip(before, (q, k, v), strict=True)]
    expected, final = recurrence(
        *together, slopes=slopes, normalised=normalised, lengths=[4 + length for length in lengths]
    )
    torch.testing.assert_close(y[1:, :, : lengths[1]], expected[1:, :, 4 : 4 + lengths[1]])
    torch.testing.assert_close(after.kv, final)
    torch.testing.assert_close(after.kv[0], state.kv[0])
    assert after.position.tolist() == [4, 4 + lengths[1]]


@pytest.mark.parametrize("tokens", [1, 6])
def test_a_step_leaves_the_old_state_as_it_was(tokens: int) -> None:
    with torch.no_grad():
        _, state = empty(normalised=True).step(*features(3), slopes=SLOPES, normaliser_eps=1e-12)
        kept = state.kv.clone()
        state.step(*features(tokens), slopes=SLOPES, normaliser_eps=1e-12)
    assert torch.equal(state.kv, kept)


def test_narrow_types_are_summed_in_float32() -> None:
    state = empty(normalised=False, dtype=torch.bfloat16)
    one = torch.ones(2, 3, 1, 7, dtype=torch.bfloat16), torch.ones(2, 3, 1, 5, dtype=torch.bfloat16)
    for _ in range(300):
        y, state = state.step(one[0], one[0], one[1])
    # bfloat16 cannot count beyond 256
    assert state.kv.dtype == torch.float32
    assert torch.equal(state.kv, torch.full_like(state.kv, 300))
    assert y.dtype == torch.bfloat16


def test_strong_decay_forgets_without_overflow() -> None:
    q, k, v = (x.float() for x in features(4096))
    y, state = empty(normalised=False, dtype=torch.float32).step(q, k, v, slopes=(0.0, 90.0, 1e4))
    alone = (q[:, 1:] * k[:, 1:]).sum(dim=-1, keepdim=True) * v[:, 1:]
    torch.testing.assert_close(y[:, 1:], alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state.kv[:, 1:], k[:, 1:, -1, :, None] * v[:, 1:, -1, None, :])
    assert state.kv.isfinite().all()


def test_gradients_pass_through_steps() -> None:
    q, k, v = (x.requires_grad_() for x in features(9))
    results = []
    for chunks in ([9], [4, 1, 4]):
        state, pieces = empty(normalised=True), []
        for parts in zip(*(x.split(chunks, dim=2) for x in (q, k, v)), strict=True):
            y, state = state.step(*parts, slopes=SLOPES, normaliser_eps=1e-12)
            pieces.append(y)
        results.append(torch.autograd.grad(torch.cat(pieces, dim=2).square().sum(), (q, k, v)))
    for stepped, whole in zip(*results, strict=True):
        torch.testing.assert_close(stepped, whole)


def test_ill_arguments_are_named() -> None:
    like = torch.zeros(1)
    with pytest.raises(ValueError, match="batch must be positive, got 0"):
        empty_state(0, num_heads=3, head_dim=7, value_dim=5, normalised=False, like=like)
    state, (q, k, v) = empty(normalised=False), features(3)
    for tokens in (1, 3):
        at = slice(0, tokens)
        with pytest.raises(ValueError, match=r"state has shape \(2, 3, 7, 5\), it must be \(2, 3, 7, 6\)"):
            state.step(q[:, :, at], k[:, :, at], v[:, :, at], normaliser_eps=1e-12)
        with pytest.raises(ValueError, match=r"state is torch\.float64 on cpu, it must be torch\.float32"):
            state.step(*(x[:, :, at].float() for x in (q, k, v)))
        with pytest.raises(ValueError, match="2 slopes and 3 heads"):
            state.step(q[:, :, at], k[:, :, at], v[:, :, at], slopes=(0.1, 0.2))
