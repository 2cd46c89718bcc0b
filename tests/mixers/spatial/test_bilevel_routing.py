"""Bi-level routing attention against a loop over regions, its routing, its map, its paddings, and both layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import conv2d

from regard.layers.lepe_attention import LePEAttention
from regard.mixers.spatial.bilevel_routing import BiLevelRoutingAttention
from regard.ops.regions import DOWNSAMPLINGS


def pooled(parts: torch.Tensor, mixer: BiLevelRoutingAttention) -> torch.Tensor:
    """Keys and values `(y, x, both)` of a region, as a list."""
    mode, side, ratio = mixer.kv_downsample_mode, mixer.kv_per_region, mixer.kv_downsample_ratio
    if mode == "identity":
        return parts.flatten(0, 1)
    height, width = parts.shape[:2]
    if mode.startswith("ada"):
        rows = [range(i * height // side, -(-(i + 1) * height // side)) for i in range(side)]
        columns = [range(i * width // side, -(-(i + 1) * width // side)) for i in range(side)]
    else:
        tall, wide = min(ratio, height), min(ratio, width)
        rows = [range(i * tall, (i + 1) * tall) for i in range(height // tall)]
        columns = [range(i * wide, (i + 1) * wide) for i in range(width // wide)]
    squares = [parts[row][:, column].flatten(0, 1) for row in rows for column in columns]
    return torch.stack([each.amax(dim=0) if "max" in mode else each.mean(dim=0) for each in squares])


def by_loop(mixer: BiLevelRoutingAttention, x: torch.Tensor) -> torch.Tensor:
    """One image at a time, region by region and head by head."""
    return torch.stack([_one_by_loop(mixer, image) for image in x])


def _one_by_loop(mixer: BiLevelRoutingAttention, x: torch.Tensor) -> torch.Tensor:
    channels, height, width = x.shape
    side, qk = mixer.regions_per_side, mixer.qk_dim
    if mixer.padding == "after_projection":
        tall, wide = max(1, height // side), max(1, width // side)
        rows, columns = -(-height // tall), -(-width // wide)
    else:
        tall, wide, rows, columns = -(-height // side), -(-width // side), side, side
    projected = x.new_zeros(rows * tall, columns * wide, 2 * qk + channels)
    if mixer.padding != "after_projection":
        projected[:] = mixer.qkv.bias
    projected[:height, :width] = x.permute(1, 2, 0) @ mixer.qkv.weight.T + mixer.qkv.bias

    def region(number: int, maps: torch.Tensor = projected) -> torch.Tensor:
        top, left = number // columns * tall, number % columns * wide
        return maps[top : top + tall, left : left + wide]

    def mean(number: int) -> torch.Tensor:
        if mixer.padding != "after_projection":
            return region(number).mean(dim=(0, 1))
        return region(number, projected[:height, :width]).mean(dim=(0, 1))

    regions = rows * columns
    means = torch.stack([mean(number) for number in range(regions)])
    mean_q, mean_k = means[:, :qk], means[:, qk : 2 * qk]
    if not mixer.diff_routing:
        mean_q, mean_k = mean_q.detach(), mean_k.detach()
    if mixer.routing_proj is not None:
        mean_q, mean_k = mixer.routing_proj(mean_q), mixer.routing_proj(mean_k)
    affinity = mixer.scale * mean_q @ mean_k.T
    mixed = x.new_zeros(rows * tall, columns * wide, channels)
    for number in range(regions):
        best = affinity[number].argsort(descending=True, stable=True)[: min(mixer.topk, regions)]
        factors = affinity[number, best].softmax(dim=0)
        chosen = [pooled(region(int(other))[..., qk:], mixer) for other in best]
        if mixer.soft_routing:
            chosen = [part * factor for part, factor in zip(chosen, factors, strict=True)]
        keys = torch.cat(chosen)
        queries, parts = region(number)[..., :qk].flatten(0, 1), []
        for head in range(mixer.num_heads):
            own = slice(head * qk // mixer.num_heads, (head + 1) * qk // mixer.num_heads)
            out = slice(head * channels // mixer.num_heads, (head + 1) * channels // mixer.num_heads)
            shares = (mixer.scale * queries[:, own] @ keys[:, own].T).softmax(dim=-1)
            parts.append(shares @ keys[:, qk:][:, out])
        region(number, mixed)[:] = torch.cat(parts, dim=-1).view(tall, wide, channels)
    if mixer.lepe is not None:
        taps = mixer.lepe.weight.shape[-1] // 2
        values = projected[..., 2 * qk :].permute(2, 0, 1)[None]
        mixed = mixed + conv2d(values, mixer.lepe.weight, mixer.lepe.bias, padding=taps, groups=channels)[0].permute(
            1, 2, 0
        )
    y = mixed[:height, :width] @ mixer.o_proj.weight.T + mixer.o_proj.bias
    return y.permute(2, 0, 1)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"qk_dim": 4, "topk": 1},
    {"topk": 9, "lepe_kernel_size": 0},
    {"topk": 5, "qk_dim": 8},
    {"qk_scale": 0.9, "regions_per_side": 2, "lepe_kernel_size": 3},
    {"soft_routing": True},
    {"soft_routing": True, "diff_routing": True, "topk": 9},
    {"soft_routing": True, "diff_routing": True, "param_routing": True},
    *[{"kv_downsample_mode": mode, "kv_per_region": 2, "kv_downsample_ratio": 2} for mode in DOWNSAMPLINGS[1:]],
]
PADDED = ("before_projection", "after_projection")


def built(padding: str = "before_projection", **options: Any) -> BiLevelRoutingAttention:
    sizes = {"num_heads": 2, "regions_per_side": 3, "topk": 3, **options}
    return BiLevelRoutingAttention(6, padding=padding, **sizes).double()  # type: ignore[arg-type]


@pytest.mark.parametrize("padding", PADDED)
@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_is_a_loop_over_regions(padding: str, options: dict[str, Any]) -> None:
    mixer = built(padding, **options)
    for space in ((9, 6), (7, 11), (2, 5), (1, 1)):
        x = torch.randn(2, 6, *space, dtype=torch.float64)
        torch.testing.assert_close(mixer(x), by_loop(mixer, x))


@pytest.mark.parametrize("padding", PADDED)
@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_gradients_are_those_of_the_loop(padding: str, options: dict[str, Any]) -> None:
    mixer = built(padding, **options)
    x = torch.randn(1, 6, 7, 8, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(x)
    leaves = (x, *mixer.parameters())
    ours = torch.autograd.grad((mixer(x) * weights).sum(), leaves)
    torch.testing.assert_close(ours, torch.autograd.grad((by_loop(mixer, x) * weights).sum(), leaves))


@pytest.mark.parametrize(
    ("options", "space"),
    [
        ({}, (9, 6)),
        ({"soft_routing": True, "diff_routing": True, "param_routing": True, "topk": 9}, (4, 5)),
        ({"kv_downsample_mode": "avgpool", "kv_downsample_ratio": 2}, (10, 13)),
        ({"padding": "after_projection", "topk": 9, "qk_dim": 10, "lepe_kernel_size": 0}, (7, 8)),
        ({"kv_downsample_mode": "ada_maxpool"}, (1, 1)),
        ({"topk": 6}, (8, 7)),
        ({"topk": 6, "kv_downsample_mode": "maxpool"}, (8, 7)),
    ],
)
def test_macs_are_counted_in_all_forms(options: dict[str, Any], space: tuple[int, int]) -> None:
    from regard.measure import contraction_macs

    mixer, x = built(**options).float(), torch.randn(2, 6, *space)
    sizes = {"num_heads": 2, "regions_per_side": 3, "topk": 3, **options}
    assert mixer.macs(batch=2, space=space, channels=6, **sizes) == contraction_macs(lambda: mixer(x))


def test_paddings_agree_where_regions_fill_the_map() -> None:
    mixers = [built(padding) for padding in (*PADDED, "none")]
    x = torch.randn(2, 6, 9, 12, dtype=torch.float64)
    results = []
    for mixer in mixers:
        mixer.load_state_dict(mixers[0].state_dict())
        results.append(mixer(x))
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])
    with pytest.raises(ValueError, match="regions_per_side=3 must divide a map of 9 x 11 positions"):
        mixers[2](x[..., :11])


def test_all_regions_are_full_attention() -> None:
    mixer, full = built(topk=9), LePEAttention(6, num_heads=2, lepe_kernel_size=5, qkv_bias=True).double()
    x = torch.randn(2, 6, 6, 9, dtype=torch.float64)
    state = dict(mixer.state_dict())
    # the scale here is that of the whole width, and LePE acts on the values
    state["qkv.weight"], state["qkv.bias"] = state["qkv.weight"].clone(), state["qkv.bias"].clone()
    state["qkv.weight"][:6] /= 2**0.5
    state["qkv.bias"][:6] /= 2**0.5
    full.load_state_dict(state)
    full.lepe = None
    assert mixer.lepe is not None
    values = conv2d(x, mixer.qkv.weight[12:, :, None, None], mixer.qkv.bias[12:])
    local = mixer.o_proj(mixer.lepe(values).permute(0, 2, 3, 1)) - mixer.o_proj.bias
    torch.testing.assert_close(mixer(x), full(x) + local.permute(0, 3, 1, 2))


def test_hard_routing_has_no_gradient() -> None:
    mixer = built(topk=2)
    x = torch.randn(1, 6, 6, 9, dtype=torch.float64, requires_grad=True)
    assert not mixer.route(x).weights.requires_grad
    soft = built(topk=2, soft_routing=True, diff_routing=True)
    assert soft.route(x).weights.requires_grad
    assert not built(topk=2, soft_routing=True).route(x).weights.requires_grad


def test_routing_does_not_depend_on_precision() -> None:
    mixer = BiLevelRoutingAttention(16, num_heads=2, regions_per_side=7, topk=5).bfloat16()
    x = torch.randn(3, 16, 29, 31).bfloat16()
    narrow = mixer.route(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = mixer.float().route(x.float())
    wide = mixer.float().route(x.float())
    assert torch.equal(narrow.index, wide.index)
    assert torch.equal(cast.index, wide.index)
    torch.testing.assert_close(narrow.weights, wide.weights)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("padding", PADDED)
def test_the_map_weighs_the_values(padding: str, soft: bool) -> None:
    mixer = built(padding, soft_routing=soft, lepe_kernel_size=0)
    x = torch.randn(2, 6, 7, 8, dtype=torch.float64)
    torch.nn.init.zeros_(mixer.qkv.bias)  # then padding has no value
    values = mixer.qkv(x.permute(0, 2, 3, 1))[..., 12:].flatten(1, 2).unflatten(-1, (2, 3)).transpose(1, 2)
    mixed = (mixer.attention_map(x) @ values).transpose(1, 2).flatten(2).unflatten(1, (7, 8))
    torch.testing.assert_close(mixer.o_proj(mixed).permute(0, 3, 1, 2), mixer(x))


def test_the_map_is_zero_outside_the_chosen_regions() -> None:
    mixer = built(topk=2)
    x = torch.randn(1, 6, 6, 6, dtype=torch.float64)
    shown, index = mixer.attention_map(x), mixer.route(x).index
    torch.testing.assert_close(shown.sum(dim=-1), torch.ones(1, 2, 36, dtype=torch.float64))
    region = (torch.arange(36) // 6 // 2) * 3 + torch.arange(36) % 6 // 2
    chosen = (index[0, region][:, :, None] == region).any(dim=1)
    assert (shown[0, :, chosen] > 0).all()
    assert (shown[0, :, ~chosen] == 0).all()


def test_pooled_keys_have_no_map() -> None:
    with pytest.raises(ValueError, match="kv_downsample_mode='avgpool' has no map"):
        built(kv_downsample_mode="avgpool").attention_map(torch.zeros(1, 6, 6, 6, dtype=torch.float64))


def test_loads_both_of_the_authors_layouts_strictly() -> None:
    mixer = built(soft_routing=True, diff_routing=True, param_routing=True)
    old = {"qkv": "qkv.qkv", "o_proj": "wo", "lepe": "lepe", "routing_proj": "router.emb"}
    layout = {}
    for name, tensor in mixer.state_dict().items():
        part, kind = name.split(".")
        layout[f"{old[part]}.{kind}"] = torch.rand_like(tensor)
    mixer.load_reference(layout)
    assert torch.equal(mixer.qkv.weight, layout["qkv.qkv.weight"])
    assert torch.equal(mixer.o_proj.bias, layout["wo.bias"])
    with pytest.raises(KeyError, match="unknown keys: gamma"):
        mixer.load_reference({**layout, "gamma": torch.zeros(1)})

    plain = built("after_projection")
    new = {
        "qkv_linear.weight": torch.rand(18, 6, 1, 1),
        "qkv_linear.bias": torch.rand(18),
        "output_linear.weight": torch.rand(6, 6, 1, 1),
        "output_linear.bias": torch.rand(6),
        "lepe.weight": torch.rand(6, 1, 5, 5),
        "lepe.bias": torch.rand(6),
    }
    plain.load_reference({name: tensor.double() for name, tensor in new.items()})
    assert torch.equal(plain.qkv.weight, new["qkv_linear.weight"][..., 0, 0].double())
    with pytest.raises(KeyError, match=r"missing keys: lepe\.bias"):
        plain.load_reference({name: tensor for name, tensor in new.items() if name != "lepe.bias"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 4}, "num_heads must divide channels=6 and qk_dim=6, got 4"),
        ({"num_heads": 0}, "num_heads must divide"),
        ({"qk_dim": 5}, "num_heads must divide channels=6 and qk_dim=5, got 2"),
        ({"topk": 10}, r"topk must be in 1\.\.9, the number of regions, got 10"),
        ({"topk": 0}, r"topk must be in 1\.\.9"),
        ({"regions_per_side": 0}, "regions_per_side must be positive, got 0"),
        ({"lepe_kernel_size": 4}, "lepe_kernel_size must be odd, or 0 for none, got 4"),
        ({"param_routing": True}, "param_routing needs diff_routing"),
        ({"diff_routing": True}, "diff_routing needs soft_routing"),
        ({"kv_downsample_mode": "fracpool"}, "kv_downsample_mode must be one of identity, .*, got 'fracpool'"),
        ({"kv_per_region": 0}, "must be positive, got kv_per_region=0"),
        ({"kv_downsample_ratio": 0}, "kv_downsample_ratio=0"),
        ({"padding": "left"}, "padding must be one of before_projection, after_projection, none, got 'left'"),
    ],
)
def test_ill_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(**options)
