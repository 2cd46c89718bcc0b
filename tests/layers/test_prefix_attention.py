"""Window attention beside a prefix as a layer: its cache against the whole sequence, rotary positions."""

from __future__ import annotations

import pytest
import torch

from regard.layers.prefix_attention import PrefixWindowAttention


@pytest.mark.parametrize("rope_base", [None, 100.0])
@pytest.mark.parametrize("prefix_tokens", [0, 3])
def test_steps_are_the_whole(prefix_tokens: int, rope_base: float | None) -> None:
    layer = PrefixWindowAttention(12, num_heads=3, window_size=4, rope_base=rope_base).double()
    x, prefix = torch.randn(2, 13, 12, dtype=torch.float64), torch.randn(1, prefix_tokens, 12, dtype=torch.float64)
    with torch.no_grad():
        expected = layer(x, layer.prefix(prefix))
        state, pieces = layer.init_state(2, layer.prefix(prefix)), []
        for piece in x.split([1, 2, 5, 1, 1, 3], dim=1):
            y, state = layer.step(piece, state, mask=None)
            pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=2), expected)


def test_distances_in_the_window_alone_count() -> None:
    layer = PrefixWindowAttention(12, num_heads=3, window_size=3, rope_base=100.0).double()
    x, prefix = torch.randn(1, 9, 12, dtype=torch.float64), torch.randn(1, 2, 12, dtype=torch.float64)
    late = torch.cat((torch.randn(1, 6, 12, dtype=torch.float64), x), dim=1)
    ours, theirs = layer(x, layer.prefix(prefix)), layer(late, layer.prefix(prefix))
    torch.testing.assert_close(ours[:, :, 2:], theirs[:, :, 8:])


def test_ill_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="window_size must be positive, got 0"):
        PrefixWindowAttention(12, num_heads=3, window_size=0, rope_base=None)
    with pytest.raises(ValueError, match="even head_dim, got 5"):
        PrefixWindowAttention(15, num_heads=3, window_size=2, rope_base=10.0)
