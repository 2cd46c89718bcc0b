"""Agent attention of Agent-CSWin: inside stripes of the map, or on the whole map, of what is already projected.

Paper: "Agent Attention: On the Integration of Softmax and Linear Attention", Han et al., ECCV 2024,
https://arxiv.org/abs/2312.08874, the agent attention module.
Compared with LeapLabTHU/Agent-Attention@207ce3eb, `agent_transformer/models/agent_cswin.py:AgentAttention`. In the
published networks every stripe is the whole map.
"""

from __future__ import annotations

from collections.abc import Mapping

from einops import rearrange
from torch import Tensor, nn

from regard.contract import load_strictly
from regard.layers.agent_bias import AGENT_BIAS_NAMES, without_first_axis
from regard.layers.agent_maps import AgentMaps
from regard.layers.cswin_stripes import Maps, Projected, Stripe, pad_stripes, stripe_size
from regard.layers.reference_names import rename_all
from regard.ops.windows import Size


class AgentStripeAttention(nn.Module):
    """Agent attention with biases and the convolution of the values, every stripe being a map of its own.

    Args:
        channels: number of channels, C.
        num_heads: number of heads; must divide `channels`.
        num_agents: number of agents in a stripe, n; a square.
        stripe: "columns", "rows", or "whole" for one stripe that is the map.
        width: columns, or rows, of a stripe.
        size: rows and columns of the map that the tables of biases are made for.

    Raises:
        ValueError: heads that do not divide the channels, agents that form no grid, another kind of stripe, or a size
            that is not positive.

    Cost: 4 n N C + 9 N C MACs for N positions.
    """

    def __init__(
        self, channels: int, *, num_heads: int, num_agents: int, stripe: Stripe, width: int = 1, size: Size
    ) -> None:
        super().__init__()
        made_for = stripe_size(stripe, width, size)
        self.stripe: Stripe = stripe
        self.width = width
        self.agents = AgentMaps(channels, num_heads=num_heads, num_agents=num_agents, size=made_for)

    def forward(self, qkv: Projected) -> Maps:
        """The stripes of the padded map, cropped."""
        height, width = qkv.shape[1], qkv.shape[2]
        size = stripe_size(self.stripe, self.width, (height, width))
        qkv = pad_stripes(qkv, size)
        (sy, sx), ny = size, qkv.shape[1] // size[0]
        q, k, v = rearrange(qkv, "b (ny sy) (nx sx) t c -> t (b ny nx) sy sx c", sy=sy, sx=sx)
        mixed = self.agents(q, k, v)
        joined = rearrange(mixed, "(b ny nx) sy sx c -> b (ny sy) (nx sx) c", b=qkv.shape[0], ny=ny)
        return joined[:, :height, :width]

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout: `get_v`, `an_bias`, ...

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, without_first_axis(rename_all(state_dict, AGENT_STRIPE_NAMES)))


AGENT_STRIPE_NAMES = (
    *AGENT_BIAS_NAMES,
    (r"(^|\.)bias\.(key|query)_", r"\1agents.bias.\2_"),
    (r"(^|\.)get_v\.", r"\1agents.local."),
)
"""The authors' names of the layer's parts as ours, without the layer's own prefix."""
