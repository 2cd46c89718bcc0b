"""The position biases of agent attention: tables for agents and keys, and for queries and agents, on maps of any size.

Paper: "Agent Attention: On the Integration of Softmax and Linear Attention", Han et al., ECCV 2024,
https://arxiv.org/abs/2312.08874, agent bias.
Compared with LeapLabTHU/Agent-Attention@207ce3eb, `agent_transformer/models/*.py:AgentAttention`. There the
tables of rows and columns tie the layer to one size of map; here they are interpolated, linearly between the centres of
their cells, where the map has another size. There tables but the coarse ones have a first
axis of length 1, which is left out here: a network cannot change its memory format with parameters of five axes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from regard.layers.derived_by_size import ModuleWithDerived

GRID = 7
"""Cells per side of the coarse tables, which are interpolated to every map."""
_STD = 0.02

Size = tuple[int, int]
Biases = tuple[Float[Tensor, "1 heads agents keys"], Float[Tensor, "1 heads queries agents"]]


class AgentBias(ModuleWithDerived):
    """B = interpolated coarse table + rows + columns, for the keys (B1) and for the queries (B2) of every agent.

    Args:
        num_heads: number of heads.
        num_agents: number of agents.
        key_size: rows and columns of the keys' map that the tables are made for.
        query_size: the same of the queries' map.
        class_token: a further number for the class token, which is the first key and the first query.

    Raises:
        ValueError: a number or a size that is not positive.
    """

    def __init__(
        self, *, num_heads: int, num_agents: int, key_size: Size, query_size: Size, class_token: bool = False
    ) -> None:
        super().__init__()
        if min(num_heads, num_agents, *key_size, *query_size) < 1:
            raise ValueError(
                f"num_heads, num_agents and the sizes of maps must be positive, got {num_heads}, {num_agents}, "
                f"{key_size} and {query_size}"
            )
        heads, agents = num_heads, num_agents
        self.key_grid = _table(heads, agents, GRID, GRID)
        self.query_grid = _table(heads, agents, GRID, GRID)
        self.key_rows = _table(heads, agents, key_size[0], 1)
        self.key_columns = _table(heads, agents, 1, key_size[1])
        self.query_rows = _table(heads, query_size[0], 1, agents)
        self.query_columns = _table(heads, 1, query_size[1], agents)
        self.key_class = _table(heads, agents, 1) if class_token else None
        self.query_class = _table(heads, 1, agents) if class_token else None

    def forward(self, key_size: Size, query_size: Size) -> Biases:
        """B1 and B2 for maps of these sizes, row-major, after the class token's where there is one."""
        key_bias, query_bias = self.derive((key_size, query_size), lambda: self._biases(key_size, query_size))
        return key_bias, query_bias

    def _biases(self, key_size: Size, query_size: Size) -> Biases:
        key_bias = _sum(self.key_grid, self.key_rows, self.key_columns, key_size)
        query_rows, query_columns = (table.permute(0, 3, 1, 2) for table in (self.query_rows, self.query_columns))
        query_bias = _sum(self.query_grid, query_rows, query_columns, query_size).transpose(1, 2).contiguous()
        if self.key_class is not None and self.query_class is not None:
            key_bias = torch.cat((self.key_class, key_bias), dim=2)
            query_bias = torch.cat((self.query_class, query_bias), dim=1)
        return key_bias[None], query_bias[None]


def _table(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=_STD))


def _sum(grid: Tensor, rows: Tensor, columns: Tensor, size: Size) -> Float[Tensor, "heads agents positions"]:
    """All tables `(heads, agents, y, x)`, at the size that is wanted."""
    whole = _resized(grid, size) + _resized(rows, (size[0], 1)) + _resized(columns, (1, size[1]))
    return whole.flatten(2)


def _resized(table: Float[Tensor, "heads agents y x"], size: Size) -> Float[Tensor, "heads agents sy sx"]:
    if tuple(table.shape[2:]) == size:
        return table
    return interpolate(table, size=size, mode="bilinear")


AGENT_BIAS_NAMES = (
    (r"(^|\.)an_bias$", r"\1bias.key_grid"),
    (r"(^|\.)na_bias$", r"\1bias.query_grid"),
    (r"(^|\.)ah_bias$", r"\1bias.key_rows"),
    (r"(^|\.)aw_bias$", r"\1bias.key_columns"),
    (r"(^|\.)ha_bias$", r"\1bias.query_rows"),
    (r"(^|\.)wa_bias$", r"\1bias.query_columns"),
    (r"(^|\.)ac_bias$", r"\1bias.key_class"),
    (r"(^|\.)ca_bias$", r"\1bias.query_class"),
)
"""The authors' names of the tables as ours, of which a module `bias` is the owner."""

_WITH_FIRST_AXIS = re.compile(r"(^|\.)bias\.(key|query)_(rows|columns|class)$")


def without_first_axis(renamed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tables under our names without the authors' first axis, which is 1; other tensors as they are."""
    axes = {"rows": 5, "columns": 5, "class": 4}
    made = dict(renamed)
    for name, tensor in renamed.items():
        found = _WITH_FIRST_AXIS.search(name)
        if found is not None and tensor.ndim == axes[found[3]]:
            made[name] = tensor.squeeze(0)
    return made
