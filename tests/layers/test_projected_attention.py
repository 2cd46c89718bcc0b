"""Attention in parts equals attention whole, and its core is where hooks see queries and keys."""

from __future__ import annotations

import pytest
import torch

from regard.layers.projected_attention import AttentionCore, ProjectedAttention
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.ops.rotary import rotate


@pytest.mark.parametrize("rope_base", [None, 50.0])
@pytest.mark.parametrize("causal", [False, True])
def test_parts_are_the_softmax_mixer(rope_base: float | None, causal: bool) -> None:
    mixer = SoftmaxAttention(24, num_heads=6, num_kv_heads=2, causal=causal, qkv_bias=True, rope_base=rope_base)
    parts = ProjectedAttention(24, num_heads=6, num_kv_heads=2, rope_base=rope_base)
    parts.load_state_dict(mixer.state_dict())
    x = torch.randn(3, 11, 24)
    places = torch.arange(11)[None]
    y = parts.attend(parts.queries(x, places), *parts.keys_values(x, places), causal=causal)
    torch.testing.assert_close(y, mixer(x))


def test_positions_are_those_given() -> None:
    parts = ProjectedAttention(12, num_heads=2, rope_base=10.0)
    x, places = torch.randn(1, 3, 12), torch.tensor([[4, 0, 7]])
    flat = parts.q_proj(x).view(1, 3, 2, 6).transpose(1, 2)
    torch.testing.assert_close(parts.queries(x, places), rotate(flat, places, base=10.0))


def test_keys_of_another_stream_are_masked_per_row() -> None:
    parts = ProjectedAttention(10, num_heads=2).double()
    x, other = torch.randn(2, 3, 10).double(), torch.randn(2, 5, 10).double()
    real = torch.tensor([[True] * 5, [True, True, False, False, False]])
    places = torch.arange(5)[None]
    q, (k, v) = parts.queries(x, places[:, :3]), parts.keys_values(other, places)
    y = parts.attend(q, k, v, visible=real[:, None, None, :])
    short = parts.attend(q[1:], k[1:, :, :2], v[1:, :, :2])
    torch.testing.assert_close(y[1:], short)
    torch.testing.assert_close(y[:1], parts.attend(q[:1], k[:1], v[:1]))


def test_dropout_is_in_training_only() -> None:
    core = AttentionCore(of_source=True, dropout=0.5)
    q = torch.randn(1, 2, 5, 4)
    assert not torch.equal(core(q, q, q), core(q, q, q))
    assert torch.equal(core.eval()(q, q, q), core(q, q, q))


def test_ill_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="num_heads=4, got 3"):
        ProjectedAttention(12, num_heads=4, num_kv_heads=3)
    with pytest.raises(ValueError, match="even head_dim, got 3"):
        ProjectedAttention(9, num_heads=3, rope_base=10.0)
