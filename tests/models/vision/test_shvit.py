"""SHViT: counted sizes, timm's network and both layouts, stages, and forms of the same network."""

from __future__ import annotations

from dataclasses import replace

import backbones
import pytest
import torch

from regard.metadata import Variant
from regard.mixers.spatial.shsa import SingleHeadAttention
from regard.models.vision.shvit import SHViT, SHViTBlock, SHViTConfig

SMALL = SHViTConfig(
    in_channels=2,
    num_classes=5,
    dims=(16, 24, 40),
    depths=(1, 2, 1),
    partial_dims=(4, 5, 9),
    head_dim=6,
)
SIZE = (75, 110)


@pytest.mark.parametrize(("name", "variant"), SHViT.VARIANTS.items())
def test_parameters_are_those_reported(name: str, variant: Variant) -> None:
    backbones.check_parameters(SHViT, variant)


@pytest.mark.parametrize("name", SHViT.VARIANTS)
def test_macs_are_those_reported(name: str) -> None:
    backbones.check_macs(SHViT, SHViT.VARIANTS[name])


def test_equals_timms_network() -> None:
    timm = pytest.importorskip("timm")
    sizes = {"embed_dim": (32, 48, 72), "partial_dim": (8, 10, 15)}
    theirs = timm.create_model("shvit_s1", num_classes=11, **sizes)
    config = replace(
        SHViT.VARIANTS["shvit_s1"].config, num_classes=11, dims=sizes["embed_dim"], partial_dims=sizes["partial_dim"]
    )
    backbones.check_equals_timm(SHViT(config), theirs, [(224, 224), (250, 193)])


@pytest.mark.slow
@pytest.mark.parametrize("name", SHViT.VARIANTS)
def test_equals_timms_networks_of_full_size(name: str) -> None:
    timm = pytest.importorskip("timm")
    ours = SHViT(SHViT.VARIANTS[name].config)
    backbones.check_equals_timm(ours, timm.create_model(name), [(224, 224), (250, 193)])


def authors_layout(model: SHViT) -> dict[str, torch.Tensor]:
    """The weights under the authors' names, written by a rule of the test's own."""
    made = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        last = [{"norm": "bn", "conv": "c", "linear": "l"}.get(parts[-2], parts[-2]), parts[-1]]
        mlp = {"up_proj": "pw1", "down_proj": "pw2"}
        if parts[0] == "stem":
            parts = ["patch_embed", str(2 * int(parts[2])), *last]
        elif parts[0] == "head":
            parts = ["head", *last]
        elif parts[2] == "blocks":
            block = int(parts[3]) + (3 if parts[1] != "0" else 0)
            inner = {
                "position": ["conv", "m", *last],
                "mlp": ["ffn", "m", mlp.get(parts[5], ""), *last],
                "mixer": ["mixer", "m", {"norm": "pre_norm", "o_proj": "proj.1"}.get(parts[5], parts[5]), *last],
            }[parts[4]]
            if parts[4:6] == ["mixer", "norm"]:
                inner = ["mixer", "m", "pre_norm", parts[-1]]
            parts = [f"blocks{int(parts[1]) + 1}", str(block), *inner]
        else:
            number = {"before": "0", "merging": "1", "after": "2"}[parts[3]]
            if number == "1":
                inner = ["1", {"up_proj": "conv1", "depthwise": "conv2", "down_proj": "conv3"}.get(parts[4], ""), *last]
            else:
                inner = [number, *(["0", "m"] if parts[4] == "position" else ["1", "m", mlp[parts[5]]]), *last]
            if parts[4] == "gate":
                inner = ["1", "se", {"down_proj": "fc1", "up_proj": "fc2"}[parts[5]], parts[-1]]
            parts = [f"blocks{int(parts[1]) + 1}", *inner]
        value = torch.rand_like(tensor.float()).to(tensor.dtype)
        made[".".join(parts)] = value[:, :, None, None] if parts[2] == "se" and value.ndim == 2 else value
    return made


def test_loads_the_authors_layout_strictly() -> None:
    model = SHViT(SMALL)
    layout = authors_layout(model)
    model.load_reference(layout)
    assert torch.equal(model.stages[1].blocks[1].mixer.qkv.conv.weight, layout["blocks2.4.mixer.m.qkv.c.weight"])
    gate = model.stages[2].transition.merging.gate
    assert torch.equal(gate.up_proj.weight, layout["blocks3.1.se.fc2.weight"][:, :, 0, 0])
    assert torch.equal(model.head.linear.bias, layout["head.l.bias"])
    backbones.check_strict(model, layout)


def test_loads_released_weights_whose_convolutions_are_matrices() -> None:
    model = SHViT(SMALL)
    layout = authors_layout(model)
    name = "blocks1.0.ffn.m.pw1.c.weight"
    model.load_reference({**layout, name: layout[name][:, :, 0, 0]})
    assert torch.equal(model.stages[0].blocks[0].mlp.up_proj.conv.weight, layout[name])


def test_loads_two_heads() -> None:
    model = SHViT(replace(SMALL, distillation=True))
    layout = authors_layout(SHViT(SMALL))
    both = {**layout, **{name.replace("head.", "head_dist."): layout[name] + 1 for name in layout if "head" in name}}
    model.load_reference(both)
    assert torch.equal(model.head.labels.linear.weight, layout["head.l.weight"])
    assert torch.equal(model.head.teacher.norm.bias, layout["head.bn.bias"] + 1)


def test_maps_have_the_sizes_that_they_say() -> None:
    backbones.check_maps(backbones.randomised(SHViT(SMALL)), SIZE)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 224)])
def test_takes_any_size(size: tuple[int, int]) -> None:
    model = backbones.randomised(SHViT(SMALL)).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 2, *size)).isfinite().all()


def test_checkpointing_changes_nothing_but_memory() -> None:
    backbones.check_checkpointing(SHViT, replace(SMALL, drop_path=0.3), SIZE)


@pytest.mark.slow
def test_all_forms_agree() -> None:
    backbones.check_forms(backbones.randomised(SHViT(SMALL)), SIZE)


def test_early_stages_have_no_attention() -> None:
    model = SHViT(SMALL)
    kinds = [[type(block.mixer) for block in stage.blocks] for stage in model.stages]
    assert kinds == [[type(None)], [SingleHeadAttention] * 2, [SingleHeadAttention]]


def test_blocks_start_as_the_identity() -> None:
    block = SHViT(SMALL).stages[1].blocks[0].eval()
    x = torch.randn(2, 24, 3, 5)
    assert torch.equal(block(x), x)


def test_a_block_adds_neighbours_positions_and_channels() -> None:
    block = backbones.randomised(SHViT(SMALL).stages[1].blocks[0]).eval()
    x = torch.randn(2, 24, 3, 5)
    inner = x + block.position.branch(x)
    inner = inner + block.mixer(inner)
    torch.testing.assert_close(block(x), inner + block.mlp(inner))


def test_depth_is_dropped_more_and_more() -> None:
    model = SHViT(replace(SMALL, drop_path=0.3))
    rates = [block.drop_path.rate for block in model.modules() if isinstance(block, SHViTBlock)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_trains_on_small_images() -> None:
    model = SHViT(SHViT.SMALL)
    assert model(torch.randn(3, 1, 8, 8)).shape == (3, 10)


def test_ill_images_are_named() -> None:
    backbones.check_rejects(SHViT(SMALL))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dims": (16, 24)}, "depths must have a positive number for each of the 2 stages"),
        ({"depths": (1, 0, 1)}, "depths must have a positive number for each of the 3 stages"),
        ({"types": ("i", "s", "m")}, "types must be i or s for each of the 3 stages"),
        ({"types": ("i", "s")}, "types must be i or s for each of the 3 stages"),
        ({"partial_dims": (4, 5, 41)}, "partial_dim must be between 1 and channels=40, got 41"),
        ({"dims": (20, 24, 40)}, "the stem's channels must be a multiple of 8, got 20"),
        ({"patch_size": 12}, "patch_size must be a power of two from 2 on, got 12"),
        ({"num_classes": 0}, "num_classes must be positive, got 0"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be positive"),
        ({"head_dim": 0}, "head_dim must be positive, got 0"),
        ({"drop_path": 1.0}, "drop_path must be in"),
    ],
)
def test_ill_configs_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SHViT(replace(SMALL, **changes))
