"""What both light networks share: memory layout, folding, two heads, and layouts of weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import backbones
import pytest
import torch
from torch import nn

from regard.models.vision.efficientvit import EfficientViT, EfficientViTConfig
from regard.models.vision.light_network import LightNetwork, fit_pointwise
from regard.models.vision.shvit import SHViT, SHViTConfig

SMALL: dict[type[LightNetwork], Any] = {
    SHViT: SHViTConfig(
        in_channels=3, num_classes=5, dims=(16, 24), depths=(1, 2), partial_dims=(5, 7), types=("i", "s"), patch_size=4
    ),
    EfficientViT: EfficientViTConfig(
        in_channels=3,
        num_classes=5,
        image_size=28,
        dims=(16, 24),
        depths=(1, 2),
        num_heads=(2, 3),
        kernel_sizes=(5, 3, 3),
        window_size=3,
        head_dim=6,
        patch_size=4,
    ),
}
NETWORKS = pytest.mark.parametrize("network", SMALL)


@NETWORKS
@pytest.mark.parametrize("distillation", [False, True])
def test_fused_scores_are_the_same(network: type[LightNetwork], distillation: bool) -> None:
    model = backbones.randomised(network(replace(SMALL[network], distillation=distillation, drop_path=0.2)))
    fused = model.train().fused()
    assert model.training
    assert not fused.training
    images = torch.randn(2, 3, 27, 41)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(fused(images), model(images), rtol=0, atol=1e-4)
        for ours, theirs in zip(fused.features(images), model.features(images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert len(list(fused.modules())) < len(list(model.modules()))
    assert not any(isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) for part in fused.modules())
    assert any(isinstance(part, nn.BatchNorm2d) for part in model.modules())
    assert isinstance(fused.head, nn.Linear)
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.slow
@NETWORKS
def test_fused_networks_have_all_forms(network: type[LightNetwork]) -> None:
    backbones.check_forms(backbones.randomised(network(SMALL[network])).fused(), (27, 41))


@NETWORKS
def test_maps_keep_their_channels_last_in_memory(network: type[LightNetwork]) -> None:
    model = network(SMALL[network]).eval()
    with torch.no_grad():
        for maps in model.features(torch.randn(2, 3, 36, 44)):
            assert maps.is_contiguous(memory_format=torch.channels_last)


@NETWORKS
def test_a_second_head_learns_from_a_teacher(network: type[LightNetwork]) -> None:
    model = backbones.randomised(network(replace(SMALL[network], distillation=True)))
    images = torch.randn(2, 3, 27, 41)
    labels, teacher = model.train()(images)
    assert labels.shape == teacher.shape == (2, 5)
    model.eval()
    pooled = model.pool(model.features(images)[-1])
    torch.testing.assert_close(model(images), (model.head.labels(pooled) + model.head.teacher(pooled)) / 2)


@NETWORKS
def test_training_on_a_single_image_is_refused(network: type[LightNetwork]) -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network(SMALL[network]).train()(torch.randn(1, 3, 27, 41))


def test_pointwise_weights_take_the_shape_of_ours() -> None:
    own = {"matrix": torch.zeros(3, 2), "conv": torch.zeros(3, 2, 1, 1), "wide": torch.zeros(3, 2, 3, 3)}
    given = {
        "matrix": torch.randn(3, 2, 1, 1),
        "conv": torch.randn(3, 2),
        "wide": torch.randn(3, 2),
        "unknown": torch.randn(3, 2, 1, 1),
    }
    fitted = fit_pointwise(given, own)
    assert {name: tuple(tensor.shape) for name, tensor in fitted.items()} == {
        "matrix": (3, 2),
        "conv": (3, 2, 1, 1),
        "wide": (3, 2),
        "unknown": (3, 2, 1, 1),
    }
    assert torch.equal(fitted["matrix"], given["matrix"][:, :, 0, 0])
    assert fit_pointwise({"matrix": torch.zeros(2, 3, 1, 1)}, own)["matrix"].ndim == 4
