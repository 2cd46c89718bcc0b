"""ECA-ResNet: counted parameters and MACs, torchvision's ResNet without the mixer, the authors' layout."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import regard.mixers.channel.eca_ns
import regard.mixers.channel.squeeze_excitation  # noqa: F401
from regard.metadata import Variant
from regard.mixers.channel.eca import ECA
from regard.models.vision.eca_resnet import ECAResNet, ECAResNetConfig
from regard.registry import UnknownSystemError, create

SMALL = ECAResNetConfig(block="basic", depths=(1, 2, 1), widths=(6, 10, 14), stem="small", in_channels=2, num_classes=5)
ADDED = {"eca_resnet18": 44, "eca_resnet34": 72, "eca_resnet50": 80, "eca_resnet101": 157, "eca_resnet152": 234}
PAPER_MEGAS = {
    "eca_resnet18": 11.15,
    "eca_resnet34": 20.79,
    "eca_resnet50": 24.37,
    "eca_resnet101": 42.49,
    "eca_resnet152": 57.41,
}


def parameters(config: ECAResNetConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in ECAResNet(config).parameters())


@pytest.mark.parametrize(("name", "variant"), ECAResNet.VARIANTS.items())
def test_parameters_are_those_reported(name: str, variant: Variant) -> None:
    count = parameters(variant.config)
    assert count == variant.reported.params
    assert count - parameters(replace(variant.config, channel_mixer=None)) == ADDED[name]
    assert count / 2**20 == pytest.approx(PAPER_MEGAS[name], abs=0.01)


@pytest.mark.parametrize(
    "name",
    [
        "eca_resnet18",
        pytest.param("eca_resnet34", marks=pytest.mark.slow),
        "eca_resnet50",
        pytest.param("eca_resnet101", marks=pytest.mark.slow),
        pytest.param("eca_resnet152", marks=pytest.mark.slow),
    ],
)
def test_macs_are_those_reported(name: str) -> None:
    variant = ECAResNet.VARIANTS[name]
    reported = variant.reported
    assert reported.macs is not None
    with FakeTensorMode(), FlopCounterMode(display=False) as counter, torch.no_grad():
        ECAResNet(variant.config).eval()(torch.empty(1, 3, 224, 224))
    assert counter.get_total_flops() / 2 == pytest.approx(reported.macs, rel=reported.macs_tolerance)


def test_plain_network_is_torchvisions() -> None:
    torchvision = pytest.importorskip("torchvision.models")
    for theirs, name in ((torchvision.resnet18, "eca_resnet18"), (torchvision.resnet50, "eca_resnet50")):
        network = theirs(num_classes=7).eval()
        ours = ECAResNet(replace(ECAResNet.VARIANTS[name].config, channel_mixer=None, num_classes=7)).eval()
        ours.load_reference(network.state_dict())
        images = torch.randn(1, 3, 67, 71)
        with torch.no_grad():
            torch.testing.assert_close(ours(images), network(images), rtol=1e-4, atol=1e-4)


def authors_layout(model: ECAResNet, prefix: str = "") -> dict[str, Tensor]:
    """Random weights under the authors' names, written by a rule of the test's own."""
    made = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("stages."):
            stage, rest = name.removeprefix("stages.").split(".", 1)
            name = f"layer{int(stage) + 1}.{rest}"
        value = torch.rand_like(tensor.float())
        if name.endswith(".mixer.taps"):
            name, value = name.replace(".mixer.taps", ".eca.conv.weight"), value.view(-1, 1, value.shape[-1])
        made[prefix + name] = value
    return made


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("mixer", ["eca", "eca_ns"])
def test_loads_the_authors_layout(prefix: str, mixer: str) -> None:
    model = ECAResNet(replace(SMALL, channel_mixer=mixer, kernel_sizes=(3, 5, 7)))
    layout = authors_layout(model, prefix)
    model.load_reference(layout)
    block: Any = model.stages[1][1]  # type: ignore[index]
    assert torch.equal(block.conv2.weight, layout[f"{prefix}layer2.1.conv2.weight"])
    assert torch.equal(block.mixer.taps.flatten(), layout[f"{prefix}layer2.1.eca.conv.weight"].flatten())
    assert torch.equal(model.fc.bias, layout[f"{prefix}fc.bias"])


def test_layout_of_the_published_network_has_these_names() -> None:
    with torch.device("meta"):
        model = ECAResNet(ECAResNet.VARIANTS["eca_resnet50"].config)
    names = authors_layout(model)
    assert {"conv1.weight", "bn1.running_var", "layer1.0.downsample.0.weight", "fc.weight"} <= set(names)
    assert names["layer1.2.eca.conv.weight"].shape == (1, 1, 3)
    assert names["layer4.2.eca.conv.weight"].shape == (1, 1, 7)
    assert len(names) == len(model.state_dict())


def test_loading_is_strict() -> None:
    model = ECAResNet(replace(SMALL, kernel_sizes=(3, 3, 3)))
    layout = authors_layout(model)
    with pytest.raises(KeyError, match=r"missing keys: stages\.0\.0\.bn2\.bias"):
        model.load_reference({name: value for name, value in layout.items() if name != "layer1.0.bn2.bias"})
    with pytest.raises(KeyError, match=r"unknown keys: stages\.3\.0\.conv1\.weight"):
        model.load_reference({**layout, "layer4.0.conv1.weight": torch.zeros(1)})
    wrong = {**layout, "layer1.0.eca.conv.weight": torch.zeros(1, 1, 5)}
    with pytest.raises(ValueError, match=re.escape("mixer.taps has shape (1, 1, 5), it must be (3,)")):
        model.load_reference(wrong)


@pytest.mark.parametrize("mixer", ["eca", "eca_ns", "se", "se_var1", "se_var2", "se_var3", "se_gc", None])
def test_every_mixer_fits(mixer: str | None) -> None:
    model = ECAResNet(replace(SMALL, channel_mixer=mixer, kernel_sizes=(3, 5, 7)))
    images = torch.randn(3, 2, 13, 11)
    features = model.features(images)
    assert [tuple(x.shape) for x in features] == [(3, 6, 13, 11), (3, 10, 7, 6), (3, 14, 4, 3)]
    scores = model(images)
    assert scores.shape == (3, 5)
    scores.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_adaptive_kernel_sizes_by_default() -> None:
    with torch.device("meta"):
        model = ECAResNet(replace(ECAResNet.VARIANTS["eca_resnet50"].config, kernel_sizes=None))
    sizes = [module.kernel_size for module in model.modules() if isinstance(module, ECA)]
    assert sizes == [5] * 13 + [7] * 3


def test_gradient_checkpointing_changes_nothing_but_memory() -> None:
    plain = ECAResNet(SMALL).train()
    thrifty = ECAResNet(replace(SMALL, gradient_checkpointing=True)).train()
    thrifty.load_state_dict(copy.deepcopy(plain.state_dict()))
    images = torch.randn(3, 2, 9, 9)
    for model in (plain, thrifty):
        model(images).square().sum().backward()
    for (name, ours), theirs in zip(thrifty.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda text, name=name: f"{name}: {text}")
    for (name, ours), theirs in zip(thrifty.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")


def test_channels_last_bfloat16_and_autocast_agree() -> None:
    model = ECAResNet(SMALL).eval()
    images = torch.randn(2, 2, 13, 11)
    with torch.no_grad():
        expected = model(images)
        last = model(images.contiguous(memory_format=torch.channels_last))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(images)
        low = copy.deepcopy(model).bfloat16()(images.bfloat16())
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)
    for narrow in (mixed, low):
        assert float((narrow.float() - expected).norm() / expected.norm()) < 0.03


def test_exports_and_compiles_whole() -> None:
    model = ECAResNet(SMALL).eval()
    images = torch.randn(2, 2, 9, 9)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(images), model(images))
        torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), model(images))


def test_create_takes_fields_of_the_config() -> None:
    with torch.device("meta"):
        model = create("eca_resnet34", num_classes=11, channel_mixer="se")
    assert model.fc.out_features == 11
    assert model.config.depths == (3, 4, 6, 3)
    with pytest.raises(TypeError, match="did you mean num_classes"):
        create("eca_resnet34", num_clases=11)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": "wide"}, "block must be one of basic, bottleneck, got 'wide'"),
        ({"stem": "tiny"}, "stem must be imagenet or small, got 'tiny'"),
        ({"depths": (1, 1)}, "2 depths and 3 widths"),
        ({"kernel_sizes": (3, 3)}, "2 kernel_sizes and 3 stages"),
        ({"num_classes": 0}, "must be positive"),
        ({"depths": (), "widths": ()}, "must be a stage"),
    ],
)
def test_ill_configs_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_ill_mixers_and_images_are_named() -> None:
    with pytest.raises(UnknownSystemError, match="did you mean"):
        ECAResNet(replace(SMALL, channel_mixer="ecaa"))
    with pytest.raises(ValueError, match="'softmax', which is a SoftmaxAttention"):
        ECAResNet(replace(SMALL, channel_mixer="softmax"))
    with pytest.raises(ValueError, match="odd, got 4"):
        ECAResNet(replace(SMALL, kernel_sizes=(4, 3, 3)))
    with pytest.raises(ValueError, match=re.escape("(batch, 2, y, x), got (1, 3, 8, 8)")):
        ECAResNet(SMALL)(torch.zeros(1, 3, 8, 8))
