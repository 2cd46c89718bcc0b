"""What claims about light image networks share: sizes, statistics away from their start, races, digits at 32 x 32."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.claims._small_images import Images, digits
from regard.measure import Race, contraction_macs, one_thread, race

SIDE = 32
BATCH = 8


def parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def forward_macs(model: nn.Module, side: int, *, in_channels: int = 3) -> float:
    """Contractions of a forward of one image, counted on the meta device."""
    model = model.to("meta").eval()
    return contraction_macs(lambda: model(torch.empty(1, in_channels, side, side, device="meta")))


def sizes(network: Any, side: Callable[[str], int]) -> dict[str, tuple[int, float]]:
    """Parameters and MACs of all variants of a network.

    Args:
        network: its class.
        side: pixels per side at which a variant's MACs are reported.
    """
    found = {}
    for name, variant in network.VARIANTS.items():
        with torch.device("meta"):
            model = network(variant.config)
        found[name] = (parameters(model), forward_macs(model, side(name)))
    return found


def settled(model: nn.Module, seed: int = 0) -> nn.Module:
    """The network in evaluation with norms away from their start, so that none of them is the identity or 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                assert part.running_mean is not None
                assert part.running_var is not None
                for tensor, low, high in (
                    (part.weight, 0.2, 0.6),
                    (part.bias, -0.2, 0.2),
                    (part.running_mean, -0.2, 0.2),
                    (part.running_var, 0.5, 1.5),
                ):
                    tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
    return model.eval()


def random_images(side: int, *, batch: int = BATCH) -> Tensor:
    """Normal numbers as images with three channels."""
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(side))


def race_networks(contestants: Mapping[str, tuple[nn.Module, Tensor]], *, rounds: int = 7) -> Race:
    """Forwards of networks on their images, taking turns on one thread."""
    with one_thread(), torch.no_grad():
        return race(
            {name: partial(model.eval(), images) for name, (model, images) in contestants.items()}, rounds=rounds
        )


def milliseconds(times: Race) -> str:
    """The median of each contestant."""
    return ", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in times.median_s.items())


@functools.cache
def enlarged_digits() -> Images:
    """Handwritten digits, enlarged from 8 x 8 to 32 x 32 pixels."""

    def enlarge(images: Tensor) -> Tensor:
        return F.interpolate(images, size=(SIDE, SIDE), mode="bilinear")

    images = digits()
    return replace(images, train=enlarge(images.train), test=enlarge(images.test))
