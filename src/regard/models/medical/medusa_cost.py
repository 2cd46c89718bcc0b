"""What MEDUSA's parts cost: parameters and contractions of the trunk, the body and the heads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from regard.measure import contraction_macs
from regard.meta_device import sizes_only
from regard.models.medical.medusa import Medusa, MedusaConfig


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one image.

    Args:
        params: number of parameters.
        macs: multiply-accumulates of the contractions of a forward.
    """

    params: int
    macs: float


def cost_by_part(config: MedusaConfig, *, image_size: int) -> dict[str, Cost]:
    """The cost of "trunk", "bodies" and "heads", counted without memory for the weights.

    What stands inside blocks (SE, CBAM) belongs to the trunk.

    Args:
        config: the network's.
        image_size: pixels per side.
    """
    plain = replace(config, attention="none") if config.has_heads else config
    with sizes_only():
        model, trunk = Medusa(config).eval(), Medusa(plain).eval()
    images = torch.empty(1, config.in_channels, image_size, image_size, device="meta")
    whole = contraction_macs(lambda: model(images))
    macs = {
        "trunk": contraction_macs(lambda: trunk(images)),
        "bodies": contraction_macs(lambda: model.global_maps(images)),
    }
    macs["heads"] = whole - macs["trunk"] - macs["bodies"]
    parts = {"trunk": model.trunk, "bodies": model.bodies, "heads": model.heads}
    return {name: Cost(params=_count(part), macs=macs[name]) for name, part in parts.items()}


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
