"""Agent-DeiT's attention: the formula with a class token, other sizes, and the authors' layout."""

from __future__ import annotations

import pytest
import torch

from regard.layers.agent_class_attention import AgentClassAttention


def by_heads(layer: AgentClassAttention, x: torch.Tensor, space: tuple[int, int]) -> torch.Tensor:
    """Head by head, the class token apart from pooling and convolution."""
    channels, heads = x.shape[2], layer.num_heads
    q, k, v = (x @ layer.qkv.weight.T + layer.qkv.bias).tensor_split(3, dim=-1)
    side = layer.side
    maps = q[:, 1:].unflatten(1, space)
    agents = []
    for number in range(side**2):
        (top, bottom), (left, right) = (
            (part * length // side, -(-(part + 1) * length // side))
            for part, length in zip(divmod(number, side), space, strict=True)
        )
        agents.append(maps[:, top:bottom, left:right].mean(dim=(1, 2)))
    pooled = torch.stack(agents, dim=1)
    key_bias, query_bias = layer.bias(space, space)
    width = channels // heads
    mixed = []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        gathered = pooled[..., own] @ k[..., own].transpose(1, 2) / width**0.5 + key_bias[:, head]
        taken = q[..., own] @ pooled[..., own].transpose(1, 2) / width**0.5 + query_bias[:, head]
        mixed.append(taken.softmax(dim=-1) @ (gathered.softmax(dim=-1) @ v[..., own]))
    out = torch.cat(mixed, dim=-1)
    local = layer.local(v[:, 1:].transpose(1, 2).unflatten(2, space)).flatten(2).transpose(1, 2)
    return layer.o_proj(out + torch.cat((torch.zeros_like(local[:, :1]), local), dim=1))


@pytest.mark.parametrize("space", [(5, 5), (4, 7), (1, 1)])
def test_is_the_formula(space: tuple[int, int]) -> None:
    layer = AgentClassAttention(6, num_heads=2, num_agents=4, size=(5, 5)).double()
    x = torch.randn(2, 1 + space[0] * space[1], 6, dtype=torch.float64, requires_grad=True)
    ours, expected = layer(x, space), by_heads(layer, x, space)
    torch.testing.assert_close(ours, expected)
    weights = torch.randn_like(ours)
    leaves = (x, layer.qkv.weight, layer.local.weight, layer.bias.query_grid)
    wanted = torch.autograd.grad((expected * weights).sum(), leaves)
    torch.testing.assert_close(torch.autograd.grad((ours * weights).sum(), leaves), wanted)


def test_loads_the_authors_layout_strictly() -> None:
    layer = AgentClassAttention(6, num_heads=2, num_agents=4, size=(5, 5))
    names = {"key_grid": "an", "query_grid": "na", "key_rows": "ah", "key_columns": "aw", "query_rows": "ha"}
    names |= {"query_columns": "wa", "key_class": "ac", "query_class": "ca"}
    layout = {}
    for name, value in layer.state_dict().items():
        own = name.removeprefix("bias.")
        theirs = f"{names[own]}_bias" if own in names else name.replace("o_proj", "proj").replace("local", "dwc")
        has_first_axis = own in names and not own.endswith("_grid")
        layout[theirs] = torch.rand(1, *value.shape) if has_first_axis else torch.rand_like(value)
    layer.load_reference(layout)
    assert torch.equal(layer.bias.query_columns, layout["wa_bias"][0])
    assert torch.equal(layer.o_proj.bias, layout["proj.bias"])
    assert layout["ca_bias"].shape == (1, 2, 1, 4)
    with pytest.raises(KeyError, match=r"unknown keys: xx_bias"):
        layer.load_reference({**layout, "xx_bias": torch.zeros(1)})


def test_the_class_token_must_be_there() -> None:
    layer = AgentClassAttention(6, num_heads=2, num_agents=4, size=(5, 5))
    with pytest.raises(ValueError, match="x has 25 tokens, it must have a class token and 5 x 5 of the map"):
        layer(torch.zeros(1, 25, 6), (5, 5))
    with pytest.raises(ValueError, match="num_agents must be a positive square"):
        AgentClassAttention(6, num_heads=2, num_agents=6, size=(5, 5))
    with pytest.raises(ValueError, match="multiple of num_heads"):
        AgentClassAttention(6, num_heads=5, num_agents=4, size=(5, 5))
