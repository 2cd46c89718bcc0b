"""EfficientViT: counted sizes, timm's network and both layouts, windows, and forms of the same network."""

from __future__ import annotations

from dataclasses import replace

import backbones
import pytest
import torch

from regard.metadata import Variant
from regard.mixers.spatial.cascaded_group import CascadedGroupAttention, offset_numbers
from regard.models.vision.efficientvit import EfficientViT, EfficientViTBlock, EfficientViTConfig

SMALL = EfficientViTConfig(
    in_channels=2,
    num_classes=5,
    image_size=112,
    dims=(16, 24, 40),
    depths=(1, 2, 1),
    num_heads=(2, 3, 4),
    kernel_sizes=(5, 3, 3, 1),
    window_size=3,
    head_dim=6,
)
SIZE = (75, 110)


@pytest.mark.parametrize(("name", "variant"), EfficientViT.VARIANTS.items())
def test_parameters_are_those_reported(name: str, variant: Variant) -> None:
    backbones.check_parameters(EfficientViT, variant)


@pytest.mark.parametrize("name", EfficientViT.VARIANTS)
def test_macs_are_those_reported(name: str) -> None:
    backbones.check_macs(EfficientViT, EfficientViT.VARIANTS[name])


def test_equals_timms_network() -> None:
    timm = pytest.importorskip("timm")
    dims = (32, 48, 64)
    theirs = timm.create_model("efficientvit_m0", num_classes=11, embed_dim=dims)
    config = replace(EfficientViT.VARIANTS["efficientvit_m0"].config, num_classes=11, dims=dims)
    backbones.check_equals_timm(EfficientViT(config), theirs, [(224, 224), (250, 353)])


@pytest.mark.slow
@pytest.mark.parametrize("name", EfficientViT.VARIANTS)
def test_equals_timms_networks_of_full_size(name: str) -> None:
    timm = pytest.importorskip("timm")
    ours = EfficientViT(EfficientViT.VARIANTS[name].config)
    backbones.check_equals_timm(ours, timm.create_model(name), [(224, 224), (250, 353)])


def test_weights_for_another_size_are_resized_as_timm_does() -> None:
    timm = pytest.importorskip("timm")
    dims = (32, 48, 64)
    theirs = timm.create_model("efficientvit_m0", num_classes=11, embed_dim=dims)
    backbones.randomised(theirs)
    config = replace(EfficientViT.VARIANTS["efficientvit_m0"].config, num_classes=11, dims=dims, image_size=96)
    ours = EfficientViT(config).eval()
    ours.load_reference(theirs.state_dict())
    theirs.set_input_size(96)
    theirs = theirs.eval()
    assert [stage.blocks[0].mixer.window_size for stage in ours.stages] == [6, 3, 2]
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


def authors_layout(model: EfficientViT) -> dict[str, torch.Tensor]:
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
            number = {"before": "0", "after": "1"}.get(parts[4])
            if parts[4] == "mixer":
                inner = {"query_convs": ["dws"], "o_proj": ["proj", "1"]}.get(parts[5], [parts[5]])
                inner = ["mixer", "m", "attn", *inner, *parts[6:-2], *(last if len(parts) > 6 else [])]
            elif parts[5] == "position":
                inner = [f"dw{number}", "m", *last]
            else:
                inner = [f"ffn{number}", "m", mlp[parts[6]], *last]
            parts = [f"blocks{int(parts[1]) + 1}", str(block), *inner]
        else:
            number = {"before": "0", "merging": "1", "after": "2"}[parts[3]]
            if parts[4] == "gate":
                inner = ["se", {"down_proj": "fc1", "up_proj": "fc2"}[parts[5]], parts[-1]]
            elif number == "1":
                inner = [{"up_proj": "conv1", "depthwise": "conv2", "down_proj": "conv3"}[parts[4]], *last]
            else:
                inner = ["0", "m", *last] if parts[4] == "position" else ["1", "m", mlp[parts[5]], *last]
            parts = [f"blocks{int(parts[1]) + 1}", number, *inner]
        value = torch.rand_like(tensor.float()).to(tensor.dtype)
        made[".".join(parts)] = value[:, :, None, None] if parts[2] == "se" and value.ndim == 2 else value
        if parts[-1] == "attention_biases":
            side = round(tensor.shape[1] ** 0.5)
            made[".".join(parts[:-1]) + ".attention_bias_idxs"] = offset_numbers((side, side), side)
    return made


def test_loads_the_authors_layout_strictly() -> None:
    model = EfficientViT(SMALL)
    layout = authors_layout(model)
    model.load_reference(layout)
    mixer = model.stages[1].blocks[1].mixer
    assert torch.equal(mixer.qkvs[2].conv.weight, layout["blocks2.4.mixer.m.attn.qkvs.2.c.weight"])
    assert torch.equal(mixer.attention_biases, layout["blocks2.4.mixer.m.attn.attention_biases"])
    after = model.stages[0].blocks[0].after
    assert torch.equal(after.mlp.down_proj.norm.bias, layout["blocks1.0.ffn1.m.pw2.bn.bias"])
    gate = model.stages[2].transition.merging.gate
    assert torch.equal(gate.down_proj.bias, layout["blocks3.1.se.fc1.bias"])
    backbones.check_strict(model, layout)


def test_windows_are_no_larger_than_the_map_of_the_image_size() -> None:
    mixers = [part for part in EfficientViT(SMALL).modules() if isinstance(part, CascadedGroupAttention)]
    assert [mixer.window_size for mixer in mixers] == [3, 3, 3, 2]
    wide = EfficientViT(replace(SMALL, window_size=9))
    assert [stage.blocks[0].mixer.window_size for stage in wide.stages] == [7, 4, 2]


def test_a_map_that_is_smaller_is_one_window() -> None:
    model = backbones.randomised(EfficientViT(replace(SMALL, window_size=7))).eval()
    small = backbones.randomised(EfficientViT(replace(SMALL, window_size=7, image_size=48))).eval()
    state = model.state_dict()
    for name, tensor in small.state_dict().items():
        if name.endswith("attention_biases"):
            side, heads = round(state[name].shape[1] ** 0.5), len(tensor)
            own = round(tensor.shape[1] ** 0.5)
            state[name] = state[name].view(heads, side, side)[:, :own, :own].reshape(heads, -1)
    small.load_state_dict(state)
    images = torch.randn(2, 2, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(model(images), small(images))


def test_maps_have_the_sizes_that_they_say() -> None:
    backbones.check_maps(backbones.randomised(EfficientViT(SMALL)), SIZE)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 224)])
def test_takes_any_size(size: tuple[int, int]) -> None:
    model = backbones.randomised(EfficientViT(SMALL)).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 2, *size)).isfinite().all()


def test_checkpointing_changes_nothing_but_memory() -> None:
    backbones.check_checkpointing(EfficientViT, replace(SMALL, drop_path=0.3), SIZE)


@pytest.mark.slow
def test_all_forms_agree() -> None:
    backbones.check_forms(backbones.randomised(EfficientViT(SMALL)), SIZE)


def test_blocks_are_sandwiches() -> None:
    block = EfficientViT(SMALL).stages[1].blocks[0].eval()
    x = torch.randn(2, 24, 4, 5)
    assert torch.equal(block(x), x)
    block = backbones.randomised(block)
    inner = block.before(x)
    torch.testing.assert_close(block(x), block.after(inner + block.mixer(inner)))


def test_heads_may_be_independent() -> None:
    mixers = [
        part
        for part in EfficientViT(replace(SMALL, cascade=False)).modules()
        if isinstance(part, CascadedGroupAttention)
    ]
    assert len(mixers) == 4
    assert not any(mixer.cascade for mixer in mixers)


def test_depth_is_dropped_more_and_more() -> None:
    model = EfficientViT(replace(SMALL, drop_path=0.3))
    rates = [block.drop_path.rate for block in model.modules() if isinstance(block, EfficientViTBlock)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_trains_on_small_images() -> None:
    model = EfficientViT(EfficientViT.SMALL)
    assert [stage.blocks[0].mixer.window_size for stage in model.stages] == [4, 2]
    assert model(torch.randn(3, 1, 8, 8)).shape == (3, 10)


def test_ill_images_are_named() -> None:
    backbones.check_rejects(EfficientViT(SMALL))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dims": (16, 24)}, "depths must have a positive number for each of the 2 stages"),
        ({"num_heads": (2, 3, 0)}, "num_heads must have a positive number for each of the 3 stages"),
        ({"num_heads": (2, 5, 4)}, "num_heads must divide channels=24, got 5"),
        ({"kernel_sizes": (5, 3, 3)}, "kernel_sizes must have a number for each of 4 heads"),
        ({"window_size": 0}, "window_size must be positive, got 0"),
        ({"image_size": 0}, "image_size must be positive, got 0"),
        ({"dims": (20, 24, 40)}, "the stem's channels must be a multiple of 8, got 20"),
        ({"head_dim": 0}, "window_size and head_dim must be positive, got 3 and 0"),
        ({"drop_path": 1.0}, "drop_path must be in"),
    ],
)
def test_ill_configs_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EfficientViT(replace(SMALL, **changes))
