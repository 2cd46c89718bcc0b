"""Linear attention in all its forms against the formula, token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from regard.ops import precision
from regard.ops.linear_attention import (
    linear_attention,
    linear_attention_macs,
    linear_attention_recurrent,
    linear_attention_reference,
    linear_attention_step,
    linear_attention_weights,
    linear_attention_with_state,
)

SLOPES = (0.0, 0.3, 40.0)
EPS = 1e-12


def by_loops(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    slopes: Sequence[float] | None,
    normalised: bool,
    causal: bool = True,
    segments: Tensor | None = None,
) -> Tensor:
    """The formula once more, without a matrix product."""
    q, k, v = q.detach(), k.detach(), v.detach()
    batch, heads, tokens, _ = q.shape
    mixed = torch.zeros(batch, heads, tokens, v.shape[-1], dtype=q.dtype)
    for b in range(batch):
        for h in range(heads):
            for i in range(tokens):
                total = 0.0
                for j in range(tokens):
                    between = [] if segments is None else segments[b, min(i, j) : max(i, j) + 1].tolist()
                    if (causal and j > i) or len(set(between)) > 1:
                        continue
                    weight = float((q[b, h, i] * k[b, h, j]).sum())
                    weight *= math.exp(-(0.0 if slopes is None else slopes[h]) * (i - j))
                    mixed[b, h, i] += weight * v[b, h, j]
                    total += weight
                if normalised:
                    mixed[b, h, i] /= total
    return mixed


def features(tokens: int, *, batch: int = 2, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    q, k = (torch.rand(batch, 3, tokens, 7, dtype=dtype).requires_grad_() for _ in range(2))
    return q, k, torch.randn(batch, 3, tokens, 5, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("slopes", [None, SLOPES], ids=["plain", "decay"])
@pytest.mark.parametrize("normalised", [False, True], ids=["signed", "normalised"])
@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
def test_all_forms_are_the_formula(slopes: Sequence[float] | None, normalised: bool, packed: bool) -> None:
    q, k, v = features(11)
    segments = torch.tensor([[0, 0, 1, 1, 1, 0, 2, 2, 2, 2, 2], [4] * 7 + [3] * 4]) if packed else None
    eps = 0.0 if normalised else None
    expected = by_loops(q, k, v, slopes=slopes, normalised=normalised, segments=segments)
    options = {"slopes": slopes, "normaliser_eps": eps, "segments": segments}
    torch.testing.assert_close(linear_attention_reference(q, k, v, **options), expected)
    for block_size in (1, 3, 4, 11, 64):
        torch.testing.assert_close(linear_attention(q, k, v, **options, block_size=block_size), expected)
    if not packed:
        recurrent, _ = linear_attention_recurrent(q, k, v, slopes=slopes, normaliser_eps=eps)
        torch.testing.assert_close(recurrent, expected)


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
def test_bidirectional_forms_are_the_formula(packed: bool) -> None:
    q, k, v = features(11)
    segments = torch.tensor([[0, 0, 1, 1, 1, 0, 2, 2, 2, 2, 2], [4] * 7 + [3] * 4]) if packed else None
    expected = by_loops(q, k, v, slopes=None, normalised=True, causal=False, segments=segments)
    options = {"causal": False, "normaliser_eps": 0.0, "segments": segments}
    torch.testing.assert_close(linear_attention_reference(q, k, v, **options), expected)
    torch.testing.assert_close(linear_attention(q, k, v, **options, block_size=3), expected)


@pytest.mark.parametrize("slopes", [None, SLOPES], ids=["plain", "decay"])
@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 131, 513])
def test_block_form_has_the_references_values_and_gradients(tokens: int, slopes: Sequence[float] | None) -> None:
    q, k, v = features(tokens, batch=1)
    weight = torch.randn(1, 3, tokens, 5, dtype=torch.float64)
    results = []
    for form in (linear_attention, linear_attention_reference):
        y = form(q, k, v, slopes=slopes)
        results.append([y, *torch.autograd.grad((y * weight).sum(), (q, k, v))])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_packed_gradients_stop_at_borders() -> None:
    q, k, v = features(13, batch=1)
    segments = torch.tensor([[0] * 6 + [1] * 7])
    for causal in (True, False):
        y = linear_attention(q, k, v, causal=causal, normaliser_eps=EPS, segments=segments, block_size=4)
        of_first = torch.autograd.grad(y[:, :, :6].square().sum(), (q, k, v))
        assert all(gradient[:, :, 6:].abs().max() == 0 for gradient in of_first)
        assert all(gradient[:, :, :6].abs().max() > 0 for gradient in of_first)


def test_masked_keys_have_no_influence_without_causality() -> None:
    q, k, v = features(11)
    mask = torch.arange(11) < torch.tensor([[4], [11]])
    y = linear_attention(q, k, v, causal=False, normaliser_eps=EPS, mask=mask)
    alone = linear_attention(q[:1], k[:1, :, :4], v[:1, :, :4], causal=False, normaliser_eps=EPS)
    torch.testing.assert_close(y[:1], alone)
    nothing = linear_attention(q, k, v, causal=False, normaliser_eps=EPS, mask=torch.zeros_like(mask))
    assert nothing.abs().max() == 0


@pytest.mark.parametrize("slopes", [None, SLOPES], ids=["plain", "decay"])
@pytest.mark.parametrize("eps", [None, EPS], ids=["signed", "normalised"])
def test_state_stands_still_at_padding(slopes: Sequence[float] | None, eps: float | None) -> None:
    q, k, v = features(17)
    lengths = (5, 17)
    mask = torch.arange(13) < torch.tensor(lengths)[:, None] - 4
    _, state = linear_attention_with_state(q[:, :, :4], k[:, :, :4], v[:, :, :4], slopes=slopes, normaliser_eps=eps)
    y, after = linear_attention_with_state(
        q[:, :, 4:],
        k[:, :, 4:],
        v[:, :, 4:],
        state,
        slopes=slopes,
        normaliser_eps=eps,
        mask=mask,
        block_size=5,
    )
    for row, length in enumerate(lengths):
        at = (slice(row, row + 1), slice(None), slice(length))
        whole, final = linear_attention_recurrent(q[at], k[at], v[at], slopes=slopes, normaliser_eps=eps)
        torch.testing.assert_close(y[row : row + 1, :, : length - 4], whole[:, :, 4:])
        torch.testing.assert_close(after[row : row + 1], final)


def test_step_leaves_the_state_of_masked_rows() -> None:
    q, k, v = features(1)
    state = torch.rand(2, 3, 7, 5, dtype=torch.float64)
    _, after = linear_attention_step(q, k, v, state, slopes=SLOPES, mask=torch.tensor([[False], [True]]))
    assert torch.equal(after[0], state[0])
    expected = state[1, 1] * math.exp(-SLOPES[1]) + k[1, 1].T @ v[1, 1]
    torch.testing.assert_close(after[1, 1], expected)


def test_strong_decay_over_long_sequences_stays_finite() -> None:
    q, k, v = (torch.randn(1, 2, 4096, 8) for _ in range(3))
    y = linear_attention(q, k, v, slopes=(0.5, 80.0))
    exact = linear_attention_reference(q.double(), k.double(), v.double(), slopes=(0.5, 80.0))
    assert (y.double() - exact).norm() / exact.norm() < 1e-5


@pytest.mark.parametrize("native", [True, False], ids=["native", "emulated"])
@pytest.mark.parametrize("slopes", [None, (0.004, 0.5)], ids=["plain", "decay"])
def test_bfloat16_stays_within_two_percent(
    slopes: Sequence[float] | None, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "NATIVE_BFLOAT16", native)
    q, k, v = (torch.randn(1, 2, 1999, 32).bfloat16() for _ in range(3))
    exact = linear_attention_reference(q.double(), k.double(), v.double(), slopes=slopes)
    y, state = linear_attention_with_state(q, k, v, slopes=slopes)
    assert y.dtype == torch.bfloat16
    assert state.dtype == torch.float32
    assert (y.double() - exact).norm() / exact.norm() < 0.02


def test_half_precision_sums_do_not_overflow() -> None:
    q, k, v = (torch.full((1, 1, 300, 16), 4.0, dtype=torch.float16) for _ in range(3))
    y = linear_attention(q, k, v, normaliser_eps=EPS)
    torch.testing.assert_close(y, torch.full_like(y, 4.0))


def test_contiguity_does_not_matter() -> None:
    q, k, v = (torch.randn(2, 67, 3, 8).transpose(1, 2) for _ in range(3))
    expected = linear_attention_reference(q, k, v, slopes=SLOPES)
    torch.testing.assert_close(linear_attention(q, k, v, slopes=SLOPES), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("normalised", [True, False])
def test_macs_are_those_of_the_counter(causal: bool, normalised: bool) -> None:
    q, k = torch.randn(2, 3, 150, 7), torch.randn(2, 3, 150, 7)
    v = torch.randn(2, 3, 150, 5)
    with FlopCounterMode(display=False) as counter:
        linear_attention(q, k, v, causal=causal, normaliser_eps=EPS if normalised else None)
    counted = linear_attention_macs(
        queries=150, keys=150, head_dim=7, value_dim=5, causal=causal, normalised=normalised
    )
    assert counter.get_total_flops() == 2 * 2 * 3 * counted


def test_fewer_queries_are_the_last_ones() -> None:
    q, k, v = features(11)
    whole = linear_attention_reference(q, k, v, slopes=SLOPES)
    torch.testing.assert_close(linear_attention_reference(q[:, :, 7:], k, v, slopes=SLOPES), whole[:, :, 7:])
    with pytest.raises(ValueError, match="7 keys, 11 queries"):
        linear_attention_weights(q, k[:, :, :7])


def test_ill_arguments_are_named() -> None:
    q, k, v = (x.detach() for x in features(11))
    with pytest.raises(ValueError, match="q is 7 wide and k is 5"):
        linear_attention(q, k[..., :5], v)
    with pytest.raises(ValueError, match=r"shapes .*\(2, 3, 9, 5\)"):
        linear_attention(q, k, v[:, :, :9])
    with pytest.raises(ValueError, match="9 queries and 11 keys"):
        linear_attention(q[:, :, :9], k, v)
    with pytest.raises(ValueError, match="2 slopes and 3 heads"):
        linear_attention(q, k, v, slopes=(0.1, 0.2))
    with pytest.raises(ValueError, match=r"at least 0 .*got -0\.1"):
        linear_attention(q, k, v, slopes=(0.1, -0.1, 0.2))
    with pytest.raises(ValueError, match="slopes need causal=True"):
        linear_attention(q, k, v, slopes=SLOPES, causal=False)
    with pytest.raises(ValueError, match="block_size must be positive, got 0"):
        linear_attention(q, k, v, block_size=0)
    with pytest.raises(ValueError, match="one floating-point dtype"):
        linear_attention(q, k.float(), v)
    with pytest.raises(ValueError, match=r"state has shape \(2, 3, 7, 5\), it must be \(2, 3, 7, 6\)"):
        linear_attention_with_state(q, k, v, q.new_zeros(2, 3, 7, 5), normaliser_eps=EPS)
    with pytest.raises(ValueError, match=r"state is torch.float32"):
        linear_attention_with_state(q, k, v, torch.zeros(2, 3, 7, 5))
    with pytest.raises(ValueError, match="takes 1 token, got 11"):
        linear_attention_step(q, k, v, q.new_zeros(2, 3, 7, 5))
