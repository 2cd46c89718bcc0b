"""MLP-Mixer against timm: parameters, outputs, layout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from regard.models.vision.mlp_mixer import MLPMixer, MLPMixerConfig

SMALL = MLPMixerConfig(
    image_size=12, num_classes=5, patch_size=4, dim=12, num_layers=2, token_hidden=6, hidden=48, dropout=0.0
)


def test_parameters_are_timms() -> None:
    variant = MLPMixer.VARIANTS["mlp_mixer_b16"]
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in MLPMixer(variant.config).parameters())
    assert count == 59_880_472
    assert count == pytest.approx(variant.reported.params, rel=variant.reported.params_tolerance)


def test_equals_timm_and_loads_its_layout_strictly() -> None:
    timm = pytest.importorskip("timm")
    theirs = timm.models.mlp_mixer.MlpMixer(num_classes=5, img_size=12, patch_size=4, num_blocks=2, embed_dim=12).eval()
    torch.nn.init.normal_(theirs.head.weight)
    ours, state = MLPMixer(SMALL).eval(), theirs.state_dict()
    ours.load_reference(state)
    images = torch.randn(3, 3, 12, 12)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)
    state["blocks.0.norm3.weight"] = state.pop("blocks.0.norm1.weight")
    with pytest.raises(KeyError, match=r"blocks\.0\.norm3\.weight; missing keys: blocks\.0\.token_norm\.weight"):
        ours.load_reference(state)


def test_checkpointing_changes_nothing_but_memory() -> None:
    plain = MLPMixer(SMALL).double().train()
    thrifty = MLPMixer(replace(SMALL, checkpointing=True)).double().train()
    thrifty.load_state_dict(plain.state_dict())
    images = torch.randn(3, 3, 12, 12, dtype=torch.float64)
    for model in (plain, thrifty):
        model(images).square().sum().backward()
    for ours, theirs in zip(thrifty.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_ill_configs_are_named() -> None:
    with pytest.raises(ValueError, match="num_layers must be positive, got 0"):
        replace(SMALL, num_layers=0)
    with pytest.raises(ValueError, match="image_size=12, got 5"):
        MLPMixer(replace(SMALL, patch_size=5))
