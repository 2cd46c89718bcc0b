"""Attention in a sliding window: the folded form and its reference against the formula, token by token."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from regard.measure import contraction_macs, growth_exponent
from regard.ops.softmax_attention import softmax_attention_reference
from regard.ops.window_attention import (
    window_attention,
    window_attention_macs,
    window_attention_reference,
    window_reach,
    window_visible,
)


def by_loops(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window_size: int,
    causal: bool,
    mask: Tensor | None = None,
    segments: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The formula once more: no map, no matrix product; 0 where nothing is seen."""
    q, k, v = q.detach(), k.detach(), v.detach()
    batch, heads, queries, width = q.shape
    keys, group = k.shape[2], heads // k.shape[1]
    mixed = torch.zeros(batch, heads, queries, v.shape[-1], dtype=q.dtype)
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                place = i + keys - queries
                scores = {}
                for j in range(keys):
                    near = 0 <= place - j < window_size if causal else abs(place - j) <= window_size // 2
                    if not near:
                        continue
                    real = mask is None or bool(mask[b, j])
                    between = [] if segments is None else segments[b, min(i, j) : max(i, j) + 1].tolist()
                    if real and len(set(between)) <= 1:
                        extra = 0.0 if bias is None else float(bias[b % len(bias), h, i, j])
                        scores[j] = float((q[b, h, i] * k[b, h // group, j]).sum()) / math.sqrt(width) + extra
                total = sum(math.exp(score) for score in scores.values())
                for j, score in scores.items():
                    mixed[b, h, i] += math.exp(score) / total * v[b, h // group, j]
    return mixed


def inputs(queries: int, keys: int | None = None, *, batch: int = 2, kv_heads: int = 3) -> tuple[Tensor, ...]:
    keys = queries if keys is None else keys
    shapes = ((batch, 3, queries, 7), (batch, kv_heads, keys, 7), (batch, kv_heads, keys, 5))
    return tuple(torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes)


def options(keys: int, kind: str) -> dict[str, Any]:
    """Optional arguments for two rows of `keys` tokens."""
    made: dict[str, Any] = {
        "mask": torch.rand(2, keys) < 0.7,
        "segments": (torch.rand(2, keys) < 0.1).cumsum(dim=1) % 2,
        "bias": torch.randn(2, 3, keys, keys, dtype=torch.float64),
        "one bias": torch.randn(1, 3, keys, keys, dtype=torch.float64),
    }
    wanted = {"all": ("mask", "segments", "bias"), "nothing": ()}.get(kind, (kind,))
    return {name.removeprefix("one "): made[name] for name in wanted}


KINDS = ("nothing", "mask", "segments", "bias", "one bias", "all")


def agree_where_seen(actual: Tensor, expected: Tensor) -> None:
    """Rows that see nothing are undefined in the fast form, but finite."""
    assert actual.isfinite().all()
    seen = (expected != 0).any(dim=-1, keepdim=True)
    torch.testing.assert_close(torch.where(seen, actual, 0), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both sides"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("tokens", "window_size"), [(1, 4), (17, 6), (67, 3), (7, 400)])
def test_both_forms_are_the_formula(tokens: int, window_size: int, kind: str, causal: bool) -> None:
    q, k, v = inputs(tokens)
    given = {"window_size": window_size, "causal": causal, **options(tokens, kind)}
    expected = by_loops(q, k, v, **given)
    torch.testing.assert_close(window_attention_reference(q, k, v, **given), expected, rtol=1e-10, atol=1e-12)
    agree_where_seen(window_attention(q, k, v, **given), expected)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both sides"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("tokens", "window_size"), [(131, 64), (257, 97), (128, 64), (129, 1)])
def test_blocks_have_the_references_values_and_gradients(
    tokens: int, window_size: int, kind: str, causal: bool
) -> None:
    q, k, v = inputs(tokens, kv_heads=1)
    given = {"window_size": window_size, "causal": causal, **options(tokens, kind)}
    visible = window_visible(
        tokens,
        tokens,
        window_size=window_size,
        causal=causal,
        mask=given.get("mask"),
        segments=given.get("segments"),
        device=q.device,
    )
    # rows that see nothing are undefined in the fast form
    weight = torch.randn(2, 3, tokens, 5, dtype=torch.float64) * visible.any(dim=-1, keepdim=True)
    leaves = [q, k, v]
    if "bias" in given:
        leaves.append(given["bias"].requires_grad_())
    results = []
    for form in (window_attention, window_attention_reference):
        y = form(q, k, v, **given) * (weight != 0)
        results.append([y, *torch.autograd.grad((y * weight).sum(), leaves)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("queries", "keys"), [(1, 9), (7, 12), (67, 70), (131, 307), (3, 200)])
@pytest.mark.parametrize("window_size", [1, 5, 80])
def test_fewer_queries_are_the_last_ones(queries: int, keys: int, window_size: int) -> None:
    q, k, v = inputs(keys)
    mask = torch.rand(2, keys) < 0.7
    for causal in (True, False):
        given = {"window_size": window_size, "causal": causal, "mask": mask}
        whole = window_attention_reference(q, k, v, **given)[:, :, keys - queries :]
        agree_where_seen(window_attention(q[:, :, keys - queries :], k, v, **given), whole)


def test_a_wide_window_is_full_attention() -> None:
    q, k, v = inputs(37)
    past = torch.ones(37, 37, dtype=torch.bool).tril()
    full = softmax_attention_reference(q, k, v)
    causal = softmax_attention_reference(q, k, v, visible=past[None, None])
    torch.testing.assert_close(window_attention(q, k, v, window_size=74, causal=False), full)
    torch.testing.assert_close(window_attention(q, k, v, window_size=37, causal=True), causal)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(window_attention(q, k, v, window_size=36, causal=True), causal)


def test_derivatives_by_differences() -> None:
    q, k, v = inputs(67, batch=1)
    bias = torch.randn(1, 3, 67, 67, dtype=torch.float64).requires_grad_()
    for causal in (True, False):
        assert torch.autograd.gradcheck(
            lambda *x, causal=causal: window_attention(*x[:3], window_size=4, causal=causal, bias=x[3]),
            (q, k, v, bias),
            fast_mode=True,
        )


def test_keys_outside_the_window_have_no_influence() -> None:
    q, k, v = (x.detach() for x in inputs(150, batch=1))
    before = window_attention(q, k, v, window_size=10, causal=True)
    k[:, :, 80], v[:, :, 80] = 1e4, 1e4
    changed = (window_attention(q, k, v, window_size=10, causal=True) - before).abs().amax(dim=(0, 1, 3)) > 0
    assert changed.nonzero().flatten().tolist() == list(range(80, 90))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both sides"])
def test_bfloat16_stays_within_two_percent(causal: bool) -> None:
    q, k, v = (torch.randn(1, 2, 499, 32).bfloat16() for _ in range(3))
    given = {"window_size": 64, "causal": causal}
    exact = window_attention_reference(q.double(), k.double(), v.double(), **given)
    for form in (window_attention, window_attention_reference):
        y = form(q, k, v, **given)
        assert y.dtype == torch.bfloat16
        assert (y.double() - exact).norm() / exact.norm() < 0.02


def test_huge_scores_stay_finite() -> None:
    q, k, v = (x.detach().float() for x in inputs(131))
    y = window_attention(1e4 * q, 1e4 * k, v, window_size=8, causal=True)
    exact = window_attention_reference(1e4 * q.double(), 1e4 * k.double(), v.double(), window_size=8, causal=True)
    torch.testing.assert_close(y, exact.float(), rtol=1e-3, atol=1e-3)


def test_contiguity_does_not_matter() -> None:
    q, k, v = (torch.randn(2, 131, 3, 8).transpose(1, 2) for _ in range(3))
    expected = window_attention(q.contiguous(), k.contiguous(), v.contiguous(), window_size=9, causal=True)
    torch.testing.assert_close(window_attention(q, k, v, window_size=9, causal=True), expected)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both sides"])
@pytest.mark.parametrize(("tokens", "window_size"), [(1, 64), (13, 5), (150, 64), (500, 131), (70, 300)])
def test_macs_are_those_of_the_counter(tokens: int, window_size: int, causal: bool) -> None:
    q, k = torch.randn(2, 3, tokens, 7), torch.randn(2, 3, tokens, 7)
    v = torch.randn(2, 3, tokens, 7)
    counted = contraction_macs(lambda: window_attention(q, k, v, window_size=window_size, causal=causal))
    claimed = window_attention_macs(queries=tokens, head_dim=7, value_dim=7, window_size=window_size, causal=causal)
    assert counted == 2 * 3 * claimed


def test_cost_is_linear_in_tokens() -> None:
    lengths = [1024, 2048, 4096, 65_536]
    for causal in (True, False):
        macs = [
            window_attention_macs(queries=tokens, head_dim=8, value_dim=8, window_size=64, causal=causal)
            for tokens in lengths
        ]
        assert growth_exponent(lengths, macs) == pytest.approx(1)


def test_reach() -> None:
    assert window_reach(1, causal=True) == (0, 0)
    assert window_reach(64, causal=True) == (63, 0)
    assert window_reach(64, causal=False) == (32, 32)
    assert window_reach(5, causal=False) == (2, 2)


def test_ill_arguments_are_named() -> None:
    q, k, v = (x.detach() for x in inputs(11))
    given = {"window_size": 3, "causal": True}
    with pytest.raises(ValueError, match="window_size must be positive, got 0"):
        window_attention(q, k, v, window_size=0, causal=True)
    with pytest.raises(ValueError, match="q is 7 wide and k is 5"):
        window_attention(q, k[..., :5], v, **given)
    with pytest.raises(ValueError, match=r"shapes .*\(2, 3, 9, 5\)"):
        window_attention(q, k, v[:, :, :9], **given)
    with pytest.raises(ValueError, match="11 queries and 9 keys"):
        window_attention(q, k[:, :, :9], v[:, :, :9], **given)
    with pytest.raises(ValueError, match="3 query heads and 2 key heads"):
        window_attention(q, k[:, :2], v[:, :2], **given)
    with pytest.raises(ValueError, match=r"mask has shape \(2, 12\), it must be \(2, 11\)"):
        window_attention(q, k, v, mask=torch.ones(2, 12, dtype=torch.bool), **given)
    with pytest.raises(ValueError, match=r"segments has shape \(2, 11\), with 9 queries and 11 keys"):
        window_attention(q[:, :, :9], k, v, segments=torch.zeros(2, 11, dtype=torch.int64), **given)
    with pytest.raises(ValueError, match=r"bias has shape \(2, 3, 11, 9\), it must be \(2, 3, 11, 11\)"):
        window_attention(q, k, v, bias=torch.zeros(2, 3, 11, 9), **given)
