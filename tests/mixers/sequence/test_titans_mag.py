"""Memory as a gate: the two branches against their own definitions, and the product between them."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import silu

from regard.mixers.sequence.titans import TitansLMM
from regard.mixers.sequence.titans_mag import TitansMAG


def mixer() -> TitansMAG:
    torch.manual_seed(3)
    return TitansMAG(15, num_heads=3, window_size=4, chunk_size=5, num_persistent=2).double()


def test_is_normed_attention_times_the_activated_memory() -> None:
    ours, x = mixer(), torch.randn(2, 11, 15, dtype=torch.float64)
    memory = TitansLMM(15, num_heads=3, chunk_size=5, num_persistent=2).double()
    memory.memory.load_state_dict(ours.memory.state_dict())
    memory.persistent = ours.persistent
    reads = memory.mix(x, context=None, mask=None, segments=None, bias=None)
    assert ours.persistent is not None
    whole = torch.cat((ours.persistent.expand(2, -1, -1), x), dim=1)
    q, k, v = (proj(whole) for proj in (ours.attention.q_proj, ours.attention.k_proj, ours.attention.v_proj))
    joined = torch.zeros(2, 11, 15, dtype=torch.float64)
    for row in range(2):
        for head in range(3):
            part = slice(5 * head, 5 * head + 5)
            for i in range(11):
                seen = [0, 1, *range(2 + max(0, i - 3), 2 + i + 1)]
                scores = torch.stack([q[row, 2 + i, part] @ k[row, j, part] for j in seen]) / math.sqrt(5)
                attended = scores.softmax(dim=0) @ v[row, seen, part]
                read = reads[row, head, i]
                attended = attended / (attended.square().mean() + 1e-6).sqrt() * ours.gate.attention_norm.weight
                read = read / (read.square().mean() + 1e-6).sqrt() * ours.gate.memory_norm.weight
                joined[row, i, part] = attended * silu(read)
    torch.testing.assert_close(ours(x), ours.gate.o_proj(joined))


def test_without_persistent_tokens() -> None:
    ours = TitansMAG(12, num_heads=3, window_size=4, chunk_size=5, num_persistent=0, rope_base=100.0).double()
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    with torch.no_grad():
        first, state = ours.step(x[:, :6], ours.init_state(2))
        second, _ = ours.step(x[:, 6:], state)
    torch.testing.assert_close(torch.cat((first, second), dim=1), ours(x))


def test_rotary_positions_leave_the_prefix_alone() -> None:
    ours = TitansMAG(12, num_heads=3, window_size=1, chunk_size=5, num_persistent=2, rope_base=100.0).double()
    same = torch.randn(1, 1, 12, dtype=torch.float64).expand(1, 9, 12)
    attended = ours.mix(same, context=None, mask=None, segments=None, bias=None)[..., :4]
    torch.testing.assert_close(attended, attended[:, :, :1].expand_as(attended))


def test_ill_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="window_size must be positive, got 0"):
        TitansMAG(12, num_heads=3, window_size=0)
    with pytest.raises(ValueError, match="even head_dim, got 5"):
        TitansMAG(15, num_heads=3, rope_base=100.0)
