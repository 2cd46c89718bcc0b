"""Local heads: the operator between projections, steps of any size against all tokens at once, ill arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from regard.layers.block_local_heads import BlockLocalHeads
from regard.ops.block_local_attention import block_local_attention
from regard.ops.heads import split_heads
from regard.ops.rotary import rotate

OPTIONS: dict[str, Any] = {"num_heads": 2, "head_dim": 6, "block_size": 3, "look_back": 1, "causal": True}


def made(**changes: Any) -> BlockLocalHeads:
    return BlockLocalHeads(10, **{**OPTIONS, "bias": True, "rope_base": 100.0, **changes}).double()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("rope_base", [None, 100.0])
def test_is_the_operator_between_projections(causal: bool, rope_base: float | None) -> None:
    heads, x = made(causal=causal, rope_base=rope_base), torch.randn(2, 11, 10, dtype=torch.float64)
    positions = torch.arange(11)[None]
    q, k, v = (split_heads(part, 2) for part in heads.qkv(x).chunk(3, dim=-1))
    if rope_base is not None:
        q, k = rotate(q, positions, base=rope_base), rotate(k, positions, base=rope_base)
    expected = block_local_attention(q, k, v, block_size=3, look_back=1, causal=causal)
    torch.testing.assert_close(heads(x, positions, None), expected)
    torch.testing.assert_close(heads.weights(x, positions, None) @ v, expected)


@pytest.mark.parametrize("look_back", [0, 1, 3])
@pytest.mark.parametrize("chunks", [[1] * 29, [29], [5, 1, 1, 9, 13]])
def test_steps_equal_all_tokens_at_once(look_back: int, chunks: list[int]) -> None:
    heads, x = made(look_back=look_back), torch.randn(2, 29, 10, dtype=torch.float64)
    cache, pieces, start = heads.empty_cache(2), [], 0
    with torch.no_grad():
        for piece in x.split(chunks, dim=1):
            positions = (start + torch.arange(piece.shape[1])).expand(2, -1)
            y, cache = heads.step(piece, positions, None, cache)
            pieces.append(y)
            start += piece.shape[1]
        torch.testing.assert_close(torch.cat(pieces, dim=2), heads(x, torch.arange(29)[None], None))
    assert cache.keys.shape[2] == (look_back + 1) * 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"block_size": 0}, r"block_size must be positive, got 0"),
        ({"look_back": -1}, r"look_back must not be negative, got -1"),
        ({"head_dim": 5}, r"rotary embedding needs an even head_dim, got 5"),
    ],
)
def test_ill_arguments_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**changed)
