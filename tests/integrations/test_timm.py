"""timm builds our networks and mixers as its own."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import regard
from regard.metadata import No
from regard.mixers.channel.eca import ECA

timm = pytest.importorskip("timm")

from regard.integrations.timm import channel_attention_class, default_cfgs, register  # noqa: E402
from regard.integrations.timm_attention import TimmAttention  # noqa: E402

SMALL: dict[str, Any] = {"dims": (6, 12), "num_heads": (1, 2), "depths": (1, 2), "window_size": 3}
NAMES = register()


def small(**options: Any) -> Any:
    return timm.create_model("regard_davit_tiny", **{**SMALL, "num_classes": 5, **options}).eval()


def test_every_variant_is_registered_once() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert register() == NAMES
    assert set(timm.list_models("regard_*")) == set(NAMES)
    assert {"regard_davit_tiny", "regard_davit_giant"} <= set(NAMES)


FIRST_OF_FAMILY = {
    f"regard_{next(iter(getattr(regard.get_class(name), 'VARIANTS', ())), '')}" for name in regard.systems("model")
}


@pytest.mark.parametrize(
    "name", [name if name in FIRST_OF_FAMILY else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_every_network_says_what_it_gives(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=7)
        cfg = timm.data.resolve_model_data_config(model)
        maps = timm.create_model(name, features_only=True)
        found = maps(torch.empty(1, *cfg["input_size"]))
    assert model.num_classes == 7
    assert model.get_classifier() is model.network.head
    assert dict(model.named_modules())[default_cfgs[name].cfgs[""].first_conv].in_channels == 3
    assert [x.shape[1] for x in found] == maps.feature_info.channels()
    assert [-(-cfg["input_size"][-1] // stride) for stride in maps.feature_info.reduction()] == [
        x.shape[3] for x in found
    ]


def test_is_our_network() -> None:
    model = small()
    images = torch.randn(2, 3, 33, 47)
    with torch.no_grad():
        expected = model.network(images)
        assert torch.equal(model(images), expected)
        assert torch.equal(model.forward_head(model.forward_features(images)), expected)
        pooled = model.forward_head(model.forward_features(images), pre_logits=True)
    assert pooled.shape == (2, model.num_features)


def test_features_of_chosen_stages() -> None:
    model = small(features_only=True, out_indices=(1,))
    (only,) = model(torch.randn(1, 3, 33, 47))
    assert only.shape == (1, 12, 5, 6)
    assert model.feature_info.reduction() == [8]
    last, chosen = small().forward_intermediates(torch.randn(1, 3, 33, 47), indices=[0])
    assert [tuple(last.shape), *[tuple(x.shape) for x in chosen]] == [(1, 12, 5, 6), (1, 6, 9, 12)]
    with pytest.raises(ValueError, match="output_fmt must be NCHW, got NLC"):
        small().forward_intermediates(torch.randn(1, 3, 33, 47), output_fmt="NLC")


def test_the_classifier_can_be_changed_and_taken_off() -> None:
    model = small()
    images = torch.randn(2, 3, 16, 16)
    model.reset_classifier(11)
    assert model(images).shape == (2, 11)
    model.reset_classifier(0)
    assert model(images).shape == (2, model.num_features)
    model.reset_classifier(0, global_pool="")
    assert model(images).shape == (2, 12, 2, 2)
    assert small(num_classes=0)(images).shape == (2, 12)
    assert small(in_chans=1)(images[:, :1]).shape == (2, 5)


def test_checkpointing_can_be_switched() -> None:
    model = small().train()
    images = torch.randn(2, 3, 16, 16)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        assert model.network.config.checkpointing == enable
        gradients.append(torch.autograd.grad(model(images).square().sum(), list(model.parameters())))
    for plain, thrifty in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, thrifty)


def test_layers_are_grouped_for_decayed_rates() -> None:
    from timm.models import group_parameters

    model = small()
    groups = group_parameters(model, model.group_matcher(coarse=False))
    names = [name for group in groups.values() for name in group]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert len(groups) == 4
    assert "network.head.weight" in groups[max(groups)]


def test_loads_a_published_layout_from_a_file(tmp_path: Path) -> None:
    theirs = timm.create_model("davit_tiny", embed_dims=(24, 48, 96, 192), num_classes=5).eval()
    save_file(theirs.state_dict(), tmp_path / "davit.safetensors")
    options = {"dims": (24, 48, 96, 192), "pretrained_cfg_overlay": {"file": str(tmp_path / "davit.safetensors")}}
    overlay = {**options["pretrained_cfg_overlay"], "num_classes": 5}
    ours = timm.create_model(
        "regard_davit_tiny", pretrained=True, dims=options["dims"], num_classes=5, pretrained_cfg_overlay=overlay
    ).eval()
    images = torch.randn(3, 3, 64, 96)
    with torch.no_grad():
        expected, actual = theirs(images), ours(images)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(actual.argmax(dim=1), expected.argmax(dim=1))
    other = timm.create_model(
        "regard_davit_tiny",
        pretrained=True,
        dims=options["dims"],
        num_classes=7,
        in_chans=1,
        pretrained_cfg_overlay=overlay,
    )
    assert other(images[:, :1]).shape == (3, 7)
    assert torch.equal(other.network.stages[3].embedding.conv.weight, ours.network.stages[3].embedding.conv.weight)


def test_its_own_checkpoint_comes_back(tmp_path: Path) -> None:
    model = small()
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    again = small(checkpoint_path=str(tmp_path / "own.safetensors"))
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model(images), again(images))


def test_ill_options_are_named() -> None:
    with pytest.raises(TypeError, match="davit_tiny has no option 'window'"):
        small(window=3)


# --------------------------------------------------------------------------------------------------- attention


def bidirectional() -> list[str]:
    return [
        name
        for name, entry in regard.systems("sequence").items()
        if entry.traits is not None and not isinstance(entry.traits.bidirectional, No)
    ]


def test_mixers_that_see_both_ways_are_attention_layers() -> None:
    layers = timm.models.vision_transformer.ATTN_LAYERS
    fitting = {name.removeprefix("regard_") for name in layers if name.startswith("regard_")}
    assert {"softmax", "hedgehog", "linear", "agent"} <= fitting
    assert fitting <= set(bidirectional())


@pytest.mark.parametrize(
    "name", [name for name in timm.models.vision_transformer.ATTN_LAYERS if name.startswith("regard_")]
)
def test_a_vit_trains_with_every_mixer(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", attn_layer=name, embed_dim=24, depth=2, num_heads=3, img_size=48, num_classes=4
    )
    mixers = [part for part in model.modules() if isinstance(part, TimmAttention)]
    assert [part.mixer_name for part in mixers] == [name.removeprefix("regard_")] * 2
    scores = model(torch.randn(2, 3, 48, 48))
    assert scores.shape == (2, 4)
    scores.square().sum().backward()
    assert any(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in mixers[0].parameters())


def test_softmax_is_timms_attention() -> None:
    theirs = timm.layers.Attention(24, num_heads=3, qkv_bias=True).eval()
    layer = timm.models.vision_transformer.ATTN_LAYERS["regard_softmax"](24, num_heads=3, qkv_bias=True).eval()
    packed = theirs.state_dict()
    for part, weight, bias in zip("qkv", packed["qkv.weight"].chunk(3), packed["qkv.bias"].chunk(3), strict=True):
        projection = getattr(layer.mixer, f"{part}_proj")
        projection.load_state_dict({"weight": weight, "bias": bias})
    layer.mixer.o_proj.load_state_dict({"weight": packed["proj.weight"], "bias": packed["proj.bias"]})
    x = torch.randn(2, 7, 24)
    torch.testing.assert_close(layer(x), theirs(x))
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    expected = theirs(x, attn_mask=mask[:, None, None, :])
    torch.testing.assert_close(layer(x, attn_mask=mask[:, None, None, :])[mask], expected[mask])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"qk_norm": True}, "owns its norms"),
        ({"scale_norm": True}, "owns its norms"),
        ({"proj_bias": False}, "has no option proj_bias"),
    ],
)
def test_options_that_a_mixer_lacks_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.models.vision_transformer.ATTN_LAYERS["regard_hedgehog"](24, num_heads=3, **options)


def test_ill_calls_are_named() -> None:
    layer = timm.models.vision_transformer.ATTN_LAYERS["regard_softmax"](24, num_heads=3)
    x = torch.randn(2, 7, 24)
    with pytest.raises(ValueError, match="without a causal form"):
        layer(x, is_causal=True)
    with pytest.raises(ValueError, match="takes a boolean mask of 2 x 7 tokens"):
        layer(x, attn_mask=torch.zeros(2, 1, 7, 7))


def test_channel_mixers_go_in_by_class() -> None:
    options = {"block_args": {"attn_layer": channel_attention_class("eca")}, "num_classes": 3}
    model = timm.create_model("resnet18", **options).eval()
    assert sum(isinstance(part, ECA) for part in model.modules()) == 8
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)
    layer = channel_attention_class("davit_channel", num_groups=4)(12, dtype=torch.bfloat16)
    assert layer.mixer.num_groups == 4
    assert layer(torch.randn(1, 12, 5, 7).bfloat16()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="softmax is no feature mixer"):
        channel_attention_class("softmax")
