"""Agent attention between maps that are already projected, with its position biases and its convolution of the values.

Paper: "Agent Attention: On the Integration of Softmax and Linear Attention", Han et al., ECCV 2024,
https://arxiv.org/abs/2312.08874, the agent attention module.
Compared with LeapLabTHU/Agent-Attention@207ce3eb, `agent_transformer/models/agent_{pvt,swin,cswin}.py:AgentAttention`.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from regard.layers.agent_bias import AgentBias, Size
from regard.ops.agent_attention import agent_attention, agent_attention_macs, agent_side, agent_weights, pool_map
from regard.ops.heads import head_width, merge_heads, split_heads

Maps = Float[Tensor, "batch y x channels"]


class AgentMaps(nn.Module):
    """O = softmax(Q A^T / sqrt(d) + B2) softmax(A K^T / sqrt(d) + B1) V + DWConv(V), A = Pool(Q), in every head.

    Keys and values may be on a coarser map than queries; the values are then resized for the convolution.

    Args:
        channels: width of queries, keys and values.
        num_heads: number of heads; must divide `channels`.
        num_agents: number of agents, n; a square.
        size: rows and columns of the queries' map that the tables of biases are made for; others are interpolated.
        reduction: rows and columns of the queries' map per one of the keys'.
        attn_drop: probability of dropping a weight in training.

    Raises:
        ValueError: heads that do not divide the channels, agents that form no grid, or a size that is not positive.

    Cost: 2 n (N + N') C + 9 N C MACs for N queries and N' keys.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        num_agents: int,
        size: Size,
        reduction: int = 1,
        attn_drop: float = 0.0,
    ) -> None:
        super().__init__()
        head_width(channels, num_heads)
        if reduction < 1:
            raise ValueError(f"reduction must be positive, got {reduction}")
        self.num_heads = num_heads
        self.side = agent_side(num_agents)
        self.reduction = reduction
        self.attn_drop = attn_drop
        self.bias = AgentBias(
            num_heads=num_heads, num_agents=num_agents, key_size=reduced_size(size, reduction), query_size=size
        )
        self.local = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, q: Maps, k: Float[Tensor, "batch ky kx channels"], v: Tensor) -> Maps:
        """The attention's output and the convolved values, before any projection."""
        space = (q.shape[1], q.shape[2])
        q_heads, agents, k_heads, v_heads = self._heads(q, k, v)
        key_bias, query_bias = self.bias((k.shape[1], k.shape[2]), space)
        mixed = agent_attention(
            q_heads,
            agents,
            k_heads,
            v_heads,
            key_bias=key_bias,
            query_bias=query_bias,
            dropout=self.attn_drop if self.training else 0.0,
        )
        return merge_heads(mixed).unflatten(1, space) + self._convolved(v, space)

    def weights(
        self, q: Maps, k: Float[Tensor, "batch ky kx channels"]
    ) -> Float[Tensor, "batch heads queries positions"]:
        """The product of both softmaxes; the convolution is not part of it."""
        q_heads, agents, k_heads, _ = self._heads(q, k, k)
        key_bias, query_bias = self.bias((k.shape[1], k.shape[2]), (q.shape[1], q.shape[2]))
        return agent_weights(q_heads, agents, k_heads, key_bias=key_bias, query_bias=query_bias)

    def _heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        agents = split_heads(pool_map(q, self.side), self.num_heads)
        q, k, v = (split_heads(x.flatten(1, 2), self.num_heads) for x in (q, k, v))
        return q, agents, k, v

    def _convolved(self, v: Tensor, space: Size) -> Maps:
        maps = v.permute(0, 3, 1, 2)
        if self.reduction > 1:
            whole = (v.shape[1] * self.reduction, v.shape[2] * self.reduction)
            # padding that filled the last keys is cut off
            maps = interpolate(maps, size=whole, mode="bilinear")[:, :, : space[0], : space[1]]
        return self.local(maps).permute(0, 2, 3, 1)


def reduced_size(size: Size, reduction: int) -> Size:
    """Rows and columns of a padded map after squares of `reduction` positions per side have become one."""
    return (-(-size[0] // reduction), -(-size[1] // reduction))


def agent_maps_macs(*, queries: int, keys: int, num_agents: int, channels: int) -> int:
    """MACs of `AgentMaps` for one row of the batch."""
    attention = agent_attention_macs(queries=queries, keys=keys, num_agents=num_agents, dim=channels)
    return attention + 9 * queries * channels
