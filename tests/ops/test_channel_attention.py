"""Attention between channels on plain matrices."""

from __future__ import annotations

import torch

from regard.ops.channel_attention import channel_affinity, channel_attention


def test_is_the_product_of_matrices() -> None:
    q, k, v = torch.randn(3, 2, 7, 3, 5, dtype=torch.float64).unbind()
    y = channel_attention(q, k, v)
    for row in range(2):
        for group in range(3):
            affinity = (k[row, :, group].T @ v[row, :, group] / 5**0.5).softmax(dim=1)
            torch.testing.assert_close(channel_affinity(k, v)[row, group], affinity)
            torch.testing.assert_close(y[row, :, group], q[row, :, group] @ affinity.T)


def test_narrow_types_are_summed_in_float32() -> None:
    k = torch.randn(1, 9999, 1, 4).bfloat16()
    assert channel_affinity(k, k).dtype == torch.float32
    assert channel_attention(k, k, k).dtype == torch.bfloat16
