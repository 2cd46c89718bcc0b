"""AGUNet against MONAI's attention U-Net of the same channels, and what position attention takes of DAUNet's forward.

Both in eval mode on volumes of 96 voxels per side, batch 1; MONAI's network has gates of its own kind at the same
levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from harness import Outcome, at_least, at_most
from torch import nn

from regard.measure import one_thread, race
from regard.mixers.spatial.position_attention import PositionAttention
from regard.models.medical.agunet import AGUNet, AGUNetConfig
from regard.models.medical.daunet import DAUNet

FILTERS = (8, 16, 32, 64, 128)
SIDE = 96
SHARES = {8: 10.0, 16: 100.0}


def monais_network() -> nn.Module:
    from monai.networks.nets import AttentionUnet

    return AttentionUnet(
        spatial_dims=3, in_channels=1, out_channels=2, channels=FILTERS, strides=(2,) * (len(FILTERS) - 1)
    )


def forward(rounds: int = 5) -> Outcome:
    ours, theirs = AGUNet(AGUNetConfig(filters=FILTERS)).eval(), monais_network().eval()
    volume = torch.randn(1, 1, SIDE, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    times = race({"ours": partial(ours, volume), "monai": partial(theirs, volume)}, rounds=rounds)
    what = f"MONAI's AttentionUnet / AGUNet, forward, {SIDE}^3 voxels, {', '.join(map(str, FILTERS))} channels"
    detail = f"{times.median_s['ours']:.2f} s / {times.median_s['monai']:.2f} s; of minima "
    detail += f"{times.minimum_ratio('monai', 'ours'):.2f}"
    return at_least("agunet forward", what, times.ratio("monai", "ours"), 1.0, detail=detail)


def attention_share(side: int, target: float) -> Outcome:
    network, attention = DAUNet(DAUNet.SMALL).eval(), PositionAttention(DAUNet.SMALL.filters[-1]).eval()
    volume, bottom = torch.randn(1, 1, *[8 * side] * 3), torch.randn(1, attention.channels, *[side] * 3)
    times = race({"network": partial(network, volume), "attention": partial(attention, bottom)}, rounds=5)
    what = f"position attention at {side}^3 / DAUNet's forward at {8 * side}^3 voxels, percent"
    detail = f"{times.median_s['attention'] * 1e3:.1f} ms / {times.median_s['network'] * 1e3:.0f} ms"
    share = 100 * times.ratio("attention", "network")
    return at_most(f"position attention {side}", what, share, target, unit=" %", detail=detail)


def races() -> Iterator[Outcome]:
    with torch.no_grad(), one_thread():
        yield forward()
        for side, target in SHARES.items():
            yield attention_share(side, target)
