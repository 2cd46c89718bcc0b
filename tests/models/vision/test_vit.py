"""ViT against timm with softmax attention; with other mixers, causal ones too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from regard.models.vision.vit import ViT, ViTConfig

SMALL = ViTConfig(image_size=12, num_classes=5, patch_size=4, dim=12, num_layers=2, num_heads=3, hidden=48)


def test_parameters_are_timms() -> None:
    variant = ViT.VARIANTS["vit_b16"]
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in ViT(variant.config).parameters())
    assert count == 86_567_656
    assert count == pytest.approx(variant.reported.params, rel=variant.reported.params_tolerance)


@pytest.mark.parametrize("class_token", [True, False])
def test_equals_timm_and_loads_its_layout_strictly(class_token: bool) -> None:
    timm = pytest.importorskip("timm")
    pooling: dict[str, Any] = {"class_token": class_token, "global_pool": "token" if class_token else "avg"}
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=12, patch_size=4, num_classes=5, embed_dim=12, depth=2, num_heads=3, fc_norm=False, **pooling
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours, state = ViT(replace(SMALL, class_token=class_token)).eval(), theirs.state_dict()
    ours.load_reference(state)
    images = torch.randn(3, 3, 12, 12)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-3, atol=1e-4)
    state["blocks.1.attn.scale"] = state.pop("blocks.1.attn.qkv.bias")
    with pytest.raises(
        KeyError, match=r"blocks\.1\.attn\.scale; missing keys: encoder\.blocks\.1\.mixer\.k_proj\.bias"
    ):
        ours.load_reference(state)


@pytest.mark.parametrize("mixer", ["linear", "aaren", "lightning"])
def test_other_mixers_see_the_whole_image(mixer: str) -> None:
    model = ViT(replace(SMALL, mixer=mixer)).eval()
    assert model.causal == (mixer != "linear")
    images = torch.randn(1, 3, 12, 12, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(images).square().sum(), images)
    patches = gradient.abs().unfold(2, 4, 4).unfold(3, 4, 4).sum(dim=(0, 1, 4, 5))
    assert (patches > 0).all()
    with pytest.raises(ValueError, match=f"the mixer here is {mixer}"):
        model.load_reference({})


def test_a_class_token_must_see_the_patches() -> None:
    with pytest.raises(ValueError, match="class_token=True with the causal mixer aaren"):
        ViT(replace(SMALL, mixer="aaren", class_token=True))
    with pytest.raises(ValueError, match="num_classes must be positive, got 0"):
        replace(SMALL, num_classes=0)


def test_options_reach_the_mixer() -> None:
    model = ViT(replace(SMALL, mixer_options={"num_kv_heads": 1, "qkv_bias": False}))
    assert {mixer.num_kv_heads for mixer in model.encoder.mixers()} == {1}
