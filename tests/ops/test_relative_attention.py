"""Relative attention: both forms against loops, blocks, recomputation, ill arguments."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import regard.ops.relative_attention
from regard.measure import contraction_macs
from regard.ops.relative_attention import relative_attention, relative_attention_reference, relative_macs


def inputs(queries: int, keys: int, *, kv_heads: int = 2) -> dict[str, Any]:
    shapes = {"q": (2, 4, queries, 5), "k": (2, kv_heads, keys, 5), "v": (2, kv_heads, keys, 3)}
    shapes |= {"embeddings": (queries + keys - 1, 4, 5), "offset_bias": (queries + keys - 1, 4), "content_bias": (4, 5)}
    return {name: torch.randn(shape, dtype=torch.float64).requires_grad_() for name, shape in shapes.items()}


def attend(form: Any, given: dict[str, Any], **more: Any) -> Tensor:
    """An op takes its tensors by position."""
    rest = {name: value for name, value in given.items() if name not in ("q", "k", "v")}
    return form(given["q"], given["k"], given["v"], **rest, **more)


def by_loops(given: dict[str, Tensor], *, causal: bool) -> Tensor:
    """The formula entry by entry: no map, no matrix product."""
    q, k, v, e, b, u = (x.detach() for x in given.values())
    batch, heads, queries, width = q.shape
    keys, group = k.shape[2], heads // k.shape[1]
    mixed = torch.zeros(batch, heads, queries, v.shape[-1], dtype=q.dtype)
    for row in range(batch):
        for h in range(heads):
            for i in range(queries):
                place = i + keys - queries
                scores = []
                for j in range(place + 1 if causal else keys):
                    t = j - place + keys - 1
                    score = (q[row, h, i] + u[h]) @ k[row, h // group, j] + q[row, h, i] @ e[t, h] + b[t, h]
                    scores.append(math.exp(float(score) / math.sqrt(width)))
                for j, score in enumerate(scores):
                    mixed[row, h, i] += score / sum(scores) * v[row, h // group, j]
    return mixed


def past(queries: int, keys: int) -> Tensor:
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)[None, None]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (3, 11), (1, 5), (1, 1), (2, 2)])
def test_both_forms_are_the_formula(monkeypatch: Any, causal: bool, queries: int, keys: int) -> None:
    monkeypatch.setattr(regard.ops.relative_attention, "BLOCK_ROWS", 3)
    given = inputs(queries, keys)
    expected = by_loops(given, causal=causal)
    torch.testing.assert_close(attend(relative_attention, given, causal=causal), expected)
    visible = past(queries, keys) if causal else None
    torch.testing.assert_close(attend(relative_attention_reference, given, visible=visible), expected)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kept", [10**9, 1])
def test_gradients_of_both_forms_agree(monkeypatch: Any, causal: bool, kept: int) -> None:
    monkeypatch.setattr(regard.ops.relative_attention, "BLOCK_ROWS", 4)
    monkeypatch.setattr(regard.ops.relative_attention, "KEPT_SCORES", kept)
    given, weights = inputs(7, 11), torch.randn(2, 4, 7, 3, dtype=torch.float64)
    fast = attend(relative_attention, given, causal=causal)
    slow = attend(relative_attention_reference, given, visible=past(7, 11) if causal else None)
    leaves = list(given.values())
    for ours, theirs in zip(
        torch.autograd.grad((fast * weights).sum(), leaves),
        torch.autograd.grad((slow * weights).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_maps_of_biases_and_of_visible_keys(monkeypatch: Any) -> None:
    monkeypatch.setattr(regard.ops.relative_attention, "BLOCK_ROWS", 4)
    given, bias = inputs(9, 9), torch.randn(1, 4, 9, 9, dtype=torch.float64)
    visible = torch.rand(2, 1, 9, 9) < 0.6
    visible[..., 0] = True
    expected = attend(relative_attention_reference, given, bias=bias, visible=visible)
    torch.testing.assert_close(attend(relative_attention, given, bias=bias, visible=visible), expected)
    nothing = torch.zeros(2, 1, 1, 9, dtype=torch.bool)
    assert attend(relative_attention, given, visible=nothing).isfinite().all()
    assert (attend(relative_attention_reference, given, visible=nothing) == 0).all()


@pytest.mark.parametrize("causal", [False, True])
def test_macs_are_what_is_counted(causal: bool) -> None:
    for queries, keys in ((300, 300), (5, 300), (1, 7)):
        given = {name: value.detach().float()[:1] for name, value in inputs(queries, keys).items() if name in "qkv"}
        given |= {
            "embeddings": torch.zeros(queries + keys - 1, 4, 5),
            "offset_bias": torch.zeros(queries + keys - 1, 4),
        }
        given |= {"content_bias": torch.zeros(4, 5)}
        counted = contraction_macs(lambda given=given: attend(relative_attention, given, causal=causal))  # type: ignore[misc]
        assert counted == 4 * relative_macs(queries, keys, head_dim=5, value_dim=3, past_only=causal)


def test_dropout_changes_the_result() -> None:
    given = inputs(20, 20)
    plain = attend(relative_attention, given)
    assert torch.equal(attend(relative_attention, given, dropout=0.0), plain)
    assert not torch.equal(attend(relative_attention, given, dropout=0.5), plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": torch.ones(8, 4, 5)}, r"embeddings has shape \(8, 4, 5\), it must be \(9, 4, 5\)"),
        ({"offset_bias": torch.ones(9, 3)}, r"offset_bias has shape \(9, 3\), it must be \(9, 4\)"),
        ({"k": torch.ones(2, 3, 5, 5)}, "a multiple of those of k, got 4 and 3"),
        ({"causal": True, "visible": torch.ones(1, 1, 5, 5, dtype=torch.bool)}, "causal=True takes no visible"),
    ],
)
def test_ill_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attend(relative_attention, {**inputs(5, 5), **changes})


def test_causal_queries_beyond_the_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="at least as many keys as queries, got 3 and 5"):
        attend(relative_attention, inputs(5, 3), causal=True)
