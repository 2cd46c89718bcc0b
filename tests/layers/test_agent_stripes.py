"""Agent-CSwin's branches: every stripe by itself, padding, and the authors' layout."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import pad

from regard.layers.agent_stripes import AgentStripeAttention
from regard.layers.cswin_stripes import Stripe, stripe_size


@pytest.mark.parametrize("stripe", ["columns", "rows", "whole"])
@pytest.mark.parametrize("space", [(6, 4), (5, 7), (1, 1)])
def test_every_stripe_is_a_map(stripe: Stripe, space: tuple[int, int]) -> None:
    layer = AgentStripeAttention(6, num_heads=2, num_agents=4, stripe=stripe, width=2, size=(6, 4)).double()
    qkv = torch.randn(2, *space, 3, 6, dtype=torch.float64)
    sy, sx = stripe_size(stripe, 2, space)
    padded = pad(qkv, (0, 0, 0, 0, 0, -space[1] % sx, 0, -space[0] % sy))
    expected = torch.zeros_like(padded[:, :, :, 0])
    for top in range(0, padded.shape[1], sy):
        for left in range(0, padded.shape[2], sx):
            q, k, v = padded[:, top : top + sy, left : left + sx].unbind(3)
            expected[:, top : top + sy, left : left + sx] = layer.agents(q, k, v)
    torch.testing.assert_close(layer(qkv), expected[:, : space[0], : space[1]])


def test_loads_the_authors_layout_strictly() -> None:
    layer = AgentStripeAttention(6, num_heads=2, num_agents=4, stripe="columns", width=3, size=(6, 9))
    layout = {}
    for name, value in layer.state_dict().items():
        kind, _, part = name.rpartition("agents.bias.")[2].partition("_")
        theirs = {"grid": "n", "rows": "h", "columns": "w"}.get(part)
        if theirs is None:
            layout[f"get_v.{name.rpartition('.')[2]}"] = torch.rand_like(value)
        else:
            shape = value.shape if part == "grid" else (1, *value.shape)
            layout[("a" + theirs if kind == "key" else theirs + "a") + "_bias"] = torch.rand(shape)
    assert layout["aw_bias"].shape == (1, 2, 4, 1, 3)
    assert layout["ha_bias"].shape == (1, 2, 6, 1, 4)
    layer.load_reference(layout)
    assert torch.equal(layer.agents.local.weight, layout["get_v.weight"])
    assert torch.equal(layer.agents.bias.query_columns, layout["wa_bias"][0])
    with pytest.raises(KeyError, match=r"unknown keys: dwc\.weight"):
        layer.load_reference({**layout, "dwc.weight": torch.zeros(1)})


def test_agents_form_a_grid() -> None:
    with pytest.raises(ValueError, match="num_agents must be a positive square"):
        AgentStripeAttention(6, num_heads=2, num_agents=3, stripe="whole", size=(6, 9))
    with pytest.raises(ValueError, match="positive width, got 'rows', 0"):
        AgentStripeAttention(6, num_heads=2, num_agents=4, stripe="rows", width=0, size=(6, 9))
