"""What every hierarchical image network must do, said once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from regard.metadata import Variant
from regard.models.vision.backbone import Backbone


def check_parameters(cls: Callable[[Any], nn.Module], variant: Variant) -> None:
    """The number of parameters is the reported one, counted without memory for them."""
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in cls(variant.config).parameters())
    assert count == pytest.approx(variant.reported.params, rel=variant.reported.params_tolerance, abs=0.5)


def check_macs(cls: Callable[[Any], nn.Module], variant: Variant) -> None:
    """The contractions of a forward are the reported ones."""
    assert variant.reported.macs is not None
    size = getattr(variant.config, "image_size", None) or variant.reported.image_size or 224
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        cls(variant.config).eval()(torch.empty(1, variant.config.in_channels, size, size))
    assert counter.get_total_flops() / 2 == pytest.approx(variant.reported.macs, rel=variant.reported.macs_tolerance)


def randomised(model: nn.Module) -> nn.Module:
    """Every parameter and statistic away from its start, so that none can be left out unseen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif tensor.ndim > 1:
                tensor.copy_(tensor + 0.01 * torch.randn(tensor.shape, generator=generator))
            else:
                tensor.copy_(tensor + 0.2 * torch.randn(tensor.shape, generator=generator))
    return model


def check_equals_timm(
    ours: Any, theirs: nn.Module, sizes: Sequence[tuple[int, int]], *, tolerance: float = 1e-5
) -> None:
    """With timm's own random weights, loaded from its layout, the scores are timm's."""
    theirs = randomised(theirs).eval()
    ours.load_reference(theirs.state_dict())
    ours = ours.eval()
    for size in sizes:
        images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(sum(size)))
        with torch.no_grad():
            expected, actual = theirs(images), ours(images)
        error = float((actual - expected).abs().max() / expected.abs().max().clamp(min=1))
        assert error <= tolerance, f"{size}: off by {error:.2g}"


def check_maps(model: Backbone, size: tuple[int, int]) -> None:
    """Stages have the channels and strides that they say, and every parameter gets a gradient."""
    images = torch.randn(2, model.config.in_channels, *size)
    maps = model.features(images)
    assert tuple(x.shape[1] for x in maps) == tuple(model.stage_channels)
    for x, stride in zip(maps, model.stage_strides, strict=True):
        assert tuple(x.shape[2:]) == tuple(-(-pixels // stride) for pixels in size)
    scores = model(images)
    assert scores.shape == (2, model.config.num_classes)
    (scores * torch.randn_like(scores)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def check_checkpointing(cls: Callable[[Any], nn.Module], config: Any, size: tuple[int, int]) -> None:
    """Computing activations again changes neither gradients nor statistics."""
    plain = cls(config).train()
    thrifty = cls(replace(config, checkpointing=True)).train()
    thrifty.load_state_dict(copy.deepcopy(plain.state_dict()))
    images = torch.randn(3, config.in_channels, *size)
    for model in (plain, thrifty):
        torch.manual_seed(5)
        model(images).square().sum().backward()
    for (name, ours), theirs in zip(thrifty.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda text, name=name: f"{name}: {text}")
    for (name, ours), theirs in zip(thrifty.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")


def check_forms(model: nn.Module, size: tuple[int, int]) -> None:
    """Memory formats, autocast and bfloat16 agree; it compiles whole and exports."""
    model = model.eval()
    images = torch.randn(2, model.config.in_channels, *size)
    with torch.no_grad():
        expected = model(images)
        last = copy.deepcopy(model).to(memory_format=torch.channels_last)
        torch.testing.assert_close(
            last(images.contiguous(memory_format=torch.channels_last)), expected, rtol=1e-3, atol=1e-4
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(images)
        low = copy.deepcopy(model).bfloat16()(images.bfloat16())
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(images), expected)
        torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), expected)
    for narrow in (mixed, low):
        assert float((narrow.float() - expected).norm() / expected.norm()) < 0.05


def check_rejects(model: nn.Module) -> None:
    """What is no batch of images is refused with its shape."""
    channels = model.config.in_channels
    for shape in ((channels, 32, 32), (1, channels + 1, 32, 32), (1, channels, 0, 32)):
        with pytest.raises(ValueError, match=rf"images must have shape \(batch, {channels}, y, x\), got"):
            model(torch.zeros(shape))


def check_strict(model: Any, layout: dict[str, torch.Tensor]) -> None:
    """A missing, an unknown and a misshapen tensor are named."""
    first, *_ = layout
    with pytest.raises(KeyError, match="missing keys: "):
        model.load_reference({name: tensor for name, tensor in layout.items() if name != first})
    with pytest.raises(KeyError, match=r"unknown keys: nobody\.knows"):
        model.load_reference({**layout, "nobody.knows": torch.zeros(1)})
    with pytest.raises(ValueError, match="it must be"):
        model.load_reference({**layout, first: torch.zeros(*layout[first].shape, 1)})
