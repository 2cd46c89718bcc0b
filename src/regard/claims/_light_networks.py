"""What claims about light image networks share: sizes, statistics away from their start, races, digits, plain heads."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.claims import Measured
from regard.claims._small_images import Images, digits
from regard.layers.conv_norm import ConvNorm
from regard.measure import Race, contraction_macs, one_thread, race
from regard.meta_device import sizes_only
from regard.mixers.spatial.cascaded_group import offset_numbers
from regard.ops.softmax_attention import softmax_weights

SIDE = 32
BATCH = 8


def parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def forward_macs(model: nn.Module, side: int, *, in_channels: int = 3) -> float:
    """Contractions of a forward of one image, counted on the meta device."""
    model = model.to("meta").eval()
    return contraction_macs(lambda: model(torch.empty(1, in_channels, side, side, device="meta")))


def sizes_as_reported(network: Any) -> Measured:
    """Parameters and MACs of all variants, counted without memory for them: equal, and within 1 %.

    Args:
        network: its class.
    """
    found, held = {}, True
    for name, variant in network.VARIANTS.items():
        with sizes_only():
            model = network(variant.config)
        count, macs, reported = parameters(model), forward_macs(model, variant.image_size), variant.reported
        assert reported.macs is not None
        held = held and count == reported.params and abs(macs / reported.macs - 1) <= 0.01
        found[name] = count, macs
    return Measured(
        value=", ".join(f"{count:,}" for count, _ in found.values()),
        held=held,
        detail=", ".join(f"{name} {macs / 1e6:.1f} M MACs" for name, (_, macs) in found.items()),
    )


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


class PlainHeads(nn.Module):
    """Heads that all see every channel, and not each other; otherwise as cascaded group attention on a single window.

    Args:
        channels: number of channels.
        num_heads: number of heads.
        head_dim: width of queries and keys.
        side: positions per side of the map.
    """

    def __init__(self, channels: int, *, num_heads: int, head_dim: int, side: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.side = num_heads, head_dim, side
        queries = num_heads * head_dim
        self.qkv = ConvNorm(channels, 2 * queries + channels)
        self.query_conv = ConvNorm(queries, queries, kernel_size=3, groups=queries)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, side**2))
        self.o_proj = ConvNorm(channels, channels, initial_scale=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """All heads at once."""
        weights, v = self._weights(x)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        return self.o_proj(mixed.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2).relu())

    def attention_map(self, x: Tensor) -> Tensor:
        """Weights `(batch, heads, positions, positions)`."""
        return self._weights(x)[0]

    def _weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        queries = self.num_heads * self.head_dim
        q, k, v = self.qkv(x).split((queries, queries, x.shape[1]), dim=1)
        q, k, v = (
            part.permute(0, 2, 3, 1).flatten(1, 2).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.query_conv(q), k, v)
        )
        bias = self.attention_biases[:, offset_numbers((self.side, self.side), self.side)]
        return softmax_weights(q, k, bias=bias[None]), v
