"""Agent attention of Agent-DeiT: tokens of a map after a class token, which is a key and a query, but no agent's part.

Paper: "Agent Attention: On the Integration of Softmax and Linear Attention", Han et al., ECCV 2024,
https://arxiv.org/abs/2312.08874, the agent attention module.
Compared with LeapLabTHU/Agent-Attention@207ce3eb, `agent_transformer/models/agent_deit.py:AgentAttention`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import load_strictly
from regard.layers.agent_bias import AGENT_BIAS_NAMES, AgentBias, Size, without_first_axis
from regard.layers.reference_names import rename_all
from regard.ops.agent_attention import agent_attention, agent_side, pool_map
from regard.ops.heads import head_width, merge_heads, split_heads

Tokens = Float[Tensor, "batch tokens channels"]


class AgentClassAttention(nn.Module):
    """y = W_o (softmax(Q A^T / sqrt(d) + B2) softmax(A K^T / sqrt(d) + B1) V + DWConv(V)), A = Pool(Q).

    Agents are pooled from, and the convolution acts on, the tokens of the map alone.

    Args:
        channels: width, C.
        num_heads: number of heads; must divide `channels`.
        num_agents: number of agents, n; a square.
        size: rows and columns of the map that the tables of biases are made for.
        qkv_bias: biases in the projections of queries, keys and values.

    Raises:
        ValueError: heads that do not divide the channels, agents that form no grid, or a size that is not positive.

    Cost: 4 N C^2 + 4 n N C + 9 (N - 1) C MACs for N tokens.
    """

    def __init__(self, channels: int, *, num_heads: int, num_agents: int, size: Size, qkv_bias: bool = True) -> None:
        super().__init__()
        head_width(channels, num_heads)
        self.num_heads = num_heads
        self.side = agent_side(num_agents)
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.bias = AgentBias(
            num_heads=num_heads, num_agents=num_agents, key_size=size, query_size=size, class_token=True
        )
        self.local = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.o_proj = nn.Linear(channels, channels)

    def forward(self, x: Tokens, space: Size) -> Tokens:
        """Every token as a query.

        Args:
            x: the class token, then the tokens of the map, row-major.
            space: rows and columns of the map.

        Raises:
            ValueError: another number of tokens.
        """
        if x.shape[1] != 1 + space[0] * space[1]:
            raise ValueError(
                f"x has {x.shape[1]} tokens, it must have a class token and {space[0]} x {space[1]} of the map"
            )
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        agents = split_heads(pool_map(q[:, 1:].unflatten(1, space), self.side), self.num_heads)
        key_bias, query_bias = self.bias(space, space)
        heads = (split_heads(part, self.num_heads) for part in (q, k, v))
        q_heads, k_heads, v_heads = heads
        mixed = agent_attention(q_heads, agents, k_heads, v_heads, key_bias=key_bias, query_bias=query_bias)
        convolved = self.local(v[:, 1:].unflatten(1, space).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        merged = merge_heads(mixed)
        return self.o_proj(torch.cat((merged[:, :1], merged[:, 1:] + convolved), dim=1))

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout: `qkv`, `proj`, `dwc`, `an_bias`, ...

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, without_first_axis(rename_all(state_dict, AGENT_CLASS_NAMES)))


AGENT_CLASS_NAMES = (
    *AGENT_BIAS_NAMES,
    (r"(^|\.)dwc\.", r"\1local."),
    (r"(^|\.)proj\.", r"\1o_proj."),
)
"""The authors' names of the layer's parts as ours, without the layer's own prefix."""
