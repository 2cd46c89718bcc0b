"""Linear attention with 1 + elu features against its formula, token by token."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import regard
from regard.mixers.sequence.linear import LinearAttention


def layer_by_loops(mixer: LinearAttention, x: Tensor, context: Tensor | None = None) -> Tensor:
    """The whole layer once more: weights one by one, and their sum."""
    heads, width = mixer.num_heads, mixer.head_dim
    source = x if context is None else context

    def feature(value: float) -> float:
        return 1 + value if value > 0 else math.exp(value)

    with torch.no_grad():
        q, k, v = mixer.q_proj(x), mixer.k_proj(source), mixer.v_proj(source)
        mixed = torch.zeros_like(x)
        for b in range(x.shape[0]):
            for h in range(heads):
                channels = range(h * width, (h + 1) * width)
                for i in range(x.shape[1]):
                    seen = range(i + 1) if mixer.causal else range(source.shape[1])
                    weights = [sum(feature(q[b, i, c]) * feature(k[b, j, c]) for c in channels) for j in seen]
                    for c in channels:
                        total = sum(weight * v[b, j, c] for weight, j in zip(weights, seen, strict=True))
                        mixed[b, i, c] = total / sum(weights)
        return mixer.o_proj(mixed)


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("form", ["causal", "bidirectional", "cross"])
def test_layer_is_the_formula(form: str, qkv_bias: bool) -> None:
    mixer = LinearAttention(15, num_heads=3, causal=form == "causal", qkv_bias=qkv_bias, block_size=3).double()
    x = torch.randn(1, 11, 15, dtype=torch.float64)
    context = torch.randn(1, 7, 15, dtype=torch.float64) if form == "cross" else None
    expected = layer_by_loops(mixer, x, context)
    torch.testing.assert_close(mixer(x, context=context), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tokens", [1, 64, 131])
def test_values_and_gradients_are_those_of_the_whole_map(tokens: int, causal: bool) -> None:
    mixer = LinearAttention(20, num_heads=4, causal=causal).double()
    x = torch.randn(2, tokens, 20, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, tokens, 20, dtype=torch.float64)
    leaves = [x, *mixer.parameters()]
    forms = (mixer(x), mixer.out(mixer.attention_map(x) @ mixer.values(x), x))
    results = [[y, *torch.autograd.grad((y * weight).sum(), leaves)] for y in forms]
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-10)


def test_derivatives_by_differences() -> None:
    for causal in (True, False):
        mixer = LinearAttention(6, num_heads=2, causal=causal, block_size=2).double()
        assert torch.autograd.gradcheck(mixer, (torch.randn(1, 5, 6, dtype=torch.float64, requires_grad=True),))


@pytest.mark.parametrize("chunks", [[1] * 131, [67, 1, 1, 62]])
def test_decoding_equals_forward_in_constant_memory(chunks: list[int]) -> None:
    mixer = LinearAttention(20, num_heads=4, causal=True).double()
    x = torch.randn(2, 131, 20, dtype=torch.float64)
    with torch.no_grad():
        state, pieces = mixer.init_state(2), []
        for piece in x.split(chunks, dim=1):
            y, state = mixer.step(piece, state)
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, dim=1), mixer(x), rtol=1e-9, atol=1e-11)
    assert state.nbytes == 2 * (4 * 5 * 6 + 1) * 8


@pytest.mark.parametrize("causal", [False, True])
def test_outputs_stay_within_the_values(causal: bool) -> None:
    mixer = LinearAttention(20, num_heads=4, causal=causal)
    x = 30 * torch.randn(2, 67, 20)
    mixed = mixer.mix(x, context=None, mask=None, segments=None, bias=None)
    values = mixer.values(x)
    slack = 1e-4 * values.abs().max()
    assert (mixed <= values.amax(dim=2, keepdim=True) + slack).all()
    assert (mixed >= values.amin(dim=2, keepdim=True) - slack).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_long_and_large_inputs_stay_finite(causal: bool, size: float) -> None:
    # features of e^-10,000 underflow to 0: then the sum of weights may be 0 too
    mixer = LinearAttention(16, num_heads=4, causal=causal)
    y = mixer(size * torch.randn(1, 4096, 16))
    y.square().mean().backward()
    assert y.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in mixer.parameters())


@pytest.mark.parametrize("causal", [False, True])
def test_bfloat16_stays_within_two_percent(causal: bool) -> None:
    mixer = LinearAttention(64, num_heads=4, causal=causal).bfloat16()
    x = torch.randn(2, 499, 64).bfloat16()
    with torch.no_grad():
        y = mixer(x)
        expected = mixer.float()(x.float())
    assert y.dtype == torch.bfloat16
    assert (y - expected).norm() / expected.norm() < 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 10, "num_heads": 3}, "dim=10 and num_heads=3"),
        ({"dim": 12, "num_heads": 3, "block_size": -1}, "block_size must be positive, got -1"),
    ],
)
def test_ill_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        regard.create("linear", **options)


def test_a_bias_is_refused_with_the_reason() -> None:
    mixer = LinearAttention(12, num_heads=3)
    with pytest.raises(ValueError, match="no scores to add to"):
        mixer(torch.randn(1, 5, 12), bias=torch.zeros(1, 3, 5, 5))
