"""Agent attention between maps: the formula with the convolution, reduced keys, the map, and ill sizes."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from regard.layers.agent_maps import AgentMaps, agent_maps_macs, reduced_size
from regard.measure import contraction_macs


def random_maps(layer: AgentMaps, q_size: tuple[int, int], k_size: tuple[int, int]) -> list[torch.Tensor]:
    channels = layer.local.in_channels
    return [torch.randn(2, *size, channels, dtype=torch.float64) for size in (q_size, k_size, k_size)]


@pytest.mark.parametrize("space", [(6, 5), (7, 9), (1, 1)])
def test_is_the_map_times_values_and_a_convolution(space: tuple[int, int]) -> None:
    layer = AgentMaps(6, num_heads=2, num_agents=4, size=(6, 5)).double()
    q, k, v = random_maps(layer, space, space)
    values = v.flatten(1, 2).unflatten(2, (2, 3)).transpose(1, 2)
    mixed = (layer.weights(q, k) @ values).transpose(1, 2).flatten(2).unflatten(1, space)
    padded = torch.nn.functional.pad(v, (0, 0, 1, 1, 1, 1))
    local = layer.local.bias.expand(2, *space, 6).clone()
    for dy in range(3):
        for dx in range(3):
            local += padded[:, dy : dy + space[0], dx : dx + space[1]] * layer.local.weight[:, 0, dy, dx]
    torch.testing.assert_close(layer(q, k, v), mixed + local)


def test_agents_are_pooled_from_all_heads_alike() -> None:
    layer = AgentMaps(6, num_heads=3, num_agents=4, size=(4, 6)).double()
    q, k, _ = random_maps(layer, (4, 6), (4, 6))
    agents = torch.stack([q[:, y : y + 2, x : x + 3].mean(dim=(1, 2)) for y in (0, 2) for x in (0, 3)], dim=1)
    key_bias, query_bias = layer.bias((4, 6), (4, 6))
    shown = layer.weights(q, k)
    for head in range(3):
        own = slice(2 * head, 2 * head + 2)
        first = (q.flatten(1, 2)[..., own] @ agents[..., own].transpose(1, 2) / 2**0.5 + query_bias[:, head]).softmax(
            -1
        )
        second = (agents[..., own] @ k.flatten(1, 2)[..., own].transpose(1, 2) / 2**0.5 + key_bias[:, head]).softmax(-1)
        torch.testing.assert_close(shown[:, head], first @ second)


@pytest.mark.parametrize("space", [(6, 4), (5, 7), (1, 1)])
def test_values_of_a_coarser_map_are_resized(space: tuple[int, int]) -> None:
    layer = AgentMaps(4, num_heads=2, num_agents=1, size=(6, 4), reduction=2).double()
    coarse = reduced_size(space, 2)
    q, k, v = random_maps(layer, space, coarse)
    # a single agent hands the same to all queries
    values = v.flatten(1, 2).unflatten(2, (2, 2)).transpose(1, 2)
    mixed = (layer.weights(q, k) @ values).transpose(1, 2).flatten(2).unflatten(1, space)
    whole = interpolate(v.permute(0, 3, 1, 2), scale_factor=2, mode="bilinear")[:, :, : space[0], : space[1]]
    torch.testing.assert_close(layer(q, k, v), mixed + layer.local(whole).permute(0, 2, 3, 1))


def test_dropout_is_off_in_evaluation() -> None:
    layer = AgentMaps(4, num_heads=2, num_agents=4, size=(5, 5), attn_drop=0.5).double()
    q, k, v = random_maps(layer, (5, 5), (5, 5))
    assert not torch.equal(layer(q, k, v), layer(q, k, v))
    assert torch.equal(layer.eval()(q, k, v), layer(q, k, v))


def test_cost_is_what_a_forward_counts() -> None:
    layer = AgentMaps(6, num_heads=2, num_agents=9, size=(8, 6), reduction=2).double().eval()
    parts = random_maps(layer, (8, 6), (4, 3))
    counted = contraction_macs(lambda: layer(*parts))
    assert counted == 2 * agent_maps_macs(queries=48, keys=12, num_agents=9, channels=6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 4}, "multiple of num_heads"),
        ({"num_agents": 5}, "num_agents must be a positive square"),
        ({"size": (0, 3)}, "must be positive"),
        ({"reduction": 0}, "reduction must be positive, got 0"),
    ],
)
def test_ill_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AgentMaps(6, **{"num_heads": 2, "num_agents": 4, "size": (3, 3), **options})
