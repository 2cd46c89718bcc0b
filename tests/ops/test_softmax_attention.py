"""The fast path of softmax attention against the plain reference, in every combination of arguments."""

from __future__ import annotations

import pytest
import torch

from regard.ops.softmax_attention import softmax_attention, softmax_attention_reference, softmax_weights
from regard.ops.visibility import visible_keys


def inputs(heads: int = 6, kv_heads: int = 3) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(2, h, 11, 5, dtype=torch.float64) for h in (heads, kv_heads, kv_heads))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_mask", [False, True])
def test_equals_the_reference(causal: bool, with_bias: bool, with_mask: bool) -> None:
    q, k, v = inputs()
    mask = torch.rand(2, 11) < 0.7
    mask[:, 0] = True
    visible = visible_keys(11, 11, causal=causal, mask=mask if with_mask else None, device=q.device)
    bias = torch.randn(1, 6, 11, 11, dtype=torch.float64) if with_bias else None
    expected = softmax_attention_reference(q, k, v, visible=visible, bias=bias)
    torch.testing.assert_close(softmax_attention(q, k, v, visible=visible, bias=bias), expected)
    if causal and not with_bias and not with_mask:
        torch.testing.assert_close(softmax_attention(q, k, v, causal=True), expected)


def test_a_row_that_sees_nothing_is_zero_in_the_map_and_finite_in_the_fast_path() -> None:
    q, k, v = (x.requires_grad_() for x in inputs())
    visible = torch.ones(2, 1, 11, 11, dtype=torch.bool)
    visible[1, :, 4] = False
    weights = softmax_weights(q, k, visible=visible)
    assert weights[1, :, 4].abs().max() == 0
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(6, 11, dtype=torch.float64))
    mixed = softmax_attention(q, k, v, visible=visible)
    assert torch.isfinite(mixed).all()
    for gradient in torch.autograd.grad(mixed.sum(), (q, k, v)):
        assert torch.isfinite(gradient).all()


def test_dropout_drops_weights() -> None:
    q, k, v = inputs()
    assert not torch.equal(softmax_attention(q, k, v, dropout=0.5), softmax_attention(q, k, v, dropout=0.5))
