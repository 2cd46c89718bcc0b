"""Softmax attention against its formula, PyTorch's own module, and its own cache."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import regard
from regard.mixers.sequence.softmax import SoftmaxAttention


def attention_by_loops(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """The formula once more, token by token and head by head."""
    q, k = q.detach(), k.detach()
    batch, heads, queries, head_dim = q.shape
    group = heads // k.shape[1]
    mixed = torch.zeros(batch, heads, queries, v.shape[-1], dtype=q.dtype)
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                last = i + 1 if causal else k.shape[2]
                scores = [float(q[b, h, i] @ k[b, h // group, j]) / math.sqrt(head_dim) for j in range(last)]
                total = sum(math.exp(score) for score in scores)
                for j, score in enumerate(scores):
                    mixed[b, h, i] += math.exp(score) / total * v[b, h // group, j]
    return mixed


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("num_kv_heads", [1, 3, 6])
def test_mix_is_the_formula(causal: bool, num_kv_heads: int) -> None:
    mixer = SoftmaxAttention(30, num_heads=6, num_kv_heads=num_kv_heads, causal=causal).double()
    x = torch.randn(2, 11, 30, dtype=torch.float64)
    q = mixer.q_proj(x).view(2, 11, 6, 5).transpose(1, 2)
    k = mixer.k_proj(x).view(2, 11, num_kv_heads, 5).transpose(1, 2)
    v = mixer.v_proj(x).view(2, 11, num_kv_heads, 5).transpose(1, 2)
    expected = mixer.o_proj(attention_by_loops(q, k, v, causal).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x), expected, rtol=1e-10, atol=1e-12)


def test_equals_pytorchs_own_module() -> None:
    mixer = SoftmaxAttention(28, num_heads=7, causal=False, qkv_bias=True)
    theirs = nn.MultiheadAttention(28, 7, batch_first=True)
    projections = (mixer.q_proj, mixer.k_proj, mixer.v_proj)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        theirs.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
        theirs.out_proj.load_state_dict(mixer.o_proj.state_dict())
    x, context = torch.randn(3, 13, 28), torch.randn(3, 5, 28)
    keep = torch.rand(3, 5) < 0.6
    keep[:, 2] = True
    expected, weights = theirs(x, context, context, key_padding_mask=~keep, average_attn_weights=False)
    torch.testing.assert_close(mixer(x, context=context, mask=keep), expected)
    torch.testing.assert_close(mixer.attention_map(x, context=context, mask=keep), weights)


def test_rotary_scores_depend_on_distance_alone() -> None:
    mixer = SoftmaxAttention(24, num_heads=3, causal=True, rope_base=100.0)
    same = torch.randn(1, 1, 24).expand(1, 17, 24)
    weights = mixer.attention_map(same)
    scores = weights.log() - weights.log().diagonal(dim1=2, dim2=3)[..., None]
    torch.testing.assert_close(scores[0, :, 10, 3:11], scores[0, :, 16, 9:17], rtol=1e-4, atol=1e-4)
    assert (scores[0, :, 10, 3] - scores[0, :, 10, 10]).abs().min() > 1e-4


def test_cache_grows_and_keeps_to_max_len() -> None:
    mixer = SoftmaxAttention(12, num_heads=3, causal=True)
    x = torch.randn(2, 150, 12)
    with torch.no_grad():
        state = mixer.init_state(2)
        pieces = []
        for token in x.split(1, dim=1):
            y, state = mixer.step(token, state)
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, dim=1), mixer(x))
        full = mixer.init_state(2, max_len=5)
        _, full = mixer.step(x[:, :5], full)
        with pytest.raises(ValueError, match=r"max_len=5 tokens, 6 are needed"):
            mixer.step(x[:, :1], full)


def test_padding_does_not_use_up_max_len() -> None:
    mixer = SoftmaxAttention(12, num_heads=3, causal=True)
    x, real = torch.randn(2, 3, 12), torch.tensor([[False, True, False]] * 2)
    with torch.no_grad():
        state = mixer.init_state(2, max_len=4)
        for _ in range(3):
            _, state = mixer.step(x, state, mask=real)
    assert state.position.tolist() == [3, 3]


def test_steps_carry_gradients() -> None:
    mixer = SoftmaxAttention(12, num_heads=3, causal=True).double()
    x = torch.randn(1, 7, 12, dtype=torch.float64, requires_grad=True)
    first, state = mixer.step(x[:, :4], mixer.init_state(1))
    second, _ = mixer.step(x[:, 4:], state)
    stepped = torch.autograd.grad(torch.cat((first, second), dim=1).square().sum(), x)[0]
    whole = torch.autograd.grad(mixer(x).square().sum(), x)[0]
    torch.testing.assert_close(stepped, whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 10, "num_heads": 3}, "dim=10 and num_heads=3"),
        ({"dim": 12, "num_heads": 4, "num_kv_heads": 3}, "num_heads=4, got 3"),
        ({"dim": 9, "num_heads": 3, "rope_base": 10.0}, "even head_dim, got 3"),
        ({"dim": 12, "num_heads": 3, "rope_base": 0.5}, "greater than 1, got 0.5"),
    ],
)
def test_ill_sizes_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        regard.create("softmax", **options)
