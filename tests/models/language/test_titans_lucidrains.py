"""The public implementation's network: places of long-term tokens, attention by loops, causality, its layout."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from regard.models.language.titans_lucidrains import (
    MemoryAsContextTransformer,
    SegmentAttention,
    TransformerConfig,
    rotate_neighbours,
)

TINY = TransformerConfig(
    vocab_size=11,
    dim=12,
    num_layers=2,
    num_heads=2,
    head_dim=4,
    segment_len=3,
    num_persistent=2,
    num_longterm=1,
    memory_layers=(1,),
    memory_expansion=2,
)


def test_attention_is_the_loop() -> None:
    attention = SegmentAttention(TINY, first=True).double()
    with torch.no_grad():
        attention.persistent.copy_(torch.randn_like(attention.persistent))
    x = torch.randn(1, 10, 12, dtype=torch.float64)
    got, _ = attention(x, None)
    normed = x[0] / (x[0].square().mean(dim=1, keepdim=True) + torch.finfo(torch.float64).eps).sqrt()
    q, k, v = (normed @ attention.qkv.weight.T).view(10, 3, 2, 4).permute(1, 2, 0, 3)

    def turned(vector: torch.Tensor, place: int) -> torch.Tensor:
        result = vector.clone()
        for pair in range(2):
            angle = place * 10000.0 ** (-2 * pair / 4)
            a, b = vector[2 * pair], vector[2 * pair + 1]
            result[2 * pair] = a * math.cos(angle) - b * math.sin(angle)
            result[2 * pair + 1] = b * math.cos(angle) + a * math.sin(angle)
        return result

    merged = torch.zeros(10, 8, dtype=torch.float64)
    for head in range(2):
        keys, values = attention.persistent[:, head]
        for i in range(10):
            seen = range(i // 4 * 4, i + 1)
            query = turned(q[head, i], i)
            scores = torch.stack([*(query @ key for key in keys), *(query @ turned(k[head, j], j) for j in seen)]) / 2
            merged[i, 4 * head : 4 * head + 4] = scores.softmax(dim=0) @ torch.cat((values, v[head, [*seen]]))
    torch.testing.assert_close(got[0], merged @ attention.o_proj.weight.T)


@pytest.mark.parametrize("tokens", [1, 3, 4, 9, 10])
def test_longterm_tokens_stand_after_whole_segments(tokens: int) -> None:
    network = MemoryAsContextTransformer(TINY)
    x = torch.randn(2, tokens, 12)
    joined = network._with_longterm(x)
    expected = []
    for number in range(tokens):
        if number and number % 3 == 0:
            expected.append(network.longterm.expand(2, 1, 12))
        expected.append(x[:, number : number + 1])
    torch.testing.assert_close(joined, torch.cat(expected, dim=1))
    torch.testing.assert_close(joined[:, network._places(tokens, x.device)], x)


def test_the_future_has_no_influence() -> None:
    network = MemoryAsContextTransformer(TINY).double()
    tokens = torch.randint(0, 11, (1, 11))
    changed = tokens.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 11
    torch.testing.assert_close(network(tokens)[:, :8], network(changed)[:, :8])


def test_distance_alone_counts_after_turning() -> None:
    x = torch.randn(1, 1, 1, 6, dtype=torch.float64).expand(1, 1, 9, 6)
    turned = rotate_neighbours(x, torch.arange(9))
    products = (turned @ turned.mT)[0, 0]
    for distance in range(1, 9):
        line = products.diagonal(distance)
        torch.testing.assert_close(line, line[:1].expand_as(line))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment_len": 0}, "segment_len must be positive, got 0"),
        ({"head_dim": 5}, "head_dim must be even, got 5"),
        ({"num_longterm": -1}, "must not be negative, got 4 and -1"),
        ({"num_layers": 2, "memory_layers": (3,)}, r"memory_layers must be in 1..2, got 3"),
    ],
)
def test_ill_sizes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**options)


def test_unknown_keys_are_named() -> None:
    with pytest.raises(KeyError, match=r"unknown keys: layers\.0\.9\.weight"):
        MemoryAsContextTransformer(TINY).load_reference({"layers.0.9.weight": torch.zeros(1)})


def test_ill_tokens_are_named() -> None:
    with pytest.raises(ValueError, match="tokens must have shape"):
        MemoryAsContextTransformer(TINY)(torch.zeros(1, 0, dtype=torch.int64))
