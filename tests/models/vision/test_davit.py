"""DaViT: counted sizes, timm's network and both layouts, stages, and forms of the same network."""

from __future__ import annotations

from dataclasses import replace

import backbones
import pytest
import torch

from regard.metadata import Variant
from regard.mixers.channel.davit_channel import DaViTChannelAttention
from regard.models.vision.davit import DaViT, DaViTBlock, DaViTConfig
from regard.registry import create

SMALL = DaViTConfig(
    in_channels=2,
    num_classes=5,
    dims=(6, 12, 20),
    num_heads=(1, 2, 4),
    depths=(1, 2, 1),
    window_size=3,
    mlp_ratio=1.5,
)
SIZE = (27, 41)


@pytest.mark.parametrize(("name", "variant"), DaViT.VARIANTS.items())
def test_parameters_are_those_reported(name: str, variant: Variant) -> None:
    backbones.check_parameters(DaViT, variant)


@pytest.mark.parametrize("name", ["davit_tiny", "davit_small", "davit_base", "davit_large"])
def test_macs_are_those_reported(name: str) -> None:
    backbones.check_macs(DaViT, DaViT.VARIANTS[name])


def test_equals_timms_network() -> None:
    timm = pytest.importorskip("timm")
    sizes = {"embed_dims": (24, 48, 96, 192), "num_heads": (3, 6, 12, 24)}
    theirs = timm.create_model("davit_tiny", num_classes=11, **sizes)
    ours = create("davit_tiny", num_classes=11, dims=sizes["embed_dims"])
    backbones.check_equals_timm(ours, theirs, [(224, 224), (250, 236)])


@pytest.mark.slow
def test_equals_timms_tiny_network() -> None:
    timm = pytest.importorskip("timm")
    backbones.check_equals_timm(create("davit_tiny"), timm.create_model("davit_tiny"), [(224, 224), (250, 236)])


def authors_layout(model: DaViT) -> dict[str, torch.Tensor]:
    """The weights under the authors' names, written by a rule of the test's own."""
    made = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "head_norm":
            parts[0] = "norms"
        elif parts[0] == "stages" and parts[2] == "embedding":
            parts = ["patch_embeds", parts[1], *(["proj"] if parts[3] == "conv" else ["norm"]), parts[4]]
        elif parts[0] == "stages":
            inner = {
                "mixer_position": ["cpe", "0", "proj"],
                "mlp_position": ["cpe", "1", "proj"],
                "mixer_norm": ["norm1"],
                "mlp_norm": ["norm2"],
                "mixer": ["attn", "qkv" if "qkv" in parts else "proj"],
                "mlp": ["mlp", "fc1" if "up_proj" in parts else "fc2"],
            }[parts[5]]
            parts = ["main_blocks", parts[1], parts[3], parts[4], *inner, parts[-1]]
        made[".".join(parts)] = torch.rand_like(tensor)
    return made


def test_loads_the_authors_layout_strictly() -> None:
    model = DaViT(SMALL)
    layout = authors_layout(model)
    model.load_reference(layout)
    assert torch.equal(model.stages[1].blocks[1][0].mixer.qkv.weight, layout["main_blocks.1.1.0.attn.qkv.weight"])
    assert torch.equal(model.stages[2].embedding.norm.bias, layout["patch_embeds.2.norm.bias"])
    backbones.check_strict(model, layout)


def test_maps_have_the_sizes_that_they_say() -> None:
    backbones.check_maps(DaViT(SMALL), SIZE)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 224)])
def test_takes_any_size(size: tuple[int, int]) -> None:
    model = DaViT(SMALL).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 2, *size)).isfinite().all()


def test_checkpointing_changes_nothing_but_memory() -> None:
    backbones.check_checkpointing(DaViT, replace(SMALL, drop_path=0.3), SIZE)


@pytest.mark.slow
def test_all_forms_agree() -> None:
    backbones.check_forms(DaViT(SMALL), SIZE)


def test_one_kind_of_block_is_half_the_network() -> None:
    model = DaViT(replace(SMALL, kinds=("channel",)))
    mixers = [block.mixer for block in model.modules() if isinstance(block, DaViTBlock)]
    assert len(mixers) == 4
    assert all(isinstance(mixer, DaViTChannelAttention) for mixer in mixers)
    backbones.check_maps(model, SIZE)


def test_depth_is_dropped_more_and_more() -> None:
    model = DaViT(replace(SMALL, drop_path=0.35))
    rates = [block.drop_path.rate for block in model.modules() if isinstance(block, DaViTBlock)]
    assert rates == pytest.approx([0.05 * number for number in range(8)])


def test_overlapped_patches_halve_rounding_up() -> None:
    model = DaViT(replace(SMALL, overlapped_patch=True))
    assert model.stages[1].embedding.conv.kernel_size == (3, 3)
    backbones.check_maps(model, SIZE)


def test_ill_images_are_named() -> None:
    backbones.check_rejects(DaViT(SMALL))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dims": (6, 12)}, "num_heads must have a positive number for each of the 2 stages"),
        ({"depths": (1, 0, 1)}, "depths must have a positive number for each of the 3 stages"),
        ({"kinds": ("spatial", "both")}, "kinds must be a list of spatial and channel"),
        ({"kinds": ()}, "kinds must be a list"),
        ({"num_classes": 0}, "num_classes must be positive, got 0"),
        ({"mlp_ratio": 0.0}, "must be positive"),
        ({"drop_path": 1.0}, "drop_path must be in"),
        ({"num_heads": (5, 2, 4)}, "num_heads must divide channels=6, got 5"),
        ({"window_size": 0}, "window_size must be positive, got 0"),
    ],
)
def test_ill_configs_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DaViT(replace(SMALL, **changes))
