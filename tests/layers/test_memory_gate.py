"""The product of attention and memory against its formula."""

from __future__ import annotations

import torch
from torch.nn.functional import silu

from regard.layers.memory_gate import MemoryGate, side_by_side


def test_is_the_formula() -> None:
    gate = MemoryGate(15, head_dim=5).double()
    with torch.no_grad():
        gate.attention_norm.weight.copy_(torch.randn(5))
        gate.memory_norm.weight.copy_(torch.randn(5))
    attention, memory = torch.randn(2, 2, 3, 7, 5, dtype=torch.float64)
    joined = torch.zeros(2, 7, 15, dtype=torch.float64)
    for head in range(3):
        one, other = attention[:, head], memory[:, head]
        one = one / (one.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * gate.attention_norm.weight
        other = other / (other.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * gate.memory_norm.weight
        joined[:, :, 5 * head : 5 * head + 5] = one * silu(other)
    torch.testing.assert_close(gate(side_by_side(attention, memory)), joined @ gate.o_proj.weight.T)
