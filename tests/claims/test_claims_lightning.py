"""The forms that lightning's claims race compute the same."""

from __future__ import annotations

import torch

from regard.claims.lightning import cumsum_linear_attention, quadratic_in_strips
from regard.ops.linear_attention import linear_attention_reference


def test_what_is_raced_computes_the_same() -> None:
    q, k = torch.randn(2, 1, 3, 1031, 5).double()
    v = torch.randn(1, 3, 1031, 7).double()
    torch.testing.assert_close(cumsum_linear_attention(q, k, v), linear_attention_reference(q, k, v))
    strips = quadratic_in_strips(q[0, 1], k[0, 1], v[0, 1], 0.3)
    torch.testing.assert_close(strips, linear_attention_reference(q, k, v, slopes=(0.0, 0.3, 1.0))[0, 1])
