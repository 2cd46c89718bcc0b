"""Sliding-window attention against its formula, full attention, and its own ring of keys."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import regard
from regard.mixers.sequence.sliding_window import SlidingWindowAttention
from regard.mixers.sequence.softmax import SoftmaxAttention


def layer_by_loops(mixer: SlidingWindowAttention, x: Tensor) -> Tensor:
    """The whole layer once more, token by token and head by head."""
    batch, tokens, dim = x.shape
    heads, kv_heads, width = mixer.num_heads, mixer.num_kv_heads, mixer.head_dim
    with torch.no_grad():
        q = mixer.q_proj(x).view(batch, tokens, heads, width)
        k = mixer.k_proj(x).view(batch, tokens, kv_heads, width)
        v = mixer.v_proj(x).view(batch, tokens, kv_heads, width)
        mixed = torch.zeros(batch, tokens, heads, width, dtype=x.dtype)
        for b in range(batch):
            for h in range(heads):
                group = h // (heads // kv_heads)
                for i in range(tokens):
                    if mixer.causal:
                        seen = range(max(0, i - mixer.window_size + 1), i + 1)
                    else:
                        seen = range(max(0, i - mixer.window_size // 2), min(tokens, i + mixer.window_size // 2 + 1))
                    weights = [math.exp(float(q[b, i, h] @ k[b, j, group]) / math.sqrt(width)) for j in seen]
                    for weight, j in zip(weights, seen, strict=True):
                        mixed[b, i, h] += weight / sum(weights) * v[b, j, group]
        return mixed.reshape(batch, tokens, dim) @ mixer.o_proj.weight.T + mixer.o_proj.bias


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("num_kv_heads", "window_size"), [(1, 4), (3, 7), (6, 1)])
def test_layer_is_the_formula(causal: bool, num_kv_heads: int, window_size: int) -> None:
    mixer = SlidingWindowAttention(
        30, num_heads=6, num_kv_heads=num_kv_heads, causal=causal, window_size=window_size, qkv_bias=True
    ).double()
    x = torch.randn(2, 11, 30, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), layer_by_loops(mixer, x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rope_base", [None, 100.0])
def test_a_window_over_everything_is_softmax_attention(causal: bool, rope_base: float | None) -> None:
    x = torch.randn(2, 67, 24)
    options = {"num_heads": 6, "num_kv_heads": 2, "causal": causal, "rope_base": rope_base}
    ours, full = SlidingWindowAttention(24, window_size=200, **options), SoftmaxAttention(24, **options)
    full.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), full(x))
    torch.testing.assert_close(ours.attention_map(x), full.attention_map(x))


def test_the_default_window_is_64_tokens() -> None:
    mixer = regard.create("sliding_window", dim=12, num_heads=3, causal=True)
    seen = (mixer.attention_map(torch.randn(1, 150, 12)) > 0).sum(dim=-1)
    assert torch.equal(seen[0, 0], torch.arange(1, 151).clamp(max=64))
    both = regard.create("sliding_window", dim=12, num_heads=3)
    assert (both.attention_map(torch.randn(1, 150, 12)) > 0).sum(dim=-1).max() == 65


@pytest.mark.parametrize("chunks", [[1] * 150, [90, 1, 1, 58], [7, 64, 65, 14]])
def test_decoding_equals_forward_in_constant_memory(chunks: list[int]) -> None:
    mixer = SlidingWindowAttention(12, num_heads=3, causal=True, window_size=64, rope_base=50.0)
    x = torch.randn(2, 150, 12)
    with torch.no_grad():
        state = mixer.init_state(2)
        size, pieces = state.nbytes, []
        for piece in x.split(chunks, dim=1):
            y, state = mixer.step(piece, state)
            pieces.append(y)
            assert state.nbytes == size
        torch.testing.assert_close(torch.cat(pieces, dim=1), mixer(x), rtol=1e-4, atol=1e-5)
    assert size == 2 * (2 * 64 * 12 * 4 + 8)


def test_steps_carry_gradients() -> None:
    mixer = SlidingWindowAttention(12, num_heads=3, causal=True, window_size=4).double()
    x = torch.randn(1, 13, 12, dtype=torch.float64, requires_grad=True)
    state, pieces = mixer.init_state(1), []
    for piece in x.split([6, 1, 1, 5], dim=1):
        y, state = mixer.step(piece, state)
        pieces.append(y)
    stepped = torch.autograd.grad(torch.cat(pieces, dim=1).square().sum(), x)[0]
    whole = torch.autograd.grad(mixer(x).square().sum(), x)[0]
    torch.testing.assert_close(stepped, whole)


@pytest.mark.parametrize("causal", [False, True])
def test_padding_takes_no_place_in_the_window(causal: bool) -> None:
    mixer = SlidingWindowAttention(12, num_heads=3, causal=causal, window_size=4, rope_base=50.0)
    x = torch.randn(1, 23, 12)
    mask = torch.rand(1, 23) < 0.5
    torch.testing.assert_close(mixer(x, mask=mask)[mask], mixer(x[mask][None])[0], rtol=1e-4, atol=1e-5)


def test_a_single_visible_key_leaves_queries_and_keys_without_effect() -> None:
    mixer = SlidingWindowAttention(12, num_heads=3, causal=True, window_size=1, qkv_bias=True).double()
    mixer(torch.randn(2, 7, 12, dtype=torch.float64)).square().sum().backward()
    inert = mixer.inert_parameters()
    assert inert == {"q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias"}
    for name, parameter in mixer.named_parameters():
        size = float(parameter.grad.norm())
        assert size < 1e-12 if name in inert else size > 1e-3


def test_compiles_and_traces_without_a_break_at_every_kind_of_length() -> None:
    mixer = SlidingWindowAttention(12, num_heads=3, causal=True, window_size=64)
    compiled = torch.compile(mixer, fullgraph=True, backend="eager", dynamic=False)
    for tokens in (13, 131):
        x = torch.randn(2, tokens, 12)
        torch.testing.assert_close(compiled(x), mixer(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 10, "num_heads": 3}, "dim=10 and num_heads=3"),
        ({"dim": 12, "num_heads": 4, "num_kv_heads": 3}, "num_heads=4, got 3"),
        ({"dim": 12, "num_heads": 3, "window_size": 0}, "window_size must be positive, got 0"),
        ({"dim": 9, "num_heads": 3, "rope_base": 10.0}, "even head_dim, got 3"),
    ],
)
def test_ill_sizes_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SlidingWindowAttention(**options)


def test_a_context_is_refused_with_the_reason() -> None:
    mixer = SlidingWindowAttention(12, num_heads=3)
    with pytest.raises(ValueError, match="a context has no order relative to x"):
        mixer(torch.randn(1, 5, 12), context=torch.randn(1, 7, 12))
