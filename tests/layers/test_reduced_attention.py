"""Spatial-reduction attention: the formula by heads, padding, and no reduction at all."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import layer_norm, pad

from regard.layers.reduced_attention import ReducedAttention, SpatialReduction


def by_heads(layer: ReducedAttention, x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    tokens, keys = x.flatten(1, 2), source.flatten(1, 2)
    q = layer.q_proj(tokens)
    k, v = layer.kv_proj(keys).tensor_split(2, dim=-1)
    width = x.shape[-1] // layer.num_heads
    mixed = []
    for head in range(layer.num_heads):
        own = slice(head * width, (head + 1) * width)
        mixed.append((q[..., own] @ k[..., own].transpose(1, 2) / width**0.5).softmax(dim=-1) @ v[..., own])
    return layer.o_proj(torch.cat(mixed, dim=-1)).unflatten(1, x.shape[1:3])


@pytest.mark.parametrize("space", [(6, 9), (7, 5), (1, 1)])
def test_keys_come_from_squares(space: tuple[int, int]) -> None:
    layer = ReducedAttention(6, num_heads=2, reduction=3).double()
    x = torch.randn(2, *space, 6, dtype=torch.float64)
    padded = pad(x, (0, 0, 0, -space[1] % 3, 0, -space[0] % 3))
    assert layer.reduction is not None
    squares = padded.unflatten(2, (-1, 3)).unflatten(1, (-1, 3))
    coarse = torch.einsum("byixjc,dcij->byxd", squares, layer.reduction.conv.weight) + layer.reduction.conv.bias
    torch.testing.assert_close(layer(x), by_heads(layer, x, layer_norm(coarse, (6,))))


@pytest.mark.parametrize("bias", [True, False])
def test_without_reduction_every_position_is_a_key(bias: bool) -> None:
    layer = ReducedAttention(6, num_heads=3, qkv_bias=bias).double()
    assert layer.reduction is None
    x = torch.randn(2, 5, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), by_heads(layer, x, x))


def test_reduction_rounds_up() -> None:
    assert SpatialReduction(3, 4)(torch.randn(1, 9, 4, 3)).shape == (1, 3, 1, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_heads": 4}, "multiple of num_heads"), ({"num_heads": 2, "reduction": 0}, "reduction must be positive")],
)
def test_ill_options_are_named(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReducedAttention(6, **options)
