"""HaloNet: counted sizes, timm's networks and their layout, stages, and forms of the same network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import backbones
import pytest
import torch

from regard.layers.halo_attention import HaloAttention
from regard.layers.spatial_bottleneck import SpatialBottleneck
from regard.metadata import Variant
from regard.mixers.channel.eca import ECA
from regard.mixers.channel.squeeze_excitation import SqueezeExcitation
from regard.models.vision.halonet import HaloNet
from regard.models.vision.halonet_config import HaloNetConfig

SMALL = HaloNetConfig(
    in_channels=2,
    num_classes=5,
    stem_channels=8,
    blocks=("ch", "hc", "h"),
    widths=(8, 16, 24),
    out_channels=(12, 20, 28),
    num_heads=(2, 4, 3),
    value_ratio=1.5,
    block_size=4,
    halo_size=1,
    gate="se",
)
SIZE = (50, 67)
HYBRIDS = ["halonet26t", "halonet50ts", "sehalonet33ts", "eca_halonext26ts"]
OF_TIMM: dict[str, Any] = {"num_heads": (8, 8, 8, 8), "activation": "relu"}


@pytest.mark.parametrize(("name", "variant"), HaloNet.VARIANTS.items())
def test_parameters_are_those_reported(name: str, variant: Variant) -> None:
    backbones.check_parameters(HaloNet, variant)


def test_timms_h1_has_eight_heads_everywhere() -> None:
    config = replace(HaloNet.VARIANTS["halonet_h1"].config, **OF_TIMM)
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in HaloNet(config).parameters()) == 8_100_056


def narrow(name: str) -> HaloNetConfig:
    """A quarter of the widths, as timm's `width_factor` makes it."""
    config = HaloNet.VARIANTS[name].config
    return replace(
        config,
        num_classes=11,
        stem_channels=16,
        widths=tuple(width // 4 for width in config.widths),
        out_channels=tuple(channels // 4 for channels in config.out_channels),
        final_channels=None if config.final_channels is None else config.final_channels // 4,
        **(OF_TIMM if name == "halonet_h1" else {}),
    )


@pytest.mark.parametrize("name", ["halonet_h1", *HYBRIDS])
def test_equals_timms_network(name: str) -> None:
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(name, num_classes=11, width_factor=0.25)
    sizes = [(256, 256)] if name == "halonet_h1" else [(256, 256), (256, 512)]
    backbones.check_equals_timm(HaloNet(narrow(name)), theirs, sizes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["halonet_h1", *HYBRIDS])
def test_equals_timms_full_network(name: str) -> None:
    timm = pytest.importorskip("timm")
    config = HaloNet.VARIANTS[name].config
    ours = HaloNet(replace(config, **OF_TIMM) if name == "halonet_h1" else config)
    backbones.check_equals_timm(ours, timm.create_model(name), [(256, 256), (512, 256)])


def timms_layout(model: HaloNet) -> dict[str, torch.Tensor]:
    """Random weights under timm's names and in its shapes, written by a rule of the test's own."""
    made = {}
    for name, tensor in model.state_dict().items():
        parts = name.replace("norm", "bn").split(".")
        value = torch.rand_like(tensor) if tensor.is_floating_point() else tensor.clone()
        if parts[0] == "stem":
            parts[:2] = ["stem", f"conv{int(parts[1]) + 1}"]
        elif parts[0] == "head":
            parts[:1] = ["head", "fc"]
        elif parts[0] == "stages":
            halo = isinstance(model.stages[int(parts[1])][int(parts[2])].spatial, HaloAttention)
            inner = ".".join(parts[3:])
            if "_proj" in inner:
                value = value[..., None, None] if inner.endswith("weight") else value
            if inner == "gate.taps":
                value = value[None, None]
            for ours, theirs in (
                ("reduce", "conv1_1x1"),
                ("expand", "conv3_1x1"),
                ("spatial_bn", "post_attn" if halo else "conv2_kxk.bn"),
                ("spatial.q_proj", "self_attn.q"),
                ("spatial.kv_proj", "self_attn.kv"),
                ("spatial.row_table", "self_attn.pos_embed.height_rel"),
                ("spatial.column_table", "self_attn.pos_embed.width_rel"),
                ("spatial.weight", "conv2_kxk.conv.weight"),
                ("gate.down_proj", "attn.fc1"),
                ("gate.up_proj", "attn.fc2"),
                ("gate.taps", "attn.conv.weight"),
            ):
                inner = inner.replace(ours, theirs)
            parts[3:] = [inner]
        made[".".join(parts)] = value
    return made


@pytest.mark.parametrize("gate", ["se", "eca"])
def test_loads_timms_layout_strictly(gate: str) -> None:
    model = HaloNet(replace(SMALL, gate=gate, stem="tiered", final_channels=9))
    layout = timms_layout(model)
    model.load_reference(layout)
    halo = model.stages[0][1].spatial
    assert torch.equal(halo.kv_proj.weight, layout["stages.0.1.self_attn.kv.weight"][:, :, 0, 0])
    assert torch.equal(halo.column_table, layout["stages.0.1.self_attn.pos_embed.width_rel"])
    assert torch.equal(model.stages[1][1].spatial.weight, layout["stages.1.1.conv2_kxk.conv.weight"])
    assert torch.equal(model.final_conv.norm.running_var, layout["final_conv.bn.running_var"])
    backbones.check_strict(model, layout)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stem": "tiered", "gate": "eca", "activation": "relu", "final_channels": 9},
        {"stem": "tiered_strided", "gate": None, "group_width": 4, "head_dim": 3, "scale_pos_embed": True},
    ],
)
def test_maps_have_the_sizes_that_they_say(changes: dict[str, Any]) -> None:
    backbones.check_maps(HaloNet(replace(SMALL, **changes)), SIZE)


def test_the_small_stem_keeps_the_size() -> None:
    model = HaloNet(HaloNet.SMALL)
    assert model.stage_strides == (1, 2)
    backbones.check_maps(model, (8, 8))


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 224)])
def test_takes_any_size(size: tuple[int, int]) -> None:
    model = HaloNet(SMALL).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 2, *size)).isfinite().all()


def test_h7_fills_its_blocks_at_600_pixels() -> None:
    config = replace(HaloNet.VARIANTS["halonet_h7"].config, blocks=("hh", "hh", "hh", "hh"))
    with torch.device("meta"), torch.no_grad():
        maps = HaloNet(config).eval().features(torch.empty(1, 3, 600, 600))
    assert [tuple(x.shape[2:]) for x in maps] == [(150, 150), (75, 75), (38, 38), (19, 19)]


def test_blocks_are_filled_with_zeros_and_cropped() -> None:
    layer = HaloAttention(8, num_heads=2, block_size=10, halo_size=3)
    x = torch.randn(1, 8, 19, 19)
    filled = torch.nn.functional.pad(x, (0, 1, 0, 1))
    torch.testing.assert_close(layer(x), layer(filled)[:, :, :19, :19])


def test_gates_are_on_convolutions_alone() -> None:
    for gate, kind in (("se", SqueezeExcitation), ("eca", ECA), (None, type(None))):
        model = HaloNet(replace(SMALL, gate=gate))
        for block in model.modules():
            if isinstance(block, SpatialBottleneck):
                halo = isinstance(block.spatial, HaloAttention)
                assert isinstance(block.gate, type(None) if halo else kind)


def test_values_are_wider_than_queries() -> None:
    layer = HaloNet(SMALL).stages[1][0].spatial
    assert layer.query_stride == 2
    assert layer.q_proj.out_features == 16
    assert layer.kv_proj.out_features == 16 + 24


def test_checkpointing_changes_nothing_but_memory() -> None:
    backbones.check_checkpointing(HaloNet, replace(SMALL, drop_path=0.3), SIZE)


@pytest.mark.slow
def test_all_forms_agree() -> None:
    two = replace(SMALL, blocks=("h", "ch"), widths=(8, 16), out_channels=(12, 20), num_heads=(2, 4))
    backbones.check_forms(HaloNet(two), SIZE)


def test_depth_is_dropped_more_and_more() -> None:
    model = HaloNet(replace(SMALL, drop_path=0.4))
    rates = [block.drop_path.rate for block in model.modules() if isinstance(block, SpatialBottleneck)]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_ill_images_are_named() -> None:
    backbones.check_rejects(HaloNet(SMALL))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": (5, 4, 3)}, "num_heads must divide out_channels=12, got 5"),
        ({"block_size": 0}, "block_size must be positive, got 0"),
        ({"halo_size": -1}, "halo_size must not be negative, got -1"),
        ({"head_dim": 0}, "head_dim must be positive, got 0"),
        ({"drop_path": 1.0}, "drop_path must be in"),
    ],
)
def test_ill_configs_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HaloNet(replace(SMALL, **changes))
