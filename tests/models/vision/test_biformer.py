"""BiFormer: counted sizes, both layouts of the authors, stages, and forms of the same network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import backbones
import pytest
import torch
from torch import nn

from regard.layers.biformer_block import BiFormerBlock
from regard.layers.lepe_attention import LePEAttention
from regard.metadata import Variant
from regard.mixers.spatial.bilevel_routing import BiLevelRoutingAttention
from regard.models.vision.biformer import BiFormer, BiFormerConfig

SMALL = BiFormerConfig(
    in_channels=2,
    num_classes=5,
    dims=(8, 12, 16),
    depths=(1, 2, 1),
    topks=(2, 3, -2),
    regions_per_side=(3, 2, 2),
    head_dim=4,
    mlp_ratio=1.5,
)
PATCHES = replace(SMALL, embedding="patches", conditional_position=False)
SIZE = (27, 41)


@pytest.mark.parametrize(("name", "variant"), BiFormer.VARIANTS.items())
def test_parameters_are_those_reported(name: str, variant: Variant) -> None:
    backbones.check_parameters(BiFormer, variant)


@pytest.mark.parametrize(
    "name",
    [
        "biformer_tiny",
        pytest.param("biformer_small", marks=pytest.mark.slow),
        pytest.param("biformer_base", marks=pytest.mark.slow),
        "biformer_stl",
    ],
)
def test_macs_are_those_reported(name: str) -> None:
    backbones.check_macs(BiFormer, BiFormer.VARIANTS[name])


def authors_layout(model: BiFormer, *, with_blocks: bool) -> dict[str, torch.Tensor]:
    """The weights under the authors' names, written by a rule of the test's own."""
    made = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "head_norm":
            parts[0] = "norm"
        elif parts[0] == "stages" and parts[2] == "embedding":
            parts = ["downsample_layers", parts[1], *parts[3:]]
        elif parts[0] == "stages":
            is_full = model.config.topks[int(parts[1])] < 0
            inner = {
                "position": ["pos_embed"],
                "mixer_norm": ["norm1"],
                "mlp_norm": ["norm2"],
                "mixer_scale": ["gamma1"],
                "mlp_scale": ["gamma2"],
                "mlp": ["mlp", "0" if "up_proj" in parts else "2" if with_blocks else "3"],
            }.get(parts[4])
            if parts[4] == "mixer":
                names = {"qkv": ["qkv"] if is_full else ["qkv", "qkv"], "o_proj": ["proj"] if is_full else ["wo"]}
                inner = ["attn", *names.get(parts[5], ["lepe"])]
            assert inner is not None
            last = [] if parts[-1].endswith("_scale") else [parts[-1]]
            parts = ["stages", parts[1], *(["blocks"] if with_blocks else []), parts[3], *inner, *last]
        made[".".join(parts)] = torch.rand_like(tensor.float()).to(tensor.dtype)
    return made


def test_loads_the_authors_layout_strictly() -> None:
    model = BiFormer(replace(SMALL, layer_scale=0.1))
    layout = authors_layout(model, with_blocks=False)
    model.load_reference(layout)
    assert torch.equal(model.stages[1].blocks[1].mixer.qkv.weight, layout["stages.1.1.attn.qkv.qkv.weight"])
    assert torch.equal(model.stages[2].blocks[0].mixer.o_proj.bias, layout["stages.2.0.attn.proj.bias"])
    assert torch.equal(model.stages[0].embedding[3].weight, layout["downsample_layers.0.3.weight"])
    assert torch.equal(model.stages[0].blocks[0].mixer_scale, layout["stages.0.0.gamma1"])
    backbones.check_strict(model, layout)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_loads_the_layout_of_the_network_of_patches(norm: Any) -> None:
    model = BiFormer(replace(PATCHES, norm=norm))
    layout = authors_layout(model, with_blocks=True)
    model.load_reference(layout)
    assert torch.equal(model.stages[1].embedding[0].weight, layout["downsample_layers.1.0.weight"])
    assert torch.equal(model.stages[1].embedding[1].weight, layout["downsample_layers.1.1.weight"])
    assert torch.equal(model.stages[1].blocks[1].mlp.down_proj.weight, layout["stages.1.blocks.1.mlp.2.weight"])
    backbones.check_strict(model, layout)


def test_loads_convolutions_in_attentions_place() -> None:
    model = BiFormer(replace(SMALL, topks=(0, 3, -1), mlp_conv=True))
    mixer = model.stages[0].blocks[0].mixer
    assert isinstance(mixer, nn.Sequential)
    layout = dict(model.state_dict())
    for number in range(3):
        for kind in ("weight", "bias"):
            layout[f"stages.0.0.attn.{number + 1}.{kind}"] = layout.pop(f"stages.0.blocks.0.mixer.{number}.{kind}") + 1
    for stage, depth in enumerate(SMALL.depths):
        for block in range(depth):
            for kind in ("weight", "bias"):
                own = f"stages.{stage}.blocks.{block}.mlp.conv.{kind}"
                layout[f"stages.{stage}.{block}.mlp.1.dwconv.{kind}"] = layout.pop(own) + 1
    model.load_reference(layout)
    assert torch.equal(mixer[1].weight, layout["stages.0.0.attn.2.weight"])
    full = model.stages[2].blocks[0].mixer
    assert isinstance(full, LePEAttention)
    assert full.lepe is None
    backbones.check_maps(model, SIZE)


def test_heads_are_of_one_width_and_eight_in_full_attention() -> None:
    with torch.device("meta"):
        model = BiFormer(BiFormer.VARIANTS["biformer_tiny"].config)
    routed = [part for part in model.modules() if isinstance(part, BiLevelRoutingAttention)]
    full = [part for part in model.modules() if isinstance(part, LePEAttention)]
    assert [(part.channels // part.num_heads, part.topk) for part in routed] == [
        (32, topk) for topk, depth in ((1, 2), (4, 2), (16, 8)) for _ in range(depth)
    ]
    assert [part.num_heads for part in full] == [8, 8]


@pytest.mark.parametrize("config", [SMALL, PATCHES, replace(PATCHES, norm="layer")])
def test_maps_have_the_sizes_that_they_say(config: BiFormerConfig) -> None:
    backbones.check_maps(BiFormer(config), SIZE)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_the_first_stride_can_be_smaller(patch_size: int) -> None:
    for config in (SMALL, PATCHES):
        backbones.check_maps(BiFormer(replace(config, patch_size=patch_size)), (9, 13))


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 224)])
@pytest.mark.parametrize("config", [SMALL, PATCHES])
def test_takes_any_size(config: BiFormerConfig, size: tuple[int, int]) -> None:
    model = BiFormer(config).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 2, *size)).isfinite().all()


def test_checkpointing_changes_nothing_but_memory() -> None:
    backbones.check_checkpointing(BiFormer, replace(SMALL, drop_path=0.3), SIZE)


def test_all_forms_agree() -> None:
    two_stages = replace(SMALL, dims=(8, 16), depths=(1, 1), topks=(2, -2), regions_per_side=(3, 2))
    backbones.check_forms(BiFormer(two_stages), SIZE)


@pytest.mark.slow
def test_all_forms_of_the_network_of_patches_agree() -> None:
    backbones.check_forms(BiFormer(replace(PATCHES, norm="layer", norm_first=False)), SIZE)


def test_depth_is_dropped_more_and_more() -> None:
    model = BiFormer(replace(SMALL, drop_path=0.3))
    rates = [block.drop_path.rate for block in model.modules() if isinstance(block, BiFormerBlock)]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


def test_queries_may_be_narrower_than_the_stage() -> None:
    model = BiFormer(replace(SMALL, qk_dims=(4, 4, 16)))
    assert model.stages[1].blocks[0].mixer.qkv.out_features == 4 + 4 + 12
    backbones.check_maps(model, SIZE)


def test_ill_images_are_named() -> None:
    backbones.check_rejects(BiFormer(SMALL))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dims": (8, 12)}, "depths must have a positive number for each of the 2 stages"),
        ({"depths": (1, 0, 1)}, "depths must have a positive number for each of the 3 stages"),
        ({"topks": (1, 2)}, "topks must have a number from -2 on for each of the 3 stages"),
        ({"topks": (1, 2, -3)}, "topks must have a number from -2 on"),
        ({"topks": (10, 2, -2)}, r"topk must be in 1\.\.9, the number of regions, got 10"),
        ({"qk_dims": (8, 12)}, "qk_dims must have a positive number for each of the 3 stages"),
        ({"head_dim": 0}, "head_dim and mlp_ratio must be positive, got 0"),
        ({"head_dim": 9}, "num_heads must divide channels=8 and qk_dim=8, got 0"),
        ({"mlp_ratio": 0.0}, "must be positive"),
        ({"embedding": "stem"}, "embedding must be one of overlapped, patches and norm one of batch, layer"),
        ({"norm": "none"}, "got 'overlapped' and 'none'"),
        ({"patch_size": 3}, "patch_size must be positive, and 1, 2 or 4 if overlapped, got 3"),
        ({"drop_path": 1.0}, "drop_path must be in"),
        ({"dims": (8, 12, 20)}, "got dim=20 and num_heads=8"),
    ],
)
def test_ill_configs_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BiFormer(replace(SMALL, **changes))
