"""The forms that TransNormerLLM's claims race compute the same, and the networks that they train are of one size."""

from __future__ import annotations

import pytest
import torch

from regard.claims.transnormer import (
    NETWORKS,
    SLOPES,
    decay_mask,
    decode,
    eager_rms_norm,
    masked_form,
    naive_recurrence,
)
from regard.mixers.sequence.transnormer import NormLinearAttention
from regard.ops.linear_attention import linear_attention_reference
from regard.ops.norms import simple_rms_norm


def test_what_is_raced_computes_the_same() -> None:
    q, k, v = torch.randn(3, 1, 8, 67, 5).double()
    expected = linear_attention_reference(q, k, v, slopes=SLOPES)
    torch.testing.assert_close(masked_form(q, k, v, decay_mask(67)), expected, rtol=1e-5, atol=1e-5)
    # short enough, the naive recurrence is right: its failure is one of range
    naive = naive_recurrence(q, k, v, 0.5)
    torch.testing.assert_close(naive, linear_attention_reference(q, k, v, slopes=[0.5] * 8))
    x = torch.randn(3, 11)
    torch.testing.assert_close(eager_rms_norm(x, torch.ones(11)), simple_rms_norm(x))


def test_decoding_is_token_by_token() -> None:
    layer = NormLinearAttention(12, num_heads=3).eval()
    x = torch.randn(2, 7, 12)
    with torch.no_grad():
        state, y = decode(layer, x)
        torch.testing.assert_close(y, layer(x))
    assert state.position.tolist() == [7, 7]


def test_networks_that_are_compared_have_equally_many_parameters() -> None:
    sizes = {name: sum(p.numel() for p in build().parameters()) for name, build in NETWORKS.items()}
    assert all(size == pytest.approx(sizes["mix"], rel=0.002) for size in sizes.values()), sizes
