"""The tumour network against itself with its norms folded, and its parts against torchvision's and timm's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from harness import Outcome, at_least, at_most
from timm.layers.cbam import ChannelAttn
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP as TorchvisionASPP

from regard.layers.aspp import ASPP
from regard.measure import Race, one_thread, race
from regard.mixers.channel.cbam_channel import CBAMChannel
from regard.models.medical.tumour_resunet import TumourResUNet

BATCH, SIDE = 8, 224
CHANNELS, RATES = 320, (6, 12, 18)
GATED = ((16, 112), (112, 14), (256, 7))
"""Channels and sides of maps that are gated."""
FOLDED_TARGET = 1.2


def inputs(channels: int, side: int) -> Tensor:
    made = torch.randn(BATCH, channels, side, side, generator=torch.Generator().manual_seed(channels))
    return made.contiguous(memory_format=torch.channels_last)


def contest(contestants: dict[str, nn.Module], x: Tensor, *, rounds: int) -> Race:
    with torch.no_grad(), one_thread():
        found = [module.eval()(x) for module in contestants.values()]
        assert all(torch.allclose(other, found[0], rtol=1e-3, atol=1e-4) for other in found)
        return race({name: partial(module, x) for name, module in contestants.items()}, rounds=rounds, warmup=2)


def folding() -> Outcome:
    model = TumourResUNet(TumourResUNet.VARIANTS["tumour_resunet_lgg"].config).eval()
    times = contest({"plain": model, "folded": model.fused()}, inputs(3, SIDE), rounds=9)
    what = f"tumour_resunet_lgg / the same, folded, forward, float32, batch {BATCH} at {SIDE} x {SIDE}"
    detail = f"{times.median_s['plain']:.2f} s / {times.median_s['folded']:.2f} s"
    return at_least("braintumor folding", what, times.ratio("plain", "folded"), FOLDED_TARGET, detail=detail)


def pyramid() -> Outcome:
    theirs, ours = TorchvisionASPP(CHANNELS, list(RATES)), ASPP(CHANNELS, RATES)
    ours.load_reference(theirs.state_dict())
    times = contest({"ours": ours, "theirs": theirs}, inputs(CHANNELS, SIDE // 32), rounds=31)
    what = (
        f"ASPP / torchvision ASPP, forward, float32, batch {BATCH}, {CHANNELS} channels of {SIDE // 32} x {SIDE // 32}"
    )
    detail = f"{times.median_s['ours'] * 1e3:.1f} ms / {times.median_s['theirs'] * 1e3:.1f} ms"
    return at_most("braintumor aspp", what, times.ratio("ours", "theirs"), 1.0, detail=detail)


def gates() -> Iterator[Outcome]:
    for channels, side in GATED:
        ours = CBAMChannel(channels)
        theirs = ChannelAttn(channels, rd_channels=ours.down_proj.out_features)
        ours.load_reference(theirs.state_dict())
        times = contest({"ours": ours, "theirs": theirs}, inputs(channels, side), rounds=101)
        what = (
            f"CBAM's gate / timm ChannelAttn, forward, float32, batch {BATCH}, {channels} channels of {side} x {side}"
        )
        detail = f"{times.median_s['ours'] * 1e3:.2f} ms / {times.median_s['theirs'] * 1e3:.2f} ms"
        yield at_most(f"braintumor cbam {channels}", what, times.ratio("ours", "theirs"), 1.0, detail=detail)


def races() -> Iterator[Outcome]:
    yield folding()
    yield pyramid()
    yield from gates()
