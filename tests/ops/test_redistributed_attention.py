"""The fast path against weights written in full: prompts and decoding, padding, biases, fewer key heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regard.measure import contraction_macs
from regard.ops import redistributed_attention as module
from regard.ops.redistributed_attention import (
    redistributed_attention,
    redistributed_attention_reference,
    redistributed_macs,
)
from regard.ops.softmax_attention import softmax_attention
from regard.ops.visual_sinks import SinkRule, redistribute

DOUBLE = torch.float64
RULE = SinkRule(p=0.5, rho=0.3, summ=0.3)


def tensors(queries: int, keys: int, *, kv_heads: int = 3, dtype: torch.dtype = DOUBLE) -> list[Tensor]:
    shapes = [(2, 6, queries, 7), (2, kv_heads, keys, 7), (2, kv_heads, keys, 5)]
    return [(1.5 * torch.randn(shape, dtype=DOUBLE)).to(dtype).requires_grad_() for shape in shapes]


def marks(keys: int, *, end: int = 13) -> dict[str, Tensor]:
    image, sinks = torch.zeros(2, keys, dtype=torch.bool), torch.zeros(2, keys, dtype=torch.bool)
    image[0, 3:end], image[1, 4 : end - 2] = True, True
    sinks[0, [0, 5, 9]], sinks[1, [6, 15]] = True, True
    return {"image": image, "sinks": sinks}


def compare(inputs: list[Tensor], **options: Any) -> Tensor:
    """Values and gradients of both forms; returns which rows were selected."""
    ours = redistributed_attention(*inputs, RULE, **options)
    options.pop("text_start", None)
    expected, selected = redistributed_attention_reference(*inputs, RULE, **options)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)
    upstream = torch.randn_like(ours)
    for own, wanted in zip(*(torch.autograd.grad(y, inputs, upstream) for y in (ours, expected)), strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-8, atol=1e-10)
    return selected


@pytest.mark.parametrize("rows", [5, 128])
@pytest.mark.parametrize("kv_heads", [1, 3, 6])
def test_prompts(kv_heads: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", rows)
    selected = compare(tensors(41, 41, kv_heads=kv_heads), **marks(41))
    assert not selected[0, :, :13].any()
    assert not selected[1, :, :11].any()
    assert 0 < int(selected.sum()) < 6 * (28 + 30)


@pytest.mark.parametrize("known", [0, 7, 11])
def test_a_known_beginning_of_the_text_changes_nothing(known: int) -> None:
    inputs = tensors(41, 41)
    assert compare(inputs, **marks(41), text_start=known).any()


@pytest.mark.parametrize(("queries", "first"), [(1, 36), (6, 31), (6, 8), (6, torch.tensor([31, 9]))])
@pytest.mark.parametrize("marked", [37, 17])
def test_queries_after_earlier_keys(queries: int, first: Any, marked: int) -> None:
    given = {name: mask[:, :marked] for name, mask in marks(37).items()}
    selected = compare(tensors(queries, 37), **given, first=first)
    assert bool(selected.any())


def test_decoding_is_the_redistributed_row() -> None:
    q, k, v = tensors(1, 37)
    given = marks(37)
    weights = torch.einsum("bhid,bhjd->bhij", q, k.repeat_interleave(2, dim=1)).div(7**0.5).softmax(dim=-1)
    changed = redistribute(weights, given["image"], given["sinks"], RULE).attention
    expected = changed @ v.repeat_interleave(2, dim=1)
    torch.testing.assert_close(redistributed_attention(q, k, v, RULE, **given), expected)
    scaled = redistributed_attention(2 * q, k, v, RULE, **given, scale=0.5 * 7**-0.5)
    torch.testing.assert_close(scaled, expected)


@pytest.mark.parametrize("queries", [41, 1])
def test_padding_and_bias(queries: int) -> None:
    mask = torch.rand(2, 41) < 0.8
    mask[:, [0, 6, 9, 40]] = True
    mask[0, :2] = False
    bias = torch.randn(1, 6, queries, 41, dtype=DOUBLE)
    inputs = tensors(queries, 41)
    options = {**marks(41), "mask": mask, "bias": bias}
    ours = redistributed_attention(*inputs, RULE, **options)
    expected, selected = redistributed_attention_reference(*inputs, RULE, **options)
    seen = torch.ones(2, queries, dtype=torch.bool)
    if queries > 1:
        seen[0, :2] = False
    assert bool(ours.isfinite().all())
    torch.testing.assert_close(ours.transpose(1, 2)[seen], expected.transpose(1, 2)[seen])
    assert bool(selected.any())


def test_without_selected_rows_it_is_softmax_attention() -> None:
    q, k, v = tensors(41, 41)
    plain = softmax_attention(q, k, v, causal=True)
    given = marks(41)
    nothing = torch.zeros(2, 41, dtype=torch.bool)
    for options in ({**given, "sinks": nothing}, {**given, "image": nothing}):
        torch.testing.assert_close(redistributed_attention(q, k, v, RULE, **options), plain)
    torch.testing.assert_close(redistributed_attention(q, k, v, SinkRule(p=1.0), **given), plain)


@pytest.mark.parametrize("queries", [301, 1])
def test_bfloat16_is_near(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONVERTED_BYTES", 5000)
    inputs = [x.detach() for x in tensors(queries, 301, dtype=torch.bfloat16)]
    ours = redistributed_attention(*inputs, RULE, **marks(301))
    wide, _ = redistributed_attention_reference(*(x.double() for x in inputs), RULE, **marks(301))
    assert ours.dtype == torch.bfloat16
    assert float((ours.double() - wide).norm() / wide.norm()) < 0.02


@pytest.mark.parametrize("rows", [5, 128])
def test_macs_are_counted(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", rows)
    q, k, v = (x.detach().float() for x in tensors(41, 41, kv_heads=6))
    v = torch.cat((v, v[..., :2]), dim=-1)
    counted = contraction_macs(lambda: redistributed_attention(q, k, v, RULE, **marks(41), text_start=11))
    assert counted == 2 * redistributed_macs(queries=41, text_start=11, heads=6, head_dim=7, value_dim=7)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"v": torch.randn(2, 3, 40, 5)}, r"equal batch, heads and length: \(2, 3, 41, 7\), \(2, 3, 40, 5\)"),
        ({"q": torch.randn(2, 5, 41, 7)}, r"the heads of the keys must divide those of the queries"),
        ({"image": torch.ones(2, 43, dtype=torch.bool)}, r"image must be bool of shape \(2, 41\), got .*\(2, 43\)"),
        ({"sinks": torch.ones(2, 40, dtype=torch.bool)}, r"sinks must be bool of shape \(2, 41\), got .*\(2, 40\)"),
        ({"mask": torch.ones(2, 41)}, r"mask must be bool of shape \(2, 41\), got torch.float32"),
        ({"text_start": 42}, r"text_start must be between 0 and the number of queries 41, got 42"),
    ],
)
def test_ill_arguments_are_named(changed: dict[str, Any], message: str) -> None:
    q, k, v = (x.detach().float() for x in tensors(41, 41))
    given = {"q": q, "k": k, "v": v, **marks(41), **changed}
    tensors_given = [given.pop(name) for name in ("q", "k", "v")]
    with pytest.raises(ValueError, match=message):
        redistributed_attention(*tensors_given, RULE, **given)
