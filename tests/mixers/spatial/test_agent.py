"""Agent attention on maps: the formula by heads, its map and its reach, other sizes, and the authors' layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from regard.mixers.spatial.agent import AgentAttention2d


def by_heads(mixer: AgentAttention2d, x: Tensor) -> Tensor:
    """Agents by a loop over rectangles, then every head by itself."""
    _, channels, height, width = x.shape
    tokens = x.flatten(2).transpose(1, 2)
    q, k, v = (tokens @ mixer.qkv.weight.T + (0 if mixer.qkv.bias is None else mixer.qkv.bias)).tensor_split(3, dim=-1)
    side = mixer.agents.side
    maps = q.unflatten(1, (height, width))
    agents = []
    for number in range(side**2):
        row, column = divmod(number, side)
        rows = slice(row * height // side, -(-(row + 1) * height // side))
        columns = slice(column * width // side, -(-(column + 1) * width // side))
        agents.append(maps[:, rows, columns].mean(dim=(1, 2)))
    pooled = torch.stack(agents, dim=1)
    key_bias, query_bias = mixer.agents.bias((height, width), (height, width))
    mixed = []
    for own, head in zip(torch.arange(channels).tensor_split(mixer.num_heads), range(mixer.num_heads), strict=True):
        scale = len(own) ** -0.5
        gathered = (pooled[..., own] @ k[..., own].transpose(1, 2) * scale + key_bias[:, head]).softmax(dim=-1)
        taken = (q[..., own] @ pooled[..., own].transpose(1, 2) * scale + query_bias[:, head]).softmax(dim=-1)
        mixed.append(taken @ (gathered @ v[..., own]))
    local = mixer.agents.local
    convolved = conv2d(v.transpose(1, 2).unflatten(2, (height, width)), local.weight, local.bias, 1, 1, 1, channels)
    out = torch.cat(mixed, dim=-1) + convolved.flatten(2).transpose(1, 2)
    return (out @ mixer.o_proj.weight.T + mixer.o_proj.bias).transpose(1, 2).unflatten(2, (height, width))


@pytest.mark.parametrize(("channels", "heads", "agents", "bias"), [(15, 3, 4, True), (7, 1, 9, False), (6, 6, 1, True)])
@pytest.mark.parametrize("space", [(6, 5), (7, 11), (1, 1), (2, 13)])
def test_is_the_formula(channels: int, heads: int, agents: int, bias: bool, space: tuple[int, int]) -> None:
    mixer = AgentAttention2d(channels, num_heads=heads, num_agents=agents, window_size=(6, 5), qkv_bias=bias).double()
    x = torch.randn(2, channels, *space, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), by_heads(mixer, x))


def test_gradients_are_those_of_the_formula() -> None:
    mixer = AgentAttention2d(6, num_heads=2, num_agents=4, window_size=3).double()
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(x)
    leaves = (x, *mixer.parameters())
    ours = torch.autograd.grad((mixer(x) * weights).sum(), leaves)
    torch.testing.assert_close(ours, torch.autograd.grad((by_heads(mixer, x) * weights).sum(), leaves))


def test_every_position_reaches_every_other() -> None:
    mixer = AgentAttention2d(6, num_heads=2, num_agents=4, window_size=9).double()
    x = torch.randn(1, 6, 9, 9, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(mixer(x)[0, :, 0, 0].sum(), x)
    assert (gradient.abs().amax(dim=1) > 0).all()


def test_the_map_is_a_distribution_of_low_rank() -> None:
    shown = (
        AgentAttention2d(6, num_heads=2, num_agents=4, window_size=5)
        .double()
        .attention_map(torch.randn(2, 6, 5, 7, dtype=torch.float64))
    )
    assert shown.shape == (2, 2, 35, 35)
    torch.testing.assert_close(shown.sum(dim=-1), torch.ones(2, 2, 35, dtype=torch.float64))
    assert (torch.linalg.matrix_rank(shown) <= 4).all()


def test_loads_the_authors_layout_strictly() -> None:
    mixer = AgentAttention2d(6, num_heads=2, num_agents=4, window_size=(5, 3))
    shapes = {
        "an_bias": (2, 4, 7, 7),
        "na_bias": (2, 4, 7, 7),
        "ah_bias": (1, 2, 4, 5, 1),
        "aw_bias": (1, 2, 4, 1, 3),
        "ha_bias": (1, 2, 5, 1, 4),
        "wa_bias": (1, 2, 1, 3, 4),
        "dwc.weight": (6, 1, 3, 3),
        "dwc.bias": (6,),
        "qkv.weight": (18, 6),
        "qkv.bias": (18,),
        "proj.weight": (6, 6),
        "proj.bias": (6,),
    }
    layout = {name: torch.rand(shape) for name, shape in shapes.items()}
    mixer.load_reference(layout)
    tables = mixer.agents.bias
    assert torch.equal(tables.query_grid, layout["na_bias"])
    assert torch.equal(tables.key_columns, layout["aw_bias"][0])
    assert torch.equal(tables.query_rows, layout["ha_bias"][0])
    assert torch.equal(mixer.agents.local.bias, layout["dwc.bias"])
    with pytest.raises(KeyError, match=r"missing keys: o_proj\.bias"):
        mixer.load_reference({name: value for name, value in layout.items() if name != "proj.bias"})
    with pytest.raises(ValueError, match="it must be"):
        mixer.load_reference({**layout, "ah_bias": torch.rand(1, 2, 4, 6, 1)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 4}, "multiple of num_heads"),
        ({"num_heads": 2, "num_agents": 8}, "num_agents must be a positive square .*, got 8"),
        ({"num_heads": 2, "window_size": 0}, "must be positive"),
    ],
)
def test_ill_options_are_named(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AgentAttention2d(6, **options)
