"""Memory as a layer: attention over what the memory's layer gives, persistent tokens included."""

from __future__ import annotations

import pytest
import torch

from regard.mixers.sequence.titans import TitansLMM
from regard.mixers.sequence.titans_mal import TitansMAL
from regard.ops.heads import merge_heads, split_heads
from regard.ops.prefix_window import prefix_window_attention_reference


def test_is_attention_over_the_memory_layer() -> None:
    torch.manual_seed(4)
    ours = TitansMAL(15, num_heads=3, window_size=4, chunk_size=5, num_persistent=5).double()
    layer = TitansLMM(15, num_heads=3, chunk_size=5, num_persistent=0).double()
    layer.memory.load_state_dict(ours.memory.state_dict())
    layer.norm, layer.gate_proj, layer.o_proj = ours.memory_norm, ours.gate_proj, ours.memory_proj
    x = torch.randn(2, 11, 15, dtype=torch.float64)
    assert ours.persistent is not None
    # as many persistent tokens as a chunk holds, so that the chunks of [p ; x] are those of both
    y = layer(torch.cat((ours.persistent.expand(2, -1, -1), x), dim=1))
    q, k, v = (
        split_heads(proj(y), 3) for proj in (ours.attention.q_proj, ours.attention.k_proj, ours.attention.v_proj)
    )
    expected = prefix_window_attention_reference(
        q[:, :, 5:], k[:, :, 5:], v[:, :, 5:], q[:, :, 5:], k[:, :, :5], v[:, :, :5], window_size=4
    )
    torch.testing.assert_close(ours(x), ours.o_proj(merge_heads(expected)))


def test_without_persistent_tokens() -> None:
    ours = TitansMAL(12, num_heads=3, window_size=4, chunk_size=5, num_persistent=0, rope_base=100.0).double()
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    with torch.no_grad():
        first, state = ours.step(x[:, :6], ours.init_state(2))
        second, _ = ours.step(x[:, 6:], state)
    torch.testing.assert_close(torch.cat((first, second), dim=1), ours(x))


def test_ill_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="window_size must be positive, got 0"):
        TitansMAL(12, num_heads=3, window_size=0)
    with pytest.raises(ValueError, match="even head_dim, got 5"):
        TitansMAL(15, num_heads=3, rope_base=100.0)
