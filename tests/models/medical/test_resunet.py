"""ResUNet: counted sizes, wiring, gradients, recomputation, folding, and what it refuses."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from regard.meta_device import sizes_only
from regard.models.medical.resunet import ResUNet, ResUNetConfig

TINY = ResUNetConfig(in_channels=2, num_classes=3, widths=(5, 7, 11))


def settled(config: ResUNetConfig) -> ResUNet:
    model, generator = ResUNet(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim == 1:
                low, high = (0.7, 1.3) if name.endswith(("var", "weight")) else (-0.1, 0.1)
                tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
    return model.eval()


def unit(fine: int, coarse: int, *, first: bool = False) -> int:
    """Parameters of a residual unit, by hand."""
    norms = 2 * (coarse + coarse) + (0 if first else 2 * fine)
    return norms + 9 * coarse * (fine + coarse) + fine * coarse


def test_the_network_has_the_parameters_of_its_table() -> None:
    with sizes_only():
        model = ResUNet(ResUNet.VARIANTS["resunet_residual"].config)
    down = unit(3, 64, first=True) + unit(64, 128) + unit(128, 256) + unit(256, 512)
    up = unit(512 + 256, 256) + unit(256 + 128, 128) + unit(128 + 64, 64)
    assert sum(parameter.numel() for parameter in model.parameters()) == down + up + 65 == 8_219_585


def test_wiring() -> None:
    model = settled(TINY)
    images = torch.randn(2, 2, 12, 20)
    with torch.no_grad():
        fine = model.encoder[0](images)
        middle = model.encoder[1](fine)
        coarse = model.encoder[2](middle)
        assert coarse.shape == (2, 11, 3, 5)
        up = model.decoder[1](model.decoder[0](coarse, middle), fine)
        torch.testing.assert_close(model(images), model.head(up))
        torch.testing.assert_close(model.fused()(images), model(images), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(images), model(images))


@pytest.mark.parametrize("upsampling", ["bilinear", "transposed"])
def test_every_parameter_gets_a_gradient(upsampling: str) -> None:
    model = ResUNet(replace(TINY, upsampling=upsampling))
    scores = model(torch.randn(2, 2, 12, 20))
    (scores * torch.randn_like(scores)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_checkpointing_changes_nothing_but_memory() -> None:
    plain, thrifty = ResUNet(TINY).train(), ResUNet(replace(TINY, checkpointing=True)).train()
    thrifty.load_state_dict(copy.deepcopy(plain.state_dict()))
    images = torch.randn(3, 2, 12, 20)
    for model in (plain, thrifty):
        model(images).square().mean().backward()
    for ours, theirs in zip(thrifty.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    for ours, theirs in zip(thrifty.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_first_unit_sees_the_slices_as_they_are() -> None:
    model = ResUNet(TINY)
    assert model.encoder[0].bn1 is None
    assert all(isinstance(part.bn1, nn.BatchNorm2d) for part in list(model.encoder)[1:])


def test_loads_its_own_layout_strictly() -> None:
    model, other = ResUNet(TINY), settled(TINY)
    model.load_reference(other.state_dict())
    assert torch.equal(model.head.weight, other.head.weight)
    with pytest.raises(KeyError, match=r"unknown keys: nobody\.knows"):
        model.load_reference({**other.state_dict(), "nobody.knows": torch.zeros(1)})


def test_ill_slices_and_configs_are_named() -> None:
    assert ResUNet(TINY).stride == 4
    with pytest.raises(ValueError, match="multiple of 4"):
        ResUNet(TINY)(torch.zeros(2, 2, 12, 18))
    with pytest.raises(ValueError, match="widths must be at least 2 positive numbers"):
        replace(TINY, widths=(5,))
    with pytest.raises(ValueError, match="upsampling must be one of bilinear, transposed, got 'nearest'"):
        replace(TINY, upsampling="nearest")
    with pytest.raises(ValueError, match="num_classes=0"):
        ResUNet(replace(TINY, num_classes=0))
