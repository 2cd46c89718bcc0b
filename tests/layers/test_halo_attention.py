"""The halo layer: timm's layer, strides and pooling, widths, padding, and the layout it loads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regard.layers.halo_attention import HaloAttention, as_matrices


def by_blocks(layer: HaloAttention, x: Tensor) -> Tensor:
    """Block by block and head by head, without pooling; the map's surroundings are zero keys and values."""
    b, h, s, heads, d = layer.block_size, layer.halo_size, layer.query_stride, layer.num_heads, layer.head_dim
    side, window = b // s, b + 2 * h
    height, width = x.shape[2:]
    ny, nx = -(-height // b), -(-width // b)
    tokens = x.permute(0, 2, 3, 1)
    q, kv = layer.q_proj(tokens[:, ::s, ::s]), layer.kv_proj(tokens)
    queries = x.new_zeros(len(x), ny * side, nx * side, q.shape[-1])
    queries[:, : q.shape[1], : q.shape[2]] = q
    memory = x.new_zeros(len(x), ny * b + 2 * h, nx * b + 2 * h, kv.shape[-1])
    memory[:, h : h + height, h : h + width] = kv
    of_offset = torch.arange(window)[None, :] - torch.arange(side)[:, None] + window - 1
    both = kv.shape[-1] // heads
    y = x.new_zeros(len(x), ny * side, nx * side, heads * (both - d))
    for row in range(ny):
        for column in range(nx):
            here = slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side)
            there = slice(row * b, row * b + window), slice(column * b, column * b + window)
            for head in range(heads):
                own = queries[:, *here, head * d : (head + 1) * d]
                pairs = memory[:, *there, head * both : (head + 1) * both]
                relative = torch.einsum("byxd,yjd->byxj", own, layer.row_table[of_offset])[..., None]
                relative = relative + torch.einsum("byxd,xjd->byxj", own, layer.column_table[of_offset])[..., None, :]
                scores = torch.einsum("byxd,bijd->byxij", own, pairs[..., :d]) / d**0.5
                scores = scores + relative / (d**0.5 if layer.scale_pos_embed else 1)
                weights = scores.flatten(3).softmax(dim=-1).view_as(scores)
                mixed = torch.einsum("byxij,bije->byxe", weights, pairs[..., d:])
                y[:, *here, head * (both - d) : (head + 1) * (both - d)] = mixed
    return y[:, : q.shape[1], : q.shape[2]].permute(0, 3, 1, 2)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"qkv_bias": True, "halo_size": 0},
    {"stride": 2},
    {"stride": 2, "out_channels": 9, "head_dim": 5, "scale_pos_embed": True},
    {"block_size": 1, "halo_size": 2, "qkv_bias": True},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("space", [(8, 12), (7, 5), (1, 1)])
def test_is_a_loop_over_blocks(options: dict[str, Any], space: tuple[int, int]) -> None:
    layer = HaloAttention(6, **{"num_heads": 3, "block_size": 4, "halo_size": 1, **options}).double()
    x = torch.randn(2, 6, *space, dtype=torch.float64)
    torch.testing.assert_close(layer(x), by_blocks(layer, x))


def test_gradients_are_those_of_the_loop() -> None:
    layer = HaloAttention(6, out_channels=4, num_heads=2, head_dim=3, block_size=4, halo_size=1, stride=2).double()
    x = torch.randn(2, 6, 5, 9, dtype=torch.float64, requires_grad=True)
    leaves = (x, *layer.parameters())
    weights = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    ours = torch.autograd.grad((layer(x) * weights).sum(), leaves)
    torch.testing.assert_close(ours, torch.autograd.grad((by_blocks(layer, x) * weights).sum(), leaves))


@pytest.mark.parametrize(
    ("changes", "theirs", "block"),
    [
        ({}, {}, 4),
        ({"stride": 2, "out_channels": 24}, {"stride": 2, "dim_out": 24}, 4),
        ({"stride": 2, "avg_down": True}, {"stride": 2, "avg_down": True}, 4),
        ({"stride": 2}, {"stride": 2}, 3),
        ({"head_dim": 5, "scale_pos_embed": True}, {"dim_head": 5, "scale_pos_embed": True}, 6),
        ({"qkv_bias": True}, {"qkv_bias": True}, 4),
    ],
)
def test_equals_timms_layer(changes: dict[str, Any], theirs: dict[str, Any], block: int) -> None:
    halo_attn = pytest.importorskip("timm.layers.halo_attn")
    other = halo_attn.HaloAttn(8, num_heads=2, block_size=block, halo_size=2, **theirs)
    ours = HaloAttention(8, num_heads=2, block_size=block, halo_size=2, **changes)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    ours.load_reference(other.state_dict())
    x = torch.randn(2, 8, 12, 24)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), other(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("block", "avg_down"), [(3, False), (4, True)])
@pytest.mark.parametrize("space", [(7, 5), (1, 1), (6, 8)])
def test_pooling_is_the_mean_of_what_there_is(block: int, avg_down: bool, space: tuple[int, int]) -> None:
    sizes: dict[str, Any] = {"num_heads": 2, "block_size": block, "halo_size": 1}
    pooled = HaloAttention(6, stride=2, avg_down=avg_down, **sizes)
    full = HaloAttention(6, **sizes)
    full.load_state_dict(pooled.state_dict())
    x = torch.randn(2, 6, *space)
    everywhere, y = full(x), pooled(x)
    assert y.shape[2:] == tuple(-(-size // 2) for size in space)
    torch.testing.assert_close(y[:, :, 0, 0], everywhere[:, :, :2, :2].mean(dim=(2, 3)))
    last = [2 * (-(-size // 2) - 1) for size in space]
    torch.testing.assert_close(y[:, :, -1, -1], everywhere[:, :, last[0] :, last[1] :].mean(dim=(2, 3)))


def test_zeros_around_the_map_are_attended_to() -> None:
    layer = HaloAttention(6, num_heads=2, block_size=4, halo_size=1)
    with torch.no_grad():
        layer.row_table.zero_()
        layer.column_table.zero_()
        layer.q_proj.weight.zero_()
        y = layer(torch.ones(1, 6, 4, 4))
        inside = layer.kv_proj(torch.ones(6)).view(2, 6)[:, 3:].flatten()
    torch.testing.assert_close(y[0, :, 0, 0], inside * 16 / 36)


def test_starts_from_truncated_normal_numbers() -> None:
    torch.manual_seed(0)
    layer = HaloAttention(64, out_channels=128, num_heads=2, qkv_bias=True)
    for weight, width in ((layer.q_proj.weight, 64), (layer.kv_proj.weight, 64), (layer.row_table, 64)):
        assert float(weight.detach().std()) == pytest.approx(width**-0.5, rel=0.1)
    assert not layer.kv_proj.bias.any()


def test_loads_timms_layout_strictly() -> None:
    layer = HaloAttention(6, num_heads=2, head_dim=2)
    layout = {
        "q.weight": torch.rand(4, 6, 1, 1),
        "kv.weight": torch.rand(10, 6, 1, 1),
        "pos_embed.height_rel": torch.rand(27, 2),
        "pos_embed.width_rel": torch.rand(27, 2),
    }
    layer.load_reference(layout)
    assert torch.equal(layer.kv_proj.weight, layout["kv.weight"][:, :, 0, 0])
    assert torch.equal(layer.row_table, layout["pos_embed.height_rel"])
    with pytest.raises(KeyError, match=r"missing keys: column_table"):
        layer.load_reference({name: value for name, value in layout.items() if "width" not in name})
    with pytest.raises(ValueError, match=r"q_proj.weight has shape \(4, 6, 3, 3\), it must be \(4, 6\)"):
        layer.load_reference({**layout, "q.weight": torch.rand(4, 6, 3, 3)})


def test_only_matrices_are_made_of_convolutions() -> None:
    module = torch.nn.ModuleDict({"linear": torch.nn.Linear(3, 2), "conv": torch.nn.Conv2d(3, 2, 1)})
    weight = torch.rand(2, 3, 1, 1)
    made = as_matrices(module, {"linear.weight": weight, "conv.weight": weight, "other": weight})
    assert made["linear.weight"].shape == (2, 3)
    assert made["conv.weight"] is weight
    assert made["other"] is weight


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 0}, "channels and out_channels must be positive, got 0 and 0"),
        ({"out_channels": 7}, "num_heads must divide out_channels=7, got 2"),
        ({"num_heads": 0}, "num_heads must divide out_channels=6, got 0"),
        ({"head_dim": 0}, "head_dim must be positive, got 0"),
        ({"block_size": 0}, "block_size must be positive, got 0"),
        ({"halo_size": -1}, "halo_size must not be negative, got -1"),
        ({"stride": 3}, "stride must be 1 or 2, got 3"),
    ],
)
def test_ill_options_are_named(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HaloAttention(**{"channels": 6, "num_heads": 2, **changes})
