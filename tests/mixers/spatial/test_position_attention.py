"""Position attention against a loop over positions, its map, its identity at the start, and DANet's layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regard.measure import contraction_macs, peak_bytes
from regard.mixers.spatial.position_attention import PositionAttention


def linear(layer: torch.nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)


def by_positions(mixer: PositionAttention, x: Tensor) -> Tensor:
    """Position by position."""
    tokens = x.flatten(2).transpose(1, 2)
    q, k, v = (linear(part, tokens) for part in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    rows = []
    for row in range(len(x)):
        mixed = [torch.softmax(k[row] @ query, dim=0) @ v[row] for query in q[row]]
        rows.append((mixer.gamma * torch.stack(mixed) + tokens[row]).T.unflatten(1, x.shape[2:]))
    return torch.stack(rows)


@pytest.mark.parametrize(("channels", "reduction", "bias"), [(19, 8, False), (8, 8, True), (5, 2, True), (3, 1, False)])
@pytest.mark.parametrize("space", [(5, 7), (2, 3, 5), (1, 1), (7, 5, 11)])
def test_is_the_formula(channels: int, reduction: int, bias: bool, space: tuple[int, ...]) -> None:
    mixer = PositionAttention(channels, reduction=reduction, qkv_bias=bias, init_scale=0.7).double()
    x = torch.randn(2, channels, *space, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), by_positions(mixer, x))


def test_gradients_are_those_of_the_formula() -> None:
    mixer = PositionAttention(11, qkv_bias=True, init_scale=-0.4).double()
    x = torch.randn(2, 11, 3, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(x)
    leaves = (x, *mixer.parameters())
    ours = torch.autograd.grad((mixer(x) * weights).sum(), leaves)
    torch.testing.assert_close(ours, torch.autograd.grad((by_positions(mixer, x) * weights).sum(), leaves))
    assert mixer.inert_parameters() == {"k_proj.bias"}
    assert PositionAttention(11).inert_parameters() == set()


def test_begins_as_the_identity() -> None:
    x = torch.randn(2, 8, 3, 5)
    assert torch.equal(PositionAttention(8)(x), x)


def test_the_map_weighs_the_values() -> None:
    mixer = PositionAttention(11, init_scale=1.0)
    x = torch.randn(2, 11, 3, 5)
    shown = mixer.attention_map(x)
    assert shown.shape == (2, 1, 15, 15)
    values = mixer.v_proj(x.flatten(2).mT)
    torch.testing.assert_close(mixer(x), x + (shown[:, 0] @ values).mT.unflatten(2, (3, 5)))


@pytest.mark.parametrize("space", [(2, 3, 5), (7, 6, 7)])
def test_products_are_counted(space: tuple[int, ...]) -> None:
    mixer, x = PositionAttention(17), torch.randn(3, 17, *space)
    assert contraction_macs(lambda: mixer(x)) == PositionAttention.macs(batch=3, space=space, channels=17)


def test_memory_is_linear_in_the_positions() -> None:
    mixer, x = PositionAttention(8, init_scale=1.0), torch.randn(1, 8, 16, 16, 17)
    weights = 4 * (16 * 16 * 17) ** 2

    def step() -> None:
        mixer(x).sum().backward()

    assert peak_bytes(step, warmup=1) < weights / 4


def test_loads_danets_layout_strictly() -> None:
    mixer = PositionAttention(16, qkv_bias=True)
    layout = {f"{part}_conv.bias": torch.randn(width) for part, width in (("query", 2), ("key", 2), ("value", 16))}
    layout |= {
        f"{part}_conv.weight": torch.randn(width, 16, 1, 1) for part, width in (("query", 2), ("key", 2), ("value", 16))
    }
    layout["gamma"] = torch.randn(1)
    mixer.load_reference(layout)
    assert torch.equal(mixer.q_proj.weight, layout["query_conv.weight"][:, :, 0, 0])
    assert torch.equal(mixer.gamma, layout["gamma"])
    with pytest.raises(KeyError, match=r"missing keys: k_proj\.bias"):
        mixer.load_reference({name: tensor for name, tensor in layout.items() if name != "key_conv.bias"})
    with pytest.raises(ValueError, match=r"v_proj\.weight has shape \(16, 17\), it must be \(16, 16\)"):
        mixer.load_reference({**layout, "value_conv.weight": torch.zeros(16, 17)})


@pytest.mark.parametrize(("channels", "reduction"), [(7, 8), (8, 0)])
def test_ill_options_are_named(channels: int, reduction: int) -> None:
    with pytest.raises(ValueError, match=f"got channels={channels} and reduction={reduction}"):
        PositionAttention(channels, reduction=reduction)
