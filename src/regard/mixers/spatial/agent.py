"""Agent attention on maps, as in Agent-Swin: the window is the whole map, whose agents form a coarse grid.

Paper: "Agent Attention: On the Integration of Softmax and Linear Attention", Han et al., ECCV 2024,
https://arxiv.org/abs/2312.08874, the agent attention module.
Compared with LeapLabTHU/Agent-Attention@207ce3eb, `agent_transformer/models/agent_swin.py:AgentAttention`. There the
tables of biases tie the layer to one size of map; here they are interpolated where the map has another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace

from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import FeatureMixer, load_strictly
from regard.layers.agent_bias import AGENT_BIAS_NAMES, Size, without_first_axis
from regard.layers.agent_maps import AgentMaps, agent_maps_macs
from regard.layers.reference_names import rename_all
from regard.metadata import Example, Traits
from regard.mixers.sequence.agent import AGENT_PAPER
from regard.registry import register

Maps = Float[Tensor, "batch channels y x"]


@register(
    name="agent_2d",
    system="agent",
    paper=replace(AGENT_PAPER, where="the agent attention module"),
    traits=Traits.of_feature_mixer(spatial_dims=(2,), has_map=True, row_stochastic=True),
    example=Example(
        kwargs={"channels": 15, "num_heads": 3, "num_agents": 4, "window_size": (5, 11)}, batch=2, space=(6, 9)
    ),
)
class AgentAttention2d(FeatureMixer):
    """Agent attention with position biases, and a depth-wise convolution of the values.

    y = W_o (softmax(Q A^T / sqrt(d) + B2) softmax(A K^T / sqrt(d) + B1) V + DWConv(V)), A = Pool(Q); the pool is over
    the grid of agents' rectangles, of all heads alike.

    Args:
        channels: number of channels, C.
        num_heads: number of heads; must divide `channels`.
        num_agents: number of agents, n; a square.
        window_size: rows and columns of the maps that the tables of biases are made for, or one number for both;
            other sizes interpolate them.
        qkv_bias: biases in the projections of queries, keys and values.
        attn_drop: probability of dropping a weight of either softmax in training.
        proj_drop: probability of dropping an output feature in training.

    Raises:
        ValueError: heads that do not divide the channels, agents that form no grid, or a size that is not positive.

    Cost: 4 N C^2 + 4 n N C + 9 N C MACs for N positions.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 8,
        num_agents: int = 9,
        window_size: int | Size = 14,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(channels)
        self.num_heads = num_heads
        size = (window_size, window_size) if isinstance(window_size, int) else window_size
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.agents = AgentMaps(
            channels, num_heads=num_heads, num_agents=num_agents, size=(size[0], size[1]), attn_drop=attn_drop
        )
        self.o_proj = nn.Linear(channels, channels)
        self.proj_drop = nn.Dropout(proj_drop)

    def mix(self, x: Maps, *, context: Maps | None) -> Maps:
        """Every position attends to every other, through the agents."""
        q, k, v = self.qkv(x.permute(0, 2, 3, 1)).chunk(3, dim=-1)
        return self.proj_drop(self.o_proj(self.agents(q, k, v))).permute(0, 3, 1, 2)

    def attention_map(self, x: Maps) -> Float[Tensor, "batch heads positions positions"]:
        """The product of both softmaxes over row-major positions; the convolution of the values is not part of it.

        Raises:
            ValueError: a number of dimensions or channels that does not fit.
        """
        self._check_features(x, "x")
        q, k, _ = self.qkv(x.permute(0, 2, 3, 1)).chunk(3, dim=-1)
        return self.agents.weights(q, k)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, space: tuple[int, ...]) -> int:
        """Projections, both attentions, and the convolution; pooling counts nothing."""
        positions, channels = space[0] * space[1], options.channels
        agents = agent_maps_macs(queries=positions, keys=positions, num_agents=options.num_agents, channels=channels)
        return batch * (4 * positions * channels**2 + agents)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout: `qkv`, `proj`, `dwc`, `an_bias`, ...

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, without_first_axis(rename_all(state_dict, AGENT_2D_NAMES)))


AGENT_2D_NAMES = (
    *AGENT_BIAS_NAMES,
    (r"(^|\.)bias\.(key|query)_", r"\1agents.bias.\2_"),
    (r"(^|\.)dwc\.", r"\1agents.local."),
    (r"(^|\.)proj\.", r"\1o_proj."),
)
"""The authors' names of the layer's parts as ours, without the layer's own prefix."""
