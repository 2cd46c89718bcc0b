"""URPE attention against its formula, its forms, sharing of tables, decoding, and the limit of positions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from regard.metadata import Example
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.mixers.sequence.urpe import URPEAttention
from regard.testing import check_mixer

KINDS = [("log", "log"), ("transformer_xl", "unique"), ("alibi", "log"), ("none", "unique"), ("unique", "none")]


def scattered(mixer: URPEAttention) -> URPEAttention:
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer.double().eval()


def layer_by_loops(mixer: URPEAttention, x: Tensor) -> Tensor:
    """The whole layer with tables of all distances, token by token and head by head."""
    batch, tokens, dim = x.shape
    heads, kv_heads, width = mixer.num_heads, mixer.num_kv_heads, mixer.head_dim
    assert mixer.positions.biases is not None
    assert mixer.positions.factors is not None
    biases, factors = mixer.positions.biases.weight, mixer.positions.factors.weight
    zero = mixer.positions.max_positions - 1
    with torch.no_grad():
        q = mixer.q_proj(x).view(batch, tokens, heads, width)
        k, v = (linear(x).view(batch, tokens, kv_heads, width) for linear in (mixer.k_proj, mixer.v_proj))
        mixed = torch.zeros(batch, tokens, heads, width, dtype=x.dtype)
        for b in range(batch):
            for h in range(heads):
                group = h // (heads // kv_heads)
                for i in range(tokens):
                    seen = range(i + 1) if mixer.causal else range(tokens)
                    scores = [
                        math.exp(float(q[b, i, h] @ k[b, j, group]) / math.sqrt(width) + float(biases[zero + j - i, h]))
                        for j in seen
                    ]
                    for score, j in zip(scores, seen, strict=True):
                        mixed[b, i, h] += score / sum(scores) * factors[zero + j - i, h] * v[b, j, group]
        return mixed.reshape(batch, tokens, dim) @ mixer.o_proj.weight.T + mixer.o_proj.bias


@pytest.mark.parametrize("causal", [False, True])
def test_layer_is_the_formula(causal: bool) -> None:
    mixer = scattered(URPEAttention(20, num_heads=4, num_kv_heads=2, causal=causal, max_positions=13))
    x = torch.randn(2, 11, 20, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), layer_by_loops(mixer, x))
    expected = mixer.attention_map(x) @ mixer.values(x)
    torch.testing.assert_close(mixer.mix(x, context=None, mask=None, segments=None, bias=None), expected)
    assert mixer.positions.factors is not None
    with torch.no_grad():
        mixer.positions.factors.weight.neg_()
    torch.testing.assert_close(mixer.attention_map(x) @ mixer.values(x), -expected)


@pytest.mark.parametrize("causal", [False, True])
def test_without_biases_and_factors_it_is_softmax_attention(causal: bool) -> None:
    ours = URPEAttention(24, num_heads=6, num_kv_heads=2, causal=causal, biases="none", factors="none")
    full = SoftmaxAttention(24, num_heads=6, num_kv_heads=2, causal=causal, qkv_bias=True)
    full.load_state_dict(ours.state_dict())
    x = torch.randn(2, 67, 24)
    torch.testing.assert_close(ours(x), full(x))


@pytest.mark.parametrize(
    ("biases", "factors"), [*KINDS[:2], *(pytest.param(*kind, marks=pytest.mark.slow) for kind in KINDS[2:])]
)
def test_every_kind_keeps_the_contract(monkeypatch: pytest.MonkeyPatch, biases: str, factors: str) -> None:
    kwargs = {**URPEAttention.example.kwargs, "biases": biases, "factors": factors}
    kwargs |= {"num_buckets": 16, "max_distance": 50}
    example: Example = replace(URPEAttention.example, kwargs=kwargs)
    monkeypatch.setattr(URPEAttention, "example", example)
    assert check_mixer(URPEAttention, skip_slow=True).seconds


def test_at_the_start_factors_change_nothing() -> None:
    torch.manual_seed(5)
    universal = URPEAttention(24, num_heads=3, max_positions=31)
    plain = URPEAttention(24, num_heads=3, max_positions=31, factors="none")
    plain.load_state_dict({name: value for name, value in universal.state_dict().items() if "factors" not in name})
    x = torch.randn(2, 29, 24)
    torch.testing.assert_close(universal(x), plain(x), rtol=0, atol=0)


def test_layers_share_tables_that_one_of_them_owns() -> None:
    first, second, third = (URPEAttention(24, num_heads=3, max_positions=31) for _ in range(3))
    alone = sum(parameter.numel() for parameter in first.parameters())
    second.share_positions(first)
    third.share_positions(second)
    assert third.positions is first.positions
    layers = torch.nn.ModuleList([first, second, third])
    tables = 2 * 61 * 3
    assert sum(parameter.numel() for parameter in layers.parameters()) == 3 * alone - 2 * tables
    assert [name for name in layers.state_dict() if "positions" in name] == [
        "0.own_positions.biases.weight",
        "0.own_positions.factors.weight",
    ]
    x = torch.randn(1, 7, 24)
    sum(layer(x).square().sum() for layer in layers).backward()
    assert first.positions.factors is not None
    shared = first.positions.factors.weight.grad
    first.zero_grad()
    first(x).square().sum().backward()
    assert not torch.equal(shared, first.positions.factors.weight.grad)


def test_what_cannot_be_shared_is_named() -> None:
    first, other = URPEAttention(24, num_heads=3), URPEAttention(24, num_heads=4)
    with pytest.raises(ValueError, match=r"is \(24, 4, False, 2048\), the owner's is \(24, 3, False, 2048\)"):
        other.share_positions(first)
    second = URPEAttention(24, num_heads=3)
    second.share_positions(first)
    with pytest.raises(ValueError, match="cannot share what it owns with itself"):
        first.share_positions(second)


@pytest.mark.parametrize(("biases", "factors"), [("unique", "unique"), *KINDS[:3]])
@pytest.mark.parametrize("chunks", [[1] * 23, [13, 1, 9]])
def test_decoding_equals_forward(biases: Any, factors: Any, chunks: list[int]) -> None:
    mixer = scattered(
        URPEAttention(20, num_heads=4, causal=True, biases=biases, factors=factors, max_positions=23, num_buckets=8)
    )
    x = torch.randn(2, 23, 20, dtype=torch.float64)
    with torch.no_grad():
        state, pieces = mixer.init_state(2, max_len=23), []
        for piece in x.split(chunks, dim=1):
            y, state = mixer.step(piece, state)
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, dim=1), mixer(x))
        with pytest.raises(ValueError, match="max_len=23"):
            mixer.step(x[:, :1], state)


def test_more_tokens_than_positions_are_refused_everywhere() -> None:
    mixer, x = URPEAttention(20, num_heads=4, causal=True, max_positions=5), torch.randn(2, 6, 20)
    for call in (
        lambda: mixer(x),
        lambda: mixer.attention_map(x),
        lambda: mixer.init_state(2, max_len=6),
        lambda: mixer.step(x, mixer.init_state(2)),
    ):
        with pytest.raises(ValueError, match="6 tokens are more than max_positions=5"):
            call()
    _, state = mixer.step(x[:, :5], mixer.init_state(2))
    with pytest.raises(ValueError, match="6 tokens are more than max_positions=5"):
        mixer.step(x[:, :1], state)


def test_padding_counts_no_positions_while_decoding() -> None:
    mixer, x = URPEAttention(20, num_heads=4, causal=True, max_positions=5).eval(), torch.randn(2, 4, 20)
    mask = torch.tensor([[True, False, True, False], [False, True, False, True]])
    with torch.no_grad():
        _, state = mixer.step(x, mixer.init_state(2), mask=mask)
        y, state = mixer.step(x[:, :3], state)
        assert state.position.tolist() == [5, 5]
        alone = torch.cat((x[0, mask[0]], x[0, :3]))[None]
        torch.testing.assert_close(y[0], mixer(alone)[0, 2:], rtol=1e-4, atol=1e-5)
        with pytest.raises(ValueError, match="6 tokens are more than max_positions=5"):
            mixer.step(x[:, :1], state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 10, "num_heads": 3}, "dim=10 and num_heads=3"),
        ({"dim": 12, "num_heads": 4, "num_kv_heads": 3}, "num_heads=4, got 3"),
        ({"dim": 12, "num_heads": 3, "biases": "t5"}, "got 't5'"),
        ({"dim": 12, "num_heads": 3, "factors": "t5"}, "got 't5'"),
        ({"dim": 12, "num_heads": 3, "max_positions": 0}, "max_positions must be positive, got 0"),
        ({"dim": 12, "num_heads": 3, "biases": "log", "num_buckets": 3}, "even number of at least 4, got 3"),
    ],
)
def test_ill_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        URPEAttention(**options)
