"""Agent attention of Agent-PVT: projections of its own for queries, and of keys and values from a reducible map.

Paper: "Agent Attention: On the Integration of Softmax and Linear Attention", Han et al., ECCV 2024,
https://arxiv.org/abs/2312.08874, the agent attention module.
Compared with LeapLabTHU/Agent-Attention@207ce3eb, `agent_transformer/models/agent_pvt.py:AgentAttention`. The published
networks reduce nothing here. Maps that the reduction does not divide are padded for keys and values alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import load_strictly
from regard.layers.agent_bias import AGENT_BIAS_NAMES, Size, without_first_axis
from regard.layers.agent_maps import AgentMaps
from regard.layers.reduced_attention import REDUCED_NAMES, reduction_of
from regard.layers.reference_names import rename_all

Maps = Float[Tensor, "batch y x channels"]


class AgentReducedAttention(nn.Module):
    """Agent attention between all positions and those of a reduced map, and the output projection.

    Args:
        channels: number of channels, C.
        num_heads: number of heads; must divide `channels`.
        num_agents: number of agents, n; a square.
        size: rows and columns of the map that the tables of biases are made for.
        reduction: positions per side of the square that becomes one key.
        qkv_bias: biases in the projections of queries, keys and values.

    Raises:
        ValueError: heads that do not divide the channels, agents that form no grid, or a size that is not positive.

    Cost: 2 N C^2 + 2 N' C^2 + 2 n (N + N') C + 9 N C MACs for N queries and N' keys, and N C^2 for reducing.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        num_agents: int,
        size: Size,
        reduction: int = 1,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.q_proj = nn.Linear(channels, channels, bias=qkv_bias)
        self.kv_proj = nn.Linear(channels, 2 * channels, bias=qkv_bias)
        self.reduction = reduction_of(channels, reduction)
        self.agents = AgentMaps(channels, num_heads=num_heads, num_agents=num_agents, size=size, reduction=reduction)
        self.o_proj = nn.Linear(channels, channels)

    def forward(self, x: Maps) -> Maps:
        """Every position of the map as a query."""
        source = x if self.reduction is None else self.reduction(x)
        k, v = self.kv_proj(source).chunk(2, dim=-1)
        return self.o_proj(self.agents(self.q_proj(x), k, v))

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout: `q`, `kv`, `proj`, `sr`, `norm`, `dwc`, `an_bias`, ...

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, without_first_axis(rename_all(state_dict, AGENT_REDUCED_NAMES)))


AGENT_REDUCED_NAMES = (
    *AGENT_BIAS_NAMES,
    (r"(^|\.)bias\.(key|query)_", r"\1agents.bias.\2_"),
    (r"(^|\.)dwc\.", r"\1agents.local."),
    *REDUCED_NAMES,
)
"""The authors' names of the layer's parts as ours, without the layer's own prefix."""
