"""The encoder is timm's, for images of any number of channels, frozen or not."""

from __future__ import annotations

import copy
import sys

import pytest
import torch

from regard.models.medical.efficientnet_encoder import EfficientNetEncoder, fitted_stem

timm = pytest.importorskip("timm")
COUNTED = {3: 3_595_388, 4: 3_595_676}


@pytest.mark.parametrize("in_channels", COUNTED)
def test_has_timms_parameters_and_maps(in_channels: int) -> None:
    theirs = timm.create_model("efficientnet_b0", features_only=True, in_chans=in_channels).eval()
    ours = EfficientNetEncoder("efficientnet_b0", in_channels=in_channels).eval()
    assert sum(parameter.numel() for parameter in ours.parameters()) == COUNTED[in_channels]
    assert ours.channels == (16, 24, 40, 112, 320)
    ours.load_reference(theirs.state_dict())
    images = torch.randn(2, in_channels, 64, 96)
    with torch.no_grad():
        maps = ours(images)
        assert [tuple(x.shape[2:]) for x in maps] == [(64 >> level, 96 >> level) for level in range(1, 6)]
        torch.testing.assert_close(list(maps), theirs(images))


@pytest.mark.parametrize("in_channels", [1, 2, 4, 5])
def test_stems_are_fitted_as_timm_does(in_channels: int) -> None:
    from timm.models import adapt_input_conv

    weight = torch.randn(7, 3, 3, 3)
    torch.testing.assert_close(fitted_stem(weight, in_channels), adapt_input_conv(in_channels, weight))


def test_loads_a_classifiers_weights_and_leaves_the_classifier_out() -> None:
    theirs = timm.create_model("efficientnet_b0", num_classes=5)
    ours = EfficientNetEncoder("efficientnet_b0", in_channels=4)
    ours.load_reference(theirs.state_dict())
    torch.testing.assert_close(ours.conv_stem.weight, fitted_stem(theirs.conv_stem.weight, 4))
    assert torch.equal(ours.blocks[5][2].conv_pwl.weight, theirs.blocks[5][2].conv_pwl.weight)
    layout = dict(theirs.state_dict())
    del layout["blocks.0.0.bn1.weight"]
    with pytest.raises(KeyError, match=r"missing keys: blocks\.0\.0\.bn1\.weight"):
        ours.load_reference(layout)


def test_weights_for_imagenet_are_asked_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = timm.create_model("efficientnet_b0")
    asked = []

    def create_model(name: str, *, pretrained: bool) -> torch.nn.Module:
        asked.append((name, pretrained))
        return theirs

    ours = EfficientNetEncoder("efficientnet_b0", in_channels=3)
    monkeypatch.setattr(timm, "create_model", create_model)
    ours.load_pretrained()
    assert asked == [("efficientnet_b0", True)]
    assert torch.equal(ours.conv_stem.weight, theirs.conv_stem.weight)


def test_frozen_parts_stay_as_they_are() -> None:
    encoder = EfficientNetEncoder("efficientnet_b0", in_channels=3).train()
    encoder.freeze()
    before = copy.deepcopy(encoder.state_dict())
    encoder.train()
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    encoder(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(encoder.state_dict(), before, rtol=0, atol=0)
    encoder.freeze(False)
    encoder.train()
    encoder(torch.randn(2, 3, 32, 32))
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    assert not torch.equal(encoder.bn1.running_mean, before["bn1.running_mean"])


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_none"])
def test_other_networks_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"encoder must be an EfficientNet .* got '{name}'"):
        EfficientNetEncoder(name, in_channels=3)


def test_needs_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="timm"):
        EfficientNetEncoder("efficientnet_b0", in_channels=3)
