"""Agent attention on sequences: the formula by loops, cross-attention, masks, its map, and ill options."""

from __future__ import annotations

import math

import pytest
import torch

from regard.mixers.sequence.agent import AgentAttention


def by_loops(mixer: AgentAttention, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
    """Row by row and head by head; agents are means over stretches of the queries."""
    source = x if context is None else context
    y = torch.empty_like(x)
    for row in range(x.shape[0]):
        q = x[row] @ mixer.q_proj.weight.T + (0 if mixer.q_proj.bias is None else mixer.q_proj.bias)
        k = source[row] @ mixer.k_proj.weight.T
        v = source[row] @ mixer.v_proj.weight.T + (0 if mixer.v_proj.bias is None else mixer.v_proj.bias)
        n, count = x.shape[1], mixer.num_agents
        agents = torch.stack([q[i * n // count : math.ceil((i + 1) * n / count)].mean(dim=0) for i in range(count)])
        mixed = []
        for head in range(mixer.num_heads):
            own = slice(head * mixer.head_dim, (head + 1) * mixer.head_dim)
            gathered = (agents[:, own] @ k[:, own].T / mixer.head_dim**0.5).softmax(dim=-1) @ v[:, own]
            mixed.append((q[:, own] @ agents[:, own].T / mixer.head_dim**0.5).softmax(dim=-1) @ gathered)
        y[row] = torch.cat(mixed, dim=-1) @ mixer.o_proj.weight.T + mixer.o_proj.bias
    return y


@pytest.mark.parametrize(("dim", "heads", "agents"), [(21, 3, 5), (7, 1, 1), (6, 6, 13)])
@pytest.mark.parametrize("tokens", [1, 2, 11, 23])
@pytest.mark.parametrize("bias", [True, False])
def test_is_the_formula(dim: int, heads: int, agents: int, tokens: int, bias: bool) -> None:
    mixer = AgentAttention(dim, num_heads=heads, num_agents=agents, qkv_bias=bias).double()
    x, context = torch.randn(2, tokens, dim).double(), torch.randn(2, 5, dim).double()
    torch.testing.assert_close(mixer(x), by_loops(mixer, x))
    torch.testing.assert_close(mixer(x, context=context), by_loops(mixer, x, context))


def test_gradients_are_those_of_the_formula() -> None:
    mixer = AgentAttention(6, num_heads=2, num_agents=3).double()
    x = torch.randn(2, 7, 6, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(x)
    leaves = (x, *mixer.parameters())
    ours = torch.autograd.grad((mixer(x) * weights).sum(), leaves)
    torch.testing.assert_close(ours, torch.autograd.grad((by_loops(mixer, x) * weights).sum(), leaves))


def test_agents_are_means_of_real_tokens_alone() -> None:
    mixer = AgentAttention(6, num_heads=2, num_agents=3).double()
    x = torch.randn(3, 11, 6, dtype=torch.float64)
    mask = torch.rand(3, 11) < 0.6
    mask[2] = False
    y = mixer(x, mask=mask)
    for row in range(2):
        torch.testing.assert_close(y[row, mask[row]], by_loops(mixer, x[row : row + 1, mask[row]])[0])
    assert (y[~mask] == 0).all()


def test_the_map_has_few_degrees_of_freedom() -> None:
    mixer = AgentAttention(12, num_heads=2, num_agents=3).double()
    square = mixer.attention_map(torch.randn(2, 17, 12, dtype=torch.float64))
    assert (torch.linalg.matrix_rank(square) == 3).all()
    torch.testing.assert_close(square.sum(dim=-1), torch.ones(2, 2, 17, dtype=torch.float64))


def test_a_single_agent_gives_every_token_the_same() -> None:
    y = AgentAttention(6, num_heads=2, num_agents=1)(torch.randn(2, 9, 6))
    torch.testing.assert_close(y, y[:, :1].expand_as(y))


def test_ill_options_are_named() -> None:
    with pytest.raises(ValueError, match="num_agents must be positive, got 0"):
        AgentAttention(6, num_heads=2, num_agents=0)
    with pytest.raises(ValueError, match="multiple of num_heads"):
        AgentAttention(6, num_heads=4)
    with pytest.raises(ValueError, match="refuses causal=True: agents are pooled from all queries"):
        AgentAttention(6, num_heads=2, causal=True)
