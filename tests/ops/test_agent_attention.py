"""Agent attention: the formula by loops, the map, pooling over stretches and rectangles, masks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from regard.ops.agent_attention import (
    agent_attention,
    agent_attention_macs,
    agent_side,
    agent_weights,
    pool_map,
    pool_sequence,
)


def by_loops(
    q: Tensor,
    agents: Tensor,
    k: Tensor,
    v: Tensor,
    key_bias: Tensor | None = None,
    query_bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Image by image and head by head, with the softmax written out."""
    batch, heads, _, width = q.shape
    y = q.new_empty(*q.shape[:3], v.shape[3])
    for image in range(batch):
        for head in range(heads):
            gathered = agents[image, head] @ k[image, head].T / math.sqrt(width)
            if key_bias is not None:
                gathered = gathered + key_bias[0, head]
            features = rows_normed(gathered.exp()) @ v[image, head]
            taken = q[image, head] @ agents[image, head].T * (width**-0.5 if scale is None else scale)
            if query_bias is not None:
                taken = taken + query_bias[0, head]
            y[image, head] = rows_normed(taken.exp()) @ features
    return y


def rows_normed(positive: Tensor) -> Tensor:
    return positive / positive.sum(dim=-1, keepdim=True)


def random_parts(queries: int = 11, keys: int = 7, agents: int = 5, width: int = 3) -> list[Tensor]:
    sizes = ((queries, width), (agents, width), (keys, width), (keys, 2))
    return [torch.randn(2, 3, *size, dtype=torch.float64) for size in sizes]


@pytest.mark.parametrize(("queries", "keys", "agents"), [(11, 7, 5), (1, 1, 1), (3, 13, 17), (7, 2, 1)])
@pytest.mark.parametrize("scale", [None, 0.6])
def test_is_the_formula(queries: int, keys: int, agents: int, scale: float | None) -> None:
    parts = random_parts(queries, keys, agents)
    key_bias = torch.randn(1, 3, agents, keys, dtype=torch.float64)
    query_bias = torch.randn(1, 3, queries, agents, dtype=torch.float64)
    given = {"key_bias": key_bias, "query_bias": query_bias, "query_scale": scale}
    torch.testing.assert_close(agent_attention(*parts, **given), by_loops(*parts, key_bias, query_bias, scale))
    torch.testing.assert_close(agent_attention(*parts), by_loops(*parts))


def test_gradients_are_those_of_the_formula() -> None:
    leaves = [part.requires_grad_() for part in random_parts()]
    leaves.append(torch.randn(1, 3, 5, 7, dtype=torch.float64, requires_grad=True))
    leaves.append(torch.randn(1, 3, 11, 5, dtype=torch.float64, requires_grad=True))
    q, agents, k, v, key_bias, query_bias = leaves
    ours = agent_attention(q, agents, k, v, key_bias=key_bias, query_bias=query_bias)
    weights = torch.randn_like(ours)
    theirs = by_loops(q, agents, k, v, key_bias, query_bias)
    expected = torch.autograd.grad((theirs * weights).sum(), leaves)
    torch.testing.assert_close(torch.autograd.grad((ours * weights).sum(), leaves), expected)


def test_the_map_weighs_the_values() -> None:
    q, agents, k, v = random_parts()
    given = {"key_bias": torch.randn(1, 3, 5, 7).double(), "query_scale": 0.3}
    square = agent_weights(q, agents, k, **given)
    torch.testing.assert_close(square @ v, agent_attention(q, agents, k, v, **given))
    torch.testing.assert_close(square.sum(dim=-1), torch.ones(2, 3, 11, dtype=torch.float64))
    assert (torch.linalg.matrix_rank(square) <= 5).all()


def test_hidden_keys_have_no_influence() -> None:
    q, agents, k, v = random_parts()
    visible = torch.tensor([[True] * 4 + [False] * 3, [True] * 7])[:, None, None, :]
    seen = agent_attention(q, agents, k, v, visible=visible)
    torch.testing.assert_close(seen[:1], by_loops(q[:1], agents[:1], k[:1, :, :4], v[:1, :, :4]))
    torch.testing.assert_close(seen[1:], by_loops(q[1:], agents[1:], k[1:], v[1:]))
    assert (agent_weights(q, agents, k, visible=visible)[0, :, :, 4:] == 0).all()


@pytest.mark.parametrize(("tokens", "count"), [(13, 5), (12, 4), (3, 7), (1, 4), (7, 1)])
def test_stretches_of_a_sequence(tokens: int, count: int) -> None:
    q = torch.randn(2, tokens, 3, dtype=torch.float64)
    pooled = pool_sequence(q, count)
    for number in range(count):
        start, stop = number * tokens // count, math.ceil((number + 1) * tokens / count)
        torch.testing.assert_close(pooled[:, number], q[:, start:stop].mean(dim=1))


def test_stretches_are_of_real_tokens() -> None:
    q = torch.randn(4, 11, 3, dtype=torch.float64)
    counts = (11, 7, 1, 0)
    mask = torch.arange(11) < torch.tensor(counts)[:, None]
    pooled = pool_sequence(q, 4, mask=mask)
    for row, count in enumerate(counts[:3]):
        torch.testing.assert_close(pooled[row], pool_sequence(q[row : row + 1, :count], 4)[0])
    assert (pooled[3] == 0).all()
    low = pool_sequence(q.bfloat16(), 4, mask=mask)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.double(), pooled, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("space", [(6, 9), (7, 5), (1, 1), (2, 13)])
def test_rectangles_of_a_map(space: tuple[int, int]) -> None:
    q = torch.randn(2, *space, 3, dtype=torch.float64)
    pooled = pool_map(q, 3)
    for number in range(9):
        (top, bottom), (left, right) = (
            (part * length // 3, math.ceil((part + 1) * length / 3))
            for part, length in zip(divmod(number, 3), space, strict=True)
        )
        torch.testing.assert_close(pooled[:, number], q[:, top:bottom, left:right].mean(dim=(1, 2)))


@pytest.mark.parametrize("ill", [0, -4, 2, 48])
def test_agents_form_a_grid(ill: int) -> None:
    assert agent_side(49) == 7
    with pytest.raises(ValueError, match=f"num_agents must be a positive square .*, got {ill}"):
        agent_side(ill)


def test_cost_is_linear_in_queries_and_keys() -> None:
    assert agent_attention_macs(queries=10, keys=6, num_agents=4, dim=12) == 2 * 4 * 16 * 12
