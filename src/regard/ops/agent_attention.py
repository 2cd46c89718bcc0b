"""Agent attention: a few agents gather from all keys, and every query takes from the agents.

Two softmax attentions in a row, whose cost is linear in the number of tokens; as a product of two feature maps it is a
linear attention: O = phi_q(Q) phi_k(K)^T V with phi_q(Q) = softmax(Q A^T) and phi_k(K) = softmax(A K^T)^T.
Paper: "Agent Attention: On the Integration of Softmax and Linear Attention", Han et al., ECCV 2024,
https://arxiv.org/abs/2312.08874, agent attention and generalised linear attention.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from regard.ops.precision import compute_dtype, without_autocast
from regard.ops.softmax_attention import softmax_attention, softmax_weights

Queries = Float[Tensor, "batch heads queries head_dim"]
Agents = Float[Tensor, "batch heads agents head_dim"]
Keys = Float[Tensor, "batch heads keys head_dim"]
KeyBias = Float[Tensor, "#batch heads agents keys"]
QueryBias = Float[Tensor, "#batch heads queries agents"]
Visible = Bool[Tensor, "#batch #heads #agents keys"]


def agent_attention(
    q: Queries,
    agents: Agents,
    k: Keys,
    v: Float[Tensor, "batch heads keys value_dim"],
    *,
    key_bias: KeyBias | None = None,
    query_bias: QueryBias | None = None,
    visible: Visible | None = None,
    query_scale: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """softmax(s' Q A^T + B2) softmax(s A K^T + B1) V, s = 1 / sqrt(d).

    Args:
        q: queries.
        agents: what gathers from the keys, and what queries take from.
        k: keys.
        v: values.
        key_bias: added to the scores between agents and keys, B1.
        query_bias: added to the scores between queries and agents, B2.
        visible: which keys an agent may see. Where it sees none, the result is undefined, but finite.
        query_scale: factor of the scores between queries and agents, s'; None = s.
        dropout: probability of dropping a weight, in both softmaxes.
    """
    gathered = softmax_attention(agents, k, v, visible=visible, bias=key_bias, dropout=dropout)
    return softmax_attention(_rescaled(q, query_scale), agents, gathered, bias=query_bias, dropout=dropout)


@without_autocast
def agent_weights(
    q: Queries,
    agents: Agents,
    k: Keys,
    *,
    key_bias: KeyBias | None = None,
    query_bias: QueryBias | None = None,
    visible: Visible | None = None,
    query_scale: float | None = None,
) -> Float[Tensor, "batch heads queries keys"]:
    """The product of both softmaxes, which weighs the values: rows sum to 1, and its rank is at most the agents'."""
    taken = softmax_weights(_rescaled(q, query_scale), agents, bias=query_bias)
    return taken @ softmax_weights(agents, k, visible=visible, bias=key_bias)


def agent_attention_macs(*, queries: int, keys: int, num_agents: int, dim: int) -> int:
    """MACs of both attentions for a row; `dim` is that of all heads together."""
    return 2 * num_agents * (queries + keys) * dim


def pool_sequence(
    q: Float[Tensor, "batch tokens channels"], num_agents: int, *, mask: Bool[Tensor, "batch tokens"] | None = None
) -> Float[Tensor, "batch agents channels"]:
    """Means over `num_agents` stretches of the sequence, as even as can be; they overlap where they do not fit.

    Stretch i of n tokens goes from floor(i n / agents) to ceil((i + 1) n / agents), the end excluded.

    Args:
        q: what is pooled.
        num_agents: number of stretches; may exceed the number of tokens.
        mask: True on a prefix of each row, of which alone the stretches are made; a row without any gives zeros.
    """
    if mask is None:
        # a map that is one column wide, whose channels lie last: nothing is copied
        return adaptive_avg_pool2d(q.transpose(1, 2).unsqueeze(-1), (num_agents, 1)).squeeze(-1).transpose(1, 2)
    dtype, counts = compute_dtype(q), mask.sum(dim=1, keepdim=True)
    numbers = torch.arange(num_agents, device=q.device)
    starts = (numbers * counts) // num_agents
    stops = ((numbers + 1) * counts + num_agents - 1) // num_agents
    places = torch.arange(q.shape[1], device=q.device)
    inside = (places >= starts[..., None]) & (places < stops[..., None])
    sums = inside.to(dtype) @ q.to(dtype)
    return (sums / (stops - starts).clamp(min=1)[..., None]).to(q.dtype)


def pool_map(q: Float[Tensor, "batch y x channels"], side: int) -> Float[Tensor, "batch agents channels"]:
    """Means over `side` x `side` rectangles of the map, row-major; they overlap where they do not fit."""
    return adaptive_avg_pool2d(q.permute(0, 3, 1, 2), (side, side)).flatten(2).transpose(1, 2)


def agent_side(num_agents: int) -> int:
    """Agents per side of the map.

    Raises:
        ValueError: a number that is no square.
    """
    side = math.isqrt(max(num_agents, 0))
    if num_agents < 1 or side**2 != num_agents:
        raise ValueError(f"num_agents must be a positive square (agents form a grid), got {num_agents}")
    return side


def _rescaled(q: Queries, scale: float | None) -> Queries:
    return q if scale is None else q * (scale * math.sqrt(q.shape[-1]))
