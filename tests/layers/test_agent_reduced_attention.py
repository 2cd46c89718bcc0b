"""Agent-PVT's attention: projections around the maps' attention, other sizes, and the authors' layout."""

from __future__ import annotations

import pytest
import torch

from regard.layers.agent_reduced_attention import AgentReducedAttention

NAMES = {
    "q_proj": "q",
    "kv_proj": "kv",
    "o_proj": "proj",
    "reduction.conv": "sr",
    "reduction.norm": "norm",
    "agents.local": "dwc",
    "agents.bias.key_grid": "an_bias",
    "agents.bias.query_grid": "na_bias",
    "agents.bias.key_rows": "ah_bias",
    "agents.bias.key_columns": "aw_bias",
    "agents.bias.query_rows": "ha_bias",
    "agents.bias.query_columns": "wa_bias",
}


def theirs(name: str) -> str:
    for ours, other in NAMES.items():
        if name.startswith(ours):
            return other + name.removeprefix(ours)
    raise AssertionError(name)


@pytest.mark.parametrize("reduction", [1, 2])
@pytest.mark.parametrize("space", [(6, 4), (7, 5), (1, 1)])
def test_is_projections_around_agents(reduction: int, space: tuple[int, int]) -> None:
    layer = AgentReducedAttention(6, num_heads=2, num_agents=4, size=(6, 4), reduction=reduction).double()
    x = torch.randn(2, *space, 6, dtype=torch.float64, requires_grad=True)
    source = x if layer.reduction is None else layer.reduction(x)
    both = layer.kv_proj(source)
    expected = layer.o_proj(layer.agents(layer.q_proj(x), both[..., :6], both[..., 6:]))
    y = layer(x)
    torch.testing.assert_close(y, expected)
    (gradient,) = torch.autograd.grad(y[:, 0, 0].sum(), x)
    assert (gradient.abs().sum(dim=-1) > 0).all()


@pytest.mark.parametrize("reduction", [1, 2])
def test_loads_the_authors_layout_strictly(reduction: int) -> None:
    layer = AgentReducedAttention(6, num_heads=2, num_agents=4, size=(6, 4), reduction=reduction)
    layout = {}
    for name, value in layer.state_dict().items():
        has_first_axis = name.endswith(("_rows", "_columns"))
        layout[theirs(name)] = torch.rand(1, *value.shape) if has_first_axis else torch.rand_like(value)
    assert layout["ah_bias"].shape == (1, 2, 4, 6 // reduction, 1)
    layer.load_reference(layout)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, layout[theirs(name)].view(value.shape)), name
    with pytest.raises(KeyError, match=r"missing keys: agents\.bias\.query_grid"):
        layer.load_reference({name: value for name, value in layout.items() if name != "na_bias"})


def test_reduction_must_be_positive() -> None:
    with pytest.raises(ValueError, match="reduction must be positive, got 0"):
        AgentReducedAttention(6, num_heads=2, num_agents=4, size=(6, 4), reduction=0)
