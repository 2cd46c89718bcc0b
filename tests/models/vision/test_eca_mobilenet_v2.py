"""ECA-MobileNetV2: counted parameters and MACs, torchvision's network without the mixer, the authors' layout."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import regard.mixers.channel.squeeze_excitation  # noqa: F401
from regard.layers.residual_blocks import InvertedResidual
from regard.mixers.channel.eca import ECA
from regard.models.vision.eca_mobilenet_v2 import ECAMobileNetV2, ECAMobileNetV2Config
from regard.registry import create

PUBLISHED = ECAMobileNetV2.VARIANTS["eca_mobilenet_v2"]
SMALL = ECAMobileNetV2Config(width_mult=0.25, num_classes=7)


def test_parameters_and_macs_are_those_reported() -> None:
    with torch.device("meta"):
        counts = [
            sum(parameter.numel() for parameter in ECAMobileNetV2(config).parameters())
            for config in (PUBLISHED.config, replace(PUBLISHED.config, channel_mixer=None))
        ]
    assert counts == [PUBLISHED.reported.params, 3_504_872]
    assert counts[0] - counts[1] == 31
    with FakeTensorMode(), FlopCounterMode(display=False) as counter, torch.no_grad():
        ECAMobileNetV2(PUBLISHED.config).eval()(torch.empty(1, 3, 224, 224))
    assert PUBLISHED.reported.macs is not None
    tolerance = PUBLISHED.reported.macs_tolerance
    assert counter.get_total_flops() / 2 == pytest.approx(PUBLISHED.reported.macs, rel=tolerance)


def test_one_tap_below_96_channels_and_three_from_there() -> None:
    with torch.device("meta"):
        model = ECAMobileNetV2(PUBLISHED.config)
    sizes = {(gate.channels, gate.kernel_size) for gate in model.modules() if isinstance(gate, ECA)}
    assert sizes == {(16, 1), (24, 1), (32, 1), (64, 1), (96, 3), (160, 3), (320, 3)}


def test_plain_network_is_torchvisions() -> None:
    torchvision = pytest.importorskip("torchvision.models")
    theirs = torchvision.mobilenet_v2(num_classes=7).eval()
    ours = ECAMobileNetV2(ECAMobileNetV2Config(channel_mixer=None, num_classes=7)).eval()
    ours.load_reference(theirs.state_dict())
    images = torch.randn(1, 3, 67, 71)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


def authors_layout(model: ECAMobileNetV2) -> dict[str, Tensor]:
    """Random weights under the authors' names: in every block the gate follows the last convolution's norm."""
    made = {}
    for name, tensor in model.state_dict().items():
        value = torch.rand_like(tensor.float())
        found = re.fullmatch(r"features\.(\d+)\.mixer\.taps", name)
        if found:
            place = 3 if found[1] == "1" else 4
            name, value = f"features.{found[1]}.conv.{place}.conv.weight", value.view(1, 1, -1)
        made[name] = value
    return made


@pytest.mark.parametrize("prefix", ["", "module."])
def test_loads_the_authors_layout(prefix: str) -> None:
    model = ECAMobileNetV2(SMALL)
    layout = {prefix + name: value for name, value in authors_layout(model).items()}
    model.load_reference(layout)
    first, last = model.features[1], model.features[17]
    assert isinstance(first, InvertedResidual)
    assert isinstance(last, InvertedResidual)
    assert isinstance(first.mixer, ECA)
    assert isinstance(last.mixer, ECA)
    assert torch.equal(first.mixer.taps, layout[f"{prefix}features.1.conv.3.conv.weight"].flatten())
    assert torch.equal(last.mixer.taps, layout[f"{prefix}features.17.conv.4.conv.weight"].flatten())
    assert torch.equal(model.state_dict()["classifier.1.weight"], layout[f"{prefix}classifier.1.weight"])


def test_loading_is_strict() -> None:
    model = ECAMobileNetV2(SMALL)
    layout = authors_layout(model)
    misplaced = {"features.2.conv.9.conv.weight": layout.pop("features.2.conv.4.conv.weight")}
    message = r"unknown keys: features\.2\.conv\.9\.conv\.weight; missing keys: features\.2\.mixer\.taps"
    with pytest.raises(KeyError, match=message):
        model.load_reference({**layout, **misplaced})
    with pytest.raises(KeyError, match=r"unknown keys: features\.40\.conv\.4\.conv\.weight"):
        model.load_reference({**layout, "features.40.conv.4.conv.weight": torch.zeros(1, 1, 1)})


def test_gradient_checkpointing_changes_nothing_but_memory() -> None:
    plain = ECAMobileNetV2(replace(SMALL, dropout=0.0)).train()
    thrifty = ECAMobileNetV2(replace(SMALL, dropout=0.0, gradient_checkpointing=True)).train()
    thrifty.load_state_dict(plain.state_dict())
    plain, thrifty = plain.double(), thrifty.double()
    images = torch.randn(3, 3, 33, 35, dtype=torch.float64)
    for model in (plain, thrifty):
        model(images).square().sum().backward()
    for (name, ours), theirs in zip(thrifty.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda text, name=name: f"{name}: {text}")
    for (name, ours), theirs in zip(thrifty.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")


def test_dropout_acts_in_training_alone() -> None:
    model = ECAMobileNetV2(replace(SMALL, dropout=0.5))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert not torch.equal(model(images), model(images))
        model.eval()
        assert torch.equal(model(images), model(images))


def test_other_mixers_fit() -> None:
    with torch.device("meta"):
        model = create("eca_mobilenet_v2", channel_mixer="se", num_classes=3)
    assert sum(1 for name, _ in model.named_parameters() if name.endswith("mixer.down_proj.weight")) == 17


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width_mult": 0.05}, "got 0.05"),
        ({"kernel_sizes": (3,)}, "two numbers"),
        ({"dropout": 1.0}, "below 1, got 1.0"),
        ({"num_classes": 0}, "must be positive, got 3 and 0"),
    ],
)
def test_ill_configs_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)
    with pytest.raises(ValueError, match=re.escape("(batch, 3, y, x), got (3, 8, 8)")):
        ECAMobileNetV2(SMALL)(torch.zeros(3, 8, 8))
