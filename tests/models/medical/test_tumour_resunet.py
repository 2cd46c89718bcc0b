"""The tumour network: counted sizes, switches that add exactly their parts, its wiring, and its forms."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from regard.meta_device import sizes_only
from regard.models.medical.efficientnet_encoder import EfficientNetEncoder
from regard.models.medical.tumour_resunet import TumourResUNet, TumourResUNetConfig

pytest.importorskip("timm")
PARAMETERS = {"resunet_b0": 5_997_837, "tumour_resunet_lgg": 8_550_701, "tumour_resunet_brats": 8_551_023}
TINY = TumourResUNetConfig(
    in_channels=2, num_classes=3, aspp_rates=(1, 2), aspp_channels=24, decoder_widths=(20, 16, 12, 8, 6)
)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def built(config: TumourResUNetConfig) -> TumourResUNet:
    """Without memory for the weights."""
    with sizes_only():
        return TumourResUNet(config)


def settled(config: TumourResUNetConfig) -> TumourResUNet:
    """In evaluation, every number away from its start."""
    model, generator = TumourResUNet(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim == 1:
                low, high = (0.7, 1.3) if name.endswith(("var", "weight")) else (-0.1, 0.1)
                tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_variants_have_their_parameters(name: str, parameters: int) -> None:
    assert count(built(TumourResUNet.VARIANTS[name].config)) == parameters


@pytest.mark.parametrize("attention", ["se", "cbam"])
def test_gates_add_exactly_their_parameters(attention: str) -> None:
    plain = built(TumourResUNetConfig(attention="none"))
    gated = built(TumourResUNetConfig(attention=attention))
    widths = {16: 4, 24: 4, 40: 4, 112: 7, 256: 16}
    gates = count(gated.skip_gates) + count(gated.aspp_gate)
    assert count(gated) - count(plain) == gates == sum(2 * width * hidden for width, hidden in widths.items())


def test_the_pyramid_adds_exactly_its_parameters() -> None:
    # 320 channels are what the decoder reads without it
    pyramid = built(TumourResUNetConfig(aspp_channels=320))
    plain = built(TumourResUNetConfig(aspp=False))
    assert pyramid.aspp is not None
    assert plain.aspp is None
    assert count(pyramid) - count(plain) == count(pyramid.aspp) + count(pyramid.aspp_gate)


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (96, 32)], ids=str)
def test_scores_are_as_large_as_the_slices(size: tuple[int, int]) -> None:
    model = settled(TINY)
    with torch.no_grad():
        (scores,) = model.outputs(torch.randn(2, 2, *size))
    assert scores.shape == (2, 3, *size)


def test_skips_are_gated_and_go_up_beside_the_coarser_map() -> None:
    model = settled(TINY)
    images = torch.randn(2, 2, 32, 64)
    with torch.no_grad():
        e1, e2, e3, e4, e5 = model.encoder(images)
        x = model.aspp(e5)
        x = x * model.aspp_gate.gate(x)
        gates = model.skip_gates
        for block, gate, skip in zip(model.decoder, reversed(gates), (e4, e3, e2, e1), strict=False):
            x = block(x, skip * gate.gate(skip))
        torch.testing.assert_close(model(images), model.head(model.decoder[4](x)))


@pytest.mark.parametrize("upsampling", ["bilinear", "transposed"])
@pytest.mark.parametrize("attention", ["none", "se", "cbam"])
@pytest.mark.parametrize("aspp", [True, False], ids=["aspp", "plain"])
def test_every_parameter_gets_a_gradient(attention: str, aspp: bool, upsampling: str) -> None:
    model = TumourResUNet(replace(TINY, attention=attention, aspp=aspp, upsampling=upsampling, aspp_dropout=0.0))
    scores = model(torch.randn(3, 2, 64, 64))
    (scores * torch.randn_like(scores)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_checkpointing_changes_nothing_but_memory() -> None:
    plain = TumourResUNet(replace(TINY, drop_path=0.3)).train()
    thrifty = TumourResUNet(replace(TINY, drop_path=0.3, checkpointing=True)).train()
    thrifty.load_state_dict(copy.deepcopy(plain.state_dict()))
    images = torch.randn(3, 2, 64, 32)
    for model in (plain, thrifty):
        torch.manual_seed(5)
        model(images).square().mean().backward()
    for (name, ours), theirs in zip(thrifty.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda text, name=name: f"{name}: {text}")
    for (name, ours), theirs in zip(thrifty.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")


def test_forms_for_inference_agree() -> None:
    model = settled(TINY)
    images = torch.randn(2, 2, 32, 64)
    with torch.no_grad():
        expected = model(images)
        last = copy.deepcopy(model).to(memory_format=torch.channels_last)
        torch.testing.assert_close(last(images), expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(model.fused()(images), expected, rtol=1e-3, atol=1e-4)
        for narrow in (copy.deepcopy(model).bfloat16(), model.fused().bfloat16()):
            scores = narrow(images.bfloat16()).float()
            assert float((scores - expected).norm() / expected.norm()) < 0.05


@pytest.mark.slow
def test_compiles_and_exports() -> None:
    model = settled(TINY)
    images = torch.randn(2, 2, 32, 64)
    with torch.no_grad():
        expected = model(images)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(images), expected)
        torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), expected)


def test_fused_networks_have_no_norm_behind_a_convolution() -> None:
    model = settled(TINY)
    fused = model.fused()
    names = {name for name, part in fused.named_modules() if isinstance(part, nn.BatchNorm2d)}
    assert names == {f"decoder.{number}.unit.bn1" for number in range(5)}
    assert any(isinstance(part, nn.BatchNorm2d) for part in model.encoder.modules())


def test_loads_its_own_layout_strictly() -> None:
    model, other = TumourResUNet(TINY), settled(TINY)
    model.load_reference(other.state_dict())
    assert torch.equal(model.decoder[3].unit.conv1.weight, other.decoder[3].unit.conv1.weight)
    layout = other.state_dict()
    del layout["head.bias"]
    with pytest.raises(KeyError, match=r"missing keys: head\.bias"):
        model.load_reference(layout)


def test_starts_from_a_classifier_of_timm() -> None:
    import timm

    theirs = timm.create_model("efficientnet_b0", num_classes=7)
    model = TumourResUNet(TINY)
    head = model.head.weight.detach().clone()
    model.load_reference(theirs.state_dict())
    assert torch.equal(model.encoder.blocks[6][0].conv_dw.weight, theirs.blocks[6][0].conv_dw.weight)
    assert torch.equal(model.head.weight, head)


def test_pretrained_weights_are_loaded_where_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    monkeypatch.setattr(EfficientNetEncoder, "load_pretrained", lambda encoder: loaded.append(encoder))
    TumourResUNet(TINY)
    built(replace(TINY, pretrained=True))
    assert loaded == []
    model = TumourResUNet(replace(TINY, pretrained=True))
    assert loaded == [model.encoder]


def test_a_frozen_encoder_is_not_trained() -> None:
    model = TumourResUNet(replace(TINY, freeze_encoder=True)).train()
    model(torch.randn(2, 2, 64, 64)).sum().backward()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert all(parameter.grad is not None for parameter in model.decoder.parameters())
    assert not model.encoder.bn1.training
    model.encoder.freeze(False)
    assert model.train().encoder.bn1.training


def test_small_is_for_the_generated_slices() -> None:
    model = TumourResUNet(TumourResUNet.SMALL).eval()
    assert (model.stride, model.smallest, model.spatial_dims) == (32, 32, 2)
    with torch.no_grad():
        assert model(torch.randn(1, 3, 96, 96)).shape == (1, 1, 96, 96)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 2, 64, 48), "multiple of 32 and at least 32"),
        ((2, 3, 64, 64), r"must have shape \(batch, 2, y, x\)"),
        ((2, 64, 64), r"must have shape \(batch, 2, y, x\)"),
    ],
    ids=["sides", "channels", "axes"],
)
def test_ill_slices_are_named(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TumourResUNet(TINY)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "eca"}, "attention must be one of none, se, cbam, got 'eca'"),
        ({"upsampling": "nearest"}, "upsampling must be one of bilinear, transposed, got 'nearest'"),
        ({"decoder_widths": (8, 8, 8, 8)}, "decoder_widths must be 5 positive numbers"),
        ({"decoder_widths": (8, 8, 8, 8, 0)}, "decoder_widths must be 5 positive numbers"),
        ({"aspp_rates": ()}, "rates must be positive and at least one"),
        ({"aspp_dropout": -0.1}, "dropout must be in"),
        ({"reduction": 0}, "reduction must be positive, got 0"),
        ({"drop_path": 1.0}, r"drop_path must be in \[0, 1\), got 1.0"),
        ({"num_classes": 0}, "num_classes must be positive|must be positive, got in_channels=2 and num_classes=0"),
        ({"encoder": "resnet18"}, "encoder must be an EfficientNet with maps at strides"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_ill_configs_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(replace(TINY, **changes))
