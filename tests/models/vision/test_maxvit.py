"""MaxViT: counted sizes, timm's network and both layouts, stages, and forms of the same network."""

from __future__ import annotations

from dataclasses import replace

import backbones
import pytest
import torch

from regard.mixers.spatial.maxvit_grid import MaxViTGridAttention
from regard.models.vision.maxvit import MaxViT, MaxViTConfig
from regard.models.vision.maxvit_blocks import AttentionBlock, MaxViTBlock

SMALL = MaxViTConfig(
    in_channels=2,
    num_classes=5,
    stem_channels=6,
    dims=(8, 12, 20),
    depths=(1, 2, 1),
    strides=(2, 1, 2),
    window_size=3,
    grid_size=2,
    head_dim=4,
    expand_ratio=2,
    mlp_ratio=1.5,
)
SIZE = (27, 41)
NARROW = {"stem_channels": 16, "dims": (32, 32, 64, 64), "depths": (1, 1, 2, 1)}


FEW = ("maxvit_tiny", "maxvit_small_384")
ALL = [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in MaxViT.VARIANTS]


@pytest.mark.parametrize("name", ALL)
def test_parameters_and_macs_are_those_reported(name: str) -> None:
    backbones.check_parameters(MaxViT, MaxViT.VARIANTS[name])
    backbones.check_macs(MaxViT, MaxViT.VARIANTS[name])


def test_every_size_is_published_for_three_sizes_of_images() -> None:
    sizes = ("tiny", "small", "base", "large", "xlarge")
    assert list(MaxViT.VARIANTS) == [f"maxvit_{size}{side}" for size in sizes for side in ("", "_384", "_512")]
    large = MaxViT.VARIANTS["maxvit_large_512"].config
    assert (large.window_size, large.scale_ratio) == (16, "512/224")


def narrow_timm(image_size: int) -> torch.nn.Module:
    timm = pytest.importorskip("timm")
    return timm.create_model(
        "maxvit_tiny_tf_224",
        img_size=image_size,
        num_classes=11,
        embed_dim=NARROW["dims"],
        depths=NARROW["depths"],
        stem_width=NARROW["stem_channels"],
        head_hidden_size=NARROW["dims"][-1],
    )


def test_equals_timms_network() -> None:
    ours = MaxViT(MaxViTConfig(num_classes=11, window_size=3, **NARROW))
    backbones.check_equals_timm(ours, narrow_timm(96), [(96, 96), (96, 192)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["maxvit_tiny", "maxvit_tiny_384"])
def test_equals_timms_tiny_network(name: str) -> None:
    timm = pytest.importorskip("timm")
    side = 384 if name.endswith("384") else 224
    theirs = timm.create_model(f"maxvit_tiny_tf_{side}")
    backbones.check_equals_timm(MaxViT(MaxViT.VARIANTS[name].config), theirs, [(side, side), (side, 2 * side)])


def test_takes_tables_that_timm_has_resized() -> None:
    ours = MaxViT(MaxViTConfig(num_classes=11, window_size=6, scale_ratio="192/96", **NARROW))
    assert ours.stages[0][0].attention[0].mixer.bias_table.shape[1:] == (5, 5)
    backbones.check_equals_timm(ours, narrow_timm(192), [(192, 192)])
    assert ours.config.scale_ratio is None
    twin = MaxViT(ours.config)
    twin.load_state_dict(ours.state_dict())
    assert twin.stages[0][0].attention[0].mixer.bias_table.shape[1:] == (11, 11)


def test_small_tables_of_timms_layout_stay_small() -> None:
    ours = MaxViT(MaxViTConfig(num_classes=11, window_size=6, scale_ratio="192/96", **NARROW))
    ours.load_reference(narrow_timm(96).state_dict())
    assert ours.config.scale_ratio == "192/96"
    assert ours.stages[0][0].attention[0].mixer.bias_table.shape[1:] == (5, 5)


def authors_layout(model: MaxViT) -> dict[str, torch.Tensor]:
    """Random variables under the authors' names and in their axes, written by a rule of the test's own."""
    made = {}
    for name, tensor in model.state_dict().items():
        theirs = authors_name(name)
        leaf = name.rpartition(".")[2]
        if leaf == "num_batches_tracked":
            continue
        if "qkv" in name:
            heads = tensor.shape[0] // 3 // model.config.head_dim
            shape = (*tensor.shape[1:], heads, model.config.head_dim)
            made |= {theirs.replace("qkv", letter): torch.rand(shape) for letter in "qkv"}
            continue
        shape = tuple(tensor.shape)
        if "o_proj.weight" in name:
            shape = (shape[1] // model.config.head_dim, model.config.head_dim, shape[0])
        elif "gate" in name and len(shape) == 2:
            shape = (1, 1, *reversed(shape))
        elif len(shape) == 2:
            shape = tuple(reversed(shape))
        elif len(shape) == 4:
            shape = (*shape[2:], shape[0], 1) if "depthwise" in name else (*shape[2:], shape[1], shape[0])
        made[theirs] = torch.rand(shape)
    return made


def authors_name(name: str) -> str:
    parts = name.split(".")
    outside = {"head_norm": "final_layer_norm", "head_proj": "cls_head/inner_dense", "head": "cls_head/logit_dense"}
    stem = {"conv1": "stem/conv_0", "norm": "stem/norm_0", "conv2": "stem/conv_1"}
    if parts[0] == "stem":
        layer = stem[parts[1]]
    elif parts[0] in outside:
        layer = outside[parts[0]]
    else:
        block = f"block_{int(parts[1]):02d}_{int(parts[2]):02d}/"
        if parts[3] == "conv":
            gate = {"down_proj": "se/reduce_conv2d", "up_proj": "se/expand_conv2d"}
            layer = f"{block}mbconv/" + (gate[parts[5]] if parts[4] == "gate" else parts[4])
        else:
            second = "" if parts[4] == "0" else f"_{parts[4]}"
            around = {"mixer_norm": "attn_layer_norm", "mlp_norm": "ffn_layer_norm", "mlp": "ffn", "mixer": "attention"}
            layer = f"{block}{around[parts[5]]}{second}"
            inside = {"up_proj": "/expand_dense", "down_proj": "/shrink_dense", "qkv": "/qkv", "o_proj": "/o"}
            layer += inside.get(parts[6], "")
    leaf = parts[-1]
    if leaf == "bias_table":
        return f"maxvit/{layer}/relative_bias"
    if "norm" in layer.rpartition("/")[2]:
        norm = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
        return f"maxvit/{layer}/{norm.get(leaf, leaf)}"
    if "conv" in layer and leaf == "weight":
        return f"maxvit/{layer}/{'depthwise_kernel' if 'depthwise' in layer else 'kernel'}"
    return f"maxvit/{layer}/{leaf}"


def test_loads_the_authors_layout_strictly() -> None:
    model = MaxViT(SMALL)
    layout = authors_layout(model)
    model.load_reference(layout)
    block = model.stages[1][1]
    kernel = layout["maxvit/block_01_01/mbconv/depthwise_conv/depthwise_kernel"]
    assert torch.equal(block.conv.depthwise_conv.weight[7, 0], kernel[:, :, 7, 0])
    widening = layout["maxvit/block_01_01/ffn_1/expand_dense/weight"]
    assert torch.equal(block.attention[1].mlp.up_proj.weight, widening.T)
    assert torch.equal(model.head.weight, layout["maxvit/cls_head/logit_dense/weight"].T)
    assert torch.equal(
        model.stages[0][0].conv.gate.down_proj.weight,
        layout["maxvit/block_00_00/mbconv/se/reduce_conv2d/kernel"][0, 0].T,
    )
    backbones.check_strict(model, layout)


def test_the_prefix_of_a_variable_does_not_matter() -> None:
    model, twin = MaxViT(SMALL), MaxViT(SMALL)
    layout = authors_layout(model)
    model.load_reference(layout)
    bare = {
        name.replace("maxvit/block", "block").replace("maxvit/stem/", "").replace("maxvit/cls_head/", "") + ":0": tensor
        for name, tensor in layout.items()
    }
    twin.load_reference(bare)
    for ours, other in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(ours, other)


def test_maps_have_the_sizes_that_they_say() -> None:
    assert MaxViT(SMALL).stage_strides == (4, 4, 8)
    backbones.check_maps(MaxViT(SMALL), SIZE)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 224), (200, 33), (225, 256)])
def test_takes_any_size(size: tuple[int, int]) -> None:
    model = MaxViT(SMALL).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 2, *size)).isfinite().all()


def test_checkpointing_changes_nothing_but_memory() -> None:
    backbones.check_checkpointing(MaxViT, replace(SMALL, drop_path=0.3), SIZE)


@pytest.mark.slow
def test_all_forms_agree() -> None:
    backbones.check_forms(MaxViT(replace(SMALL, dims=(8, 12), depths=(1, 1), strides=(2, 2))), SIZE)


def test_running_statistics_follow_a_short_training() -> None:
    """Evaluation after few steps is by the batches seen, not by where the statistics began."""
    torch.manual_seed(0)
    images = 3 + 2 * torch.randn(16, 1, 8, 8)
    for momentum, close in ((0.5, True), (0.01, False)):
        model = MaxViT(replace(MaxViT.SMALL, norm_momentum=momentum)).train()
        with torch.no_grad():
            for _ in range(20):
                trained = model(images)
            apart = (model.eval()(images) - trained).norm() / trained.norm()
        assert (float(apart) < 0.05) == close
    assert MaxViT.SMALL.norm_momentum == 0.1
    with pytest.raises(ValueError, match=r"norm_momentum must be in \(0, 1\], got 0"):
        replace(MaxViT.SMALL, norm_momentum=0)


def test_small_learns_digits_of_8_pixels() -> None:
    torch.manual_seed(0)
    model = MaxViT(MaxViT.SMALL)
    images, labels = torch.randn(20, 1, 8, 8), torch.arange(20) % 10
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_one_kind_of_attention_twice() -> None:
    model = MaxViT(replace(SMALL, kinds=("grid", "grid")))
    mixers = [block.mixer for block in model.modules() if isinstance(block, AttentionBlock)]
    assert len(mixers) == 8
    assert all(isinstance(mixer, MaxViTGridAttention) and mixer.size == 2 for mixer in mixers)
    backbones.check_maps(model, SIZE)


def test_depth_is_dropped_more_and_more() -> None:
    model = MaxViT(replace(SMALL, drop_path=0.4))
    blocks = [block for block in model.modules() if isinstance(block, MaxViTBlock)]
    rates = [{block.conv.drop_path.rate, *(part.drop_path.rate for part in block.attention)} for block in blocks]
    assert [len(each) for each in rates] == [1] * 4
    assert [each.pop() for each in rates] == pytest.approx([0, 0.1, 0.2, 0.3])


def test_ill_images_are_named() -> None:
    backbones.check_rejects(MaxViT(SMALL))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dims": (8, 12)}, "depths must have a positive number for each of the 2 stages"),
        ({"strides": (2, 0, 1)}, "strides must have a positive number for each of the 3 stages"),
        ({"kinds": ("block", "both")}, "kinds must be a list of block and grid"),
        ({"kinds": ()}, "kinds must be a list"),
        ({"num_classes": 0}, "num_classes must be positive, got 0"),
        ({"head_dim": 5}, "head_dim=5 must divide the width of every stage, got 8"),
        ({"head_dim": 0}, "head_dim must be positive, got 0"),
        ({"window_size": 0}, "window_size must be positive, got 0"),
        ({"grid_size": 0}, "grid_size must be positive, got 0"),
        ({"stem_channels": 0}, "stem_channels must be positive, got 0"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be positive"),
        ({"drop_path": 1.0}, "drop_path must be in"),
        ({"scale_ratio": "384/224"}, "scale_ratio must divide a window of 3 positions evenly"),
        ({"scale_ratio": "wide"}, "scale_ratio must be a ratio"),
    ],
)
def test_ill_configs_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)
