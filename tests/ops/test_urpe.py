"""URPE's operator: both forms against loops, negative factors, blocks, recomputation, ill arguments."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import regard.ops.urpe
from regard.measure import contraction_macs, peak_bytes
from regard.ops.softmax_attention import softmax_attention
from regard.ops.toeplitz import toeplitz
from regard.ops.urpe import urpe_attention, urpe_attention_reference, urpe_macs, urpe_weights


def inputs(queries: int, keys: int, *, kv_heads: int = 2) -> dict[str, Tensor]:
    shapes = {"q": (2, 4, queries, 5), "k": (2, kv_heads, keys, 5), "v": (2, kv_heads, keys, 3)}
    shapes |= {"factors": (4, queries + keys - 1), "biases": (4, queries + keys - 1)}
    return {name: torch.randn(shape, dtype=torch.float64).requires_grad_() for name, shape in shapes.items()}


def attend(given: dict[str, Any], **more: Any) -> Tensor:
    """The fast path; an op takes its tensors by position."""
    rest = {name: value for name, value in given.items() if name not in ("q", "k", "v")}
    return urpe_attention(given["q"], given["k"], given["v"], **rest, **more)


def by_loops(given: dict[str, Tensor], *, causal: bool) -> Tensor:
    """The formula entry by entry: no map, no matrix product."""
    q, k, v, factors, biases = (given[name].detach() for name in ("q", "k", "v", "factors", "biases"))
    batch, heads, queries, width = q.shape
    keys, group = k.shape[2], heads // k.shape[1]
    mixed = torch.zeros(batch, heads, queries, v.shape[-1], dtype=q.dtype)
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                place = i + keys - queries
                seen = range(place + 1) if causal else range(keys)
                entry = {j: j - place + keys - 1 for j in seen}
                scores = {
                    j: math.exp(
                        float((q[b, h, i] * k[b, h // group, j]).sum()) / math.sqrt(width) + float(biases[h, t])
                    )
                    for j, t in entry.items()
                }
                total = sum(scores.values())
                for j, t in entry.items():
                    mixed[b, h, i] += scores[j] / total * factors[h, t] * v[b, h // group, j]
    return mixed


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (3, 11), (1, 5), (1, 1)])
def test_both_forms_are_the_formula(monkeypatch: Any, causal: bool, queries: int, keys: int) -> None:
    monkeypatch.setattr(regard.ops.urpe, "BLOCK_ROWS", 3)
    given = inputs(queries, keys)
    expected = by_loops(given, causal=causal)
    torch.testing.assert_close(attend(given, causal=causal), expected)
    visible = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)[None, None] if causal else None
    maps = {name: toeplitz(given[name], queries)[None] for name in ("factors", "biases")}
    q, k, v = given["q"], given["k"], given["v"]
    plain = urpe_attention_reference(q, k, v, factors=maps["factors"], bias=maps["biases"], visible=visible)
    torch.testing.assert_close(plain, expected)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kept", [10**9, 1])
def test_gradients_of_both_forms_agree(monkeypatch: Any, causal: bool, kept: int) -> None:
    monkeypatch.setattr(regard.ops.urpe, "BLOCK_ROWS", 4)
    monkeypatch.setattr(regard.ops.urpe, "KEPT_SCORES", kept)
    given = inputs(11, 11)
    weights = torch.randn(2, 4, 11, 3, dtype=torch.float64)
    visible = torch.ones(11, 11, dtype=torch.bool).tril()[None, None] if causal else None
    fast = attend(given, causal=causal)
    factors, biases = (toeplitz(given[name], 11)[None] for name in ("factors", "biases"))
    slow = urpe_attention_reference(given["q"], given["k"], given["v"], factors=factors, bias=biases, visible=visible)
    leaves = list(given.values())
    for ours, theirs in zip(
        torch.autograd.grad((fast * weights).sum(), leaves),
        torch.autograd.grad((slow * weights).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_maps_of_biases_and_of_visible_keys(monkeypatch: Any) -> None:
    monkeypatch.setattr(regard.ops.urpe, "BLOCK_ROWS", 4)
    given = inputs(9, 9)
    bias, visible = torch.randn(1, 4, 9, 9, dtype=torch.float64), torch.rand(2, 1, 9, 9) < 0.6
    visible[..., 0] = True
    factors, biases = (toeplitz(given[name], 9)[None] for name in ("factors", "biases"))
    q, k, v = given["q"], given["k"], given["v"]
    expected = urpe_attention_reference(q, k, v, factors=factors, bias=biases + bias, visible=visible)
    torch.testing.assert_close(attend(given, bias=bias, visible=visible), expected)
    torch.testing.assert_close(
        attend(given, bias=bias, visible=visible[:, :, :1]),
        attend(given, bias=bias, visible=visible[:, :, :1].expand(-1, -1, 9, -1)),
    )


def test_a_row_that_sees_nothing_is_finite() -> None:
    given = inputs(5, 5)
    visible = torch.zeros(2, 1, 5, 5, dtype=torch.bool)
    y = attend(given, visible=visible)
    assert y.isfinite().all()
    assert (urpe_weights(given["q"], given["k"], factors=None, visible=visible) == 0).all()


def test_without_factors_it_is_softmax_attention() -> None:
    given = inputs(13, 13)
    q, k, v, biases = (given[name] for name in ("q", "k", "v", "biases"))
    expected = softmax_attention(q, k, v, bias=toeplitz(biases, 13)[None])
    torch.testing.assert_close(urpe_attention(q, k, v, factors=None, biases=biases), expected)
    ones = torch.ones_like(biases)
    torch.testing.assert_close(urpe_attention(q, k, v, factors=ones, biases=biases), expected)


def test_negative_factors_turn_the_output_around() -> None:
    given = inputs(6, 6)
    y = attend(given)
    given["factors"] = -given["factors"]
    torch.testing.assert_close(attend(given), -y)


@pytest.mark.parametrize("causal", [False, True])
def test_macs_are_what_is_counted(causal: bool) -> None:
    for queries, keys in ((300, 300), (5, 300)):
        q, k, v = (torch.randn(1, 1, tokens, 8) for tokens in (queries, keys, keys))
        factors = torch.ones(1, queries + keys - 1)

        def call(q: Tensor = q, k: Tensor = k, v: Tensor = v, factors: Tensor = factors) -> Tensor:
            return urpe_attention(q, k, v, factors=factors, causal=causal)

        assert contraction_macs(call) == urpe_macs(queries, keys, head_dim=8, value_dim=8, past_only=causal)


def test_dropout_comes_after_the_factors() -> None:
    given = inputs(40, 40)
    torch.manual_seed(0)
    dropped = attend(given, dropout=0.5)
    assert not torch.equal(dropped, attend(given))
    assert torch.equal(attend(given, dropout=0.0), attend(given))


@pytest.mark.slow
def test_long_inputs_keep_nothing_of_quadratic_size() -> None:
    def peak(tokens: int) -> int:
        leaves = [torch.randn(1, 1, tokens, 16, requires_grad=True) for _ in range(3)]
        factors = torch.ones(1, 2 * tokens - 1, requires_grad=True)
        return peak_bytes(lambda: urpe_attention(*leaves, factors=factors, causal=True).sum().backward(), warmup=1)

    assert peak(8192) < 8192 * 8192 * 4 / 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factors": torch.ones(4, 8)}, r"factors has shape \(4, 8\), it must be .* = \(4, 9\)"),
        ({"biases": torch.ones(3, 9)}, r"biases has shape \(3, 9\), it must be .* = \(4, 9\)"),
        ({"k": torch.ones(2, 3, 5, 5)}, "a multiple of those of k, got 4 and 3"),
        ({"causal": True, "visible": torch.ones(1, 1, 5, 5, dtype=torch.bool)}, "causal=True takes no visible"),
    ],
)
def test_ill_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attend({**inputs(5, 5), **changes})


def test_causal_queries_beyond_the_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="at least as many keys as queries, got 3 and 5"):
        attend(inputs(5, 3), causal=True)
