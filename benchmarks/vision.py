"""Image networks against timm's own, and the growth of their mechanisms' time with the map.

Networks: eager, channels last and bfloat16, one thread, 8 images of 224 x 224. Growth: one map of 56 x 56, 80 x 80 and
112 x 112 positions; 80 is not filled by windows of 7, which are padded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from math import exp, log
from statistics import mean

import timm
import torch
from harness import Outcome, at_least, at_most
from torch import Tensor, nn

from regard.measure import Race, growth_exponent, one_thread, race
from regard.registry import create

BATCH, SIDE = 8, 224
ROUNDS = {"eager": 7, "channels last": 7, "bfloat16": 3, "default": 7}
"""Fewer in bfloat16, which many CPUs emulate at a twentieth of the speed."""
PEERS = {
    "davit_tiny": "davit_tiny",
    "maxvit_tiny": "maxvit_tiny_tf_224",
    "efficientvit_m5": "efficientvit_m5",
    "shvit_s4": "shvit_s4",
}
SETTINGS = ("eager", "channels last", "bfloat16")
LINEAR = {
    "davit_window": {"channels": 96, "num_heads": 3},
    "davit_channel": {"channels": 96, "num_groups": 3},
    "maxvit_block": {"channels": 96, "num_heads": 3},
    "maxvit_grid": {"channels": 96, "num_heads": 3},
    "halo": {"channels": 96, "num_heads": 3},
    "cascaded_group": {"channels": 96, "num_heads": 3},
    "agent_2d": {"channels": 96, "num_heads": 3},
}
SIDES = (56, 80, 112)
DEFAULT_TARGET = 1.2
"""Of the geometric mean over all networks in the default inference setting."""


def prepared(model: nn.Module, setting: str) -> nn.Module:
    model = copy.deepcopy(model).eval()
    if setting == "channels last":
        model = model.to(memory_format=torch.channels_last)
    return model.bfloat16() if setting == "bfloat16" else model


def images_for(setting: str) -> Tensor:
    images = torch.randn(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    if setting == "channels last":
        images = images.contiguous(memory_format=torch.channels_last)
    return images.bfloat16() if setting == "bfloat16" else images


def default_inference(ours: nn.Module) -> nn.Module:
    """As the documentation recommends for inference: batch norms folded where there are any, channels last."""
    fused: Callable[[], nn.Module] | None = getattr(ours, "fused", None)
    return (fused() if fused is not None else copy.deepcopy(ours)).eval().to(memory_format=torch.channels_last)


def contest(name: str) -> Iterator[tuple[str, Race]]:
    """Ours and timm's with the same weights in turn, in every setting."""
    theirs = timm.create_model(PEERS[name]).eval()
    ours = create(name).eval()
    ours.load_reference(theirs.state_dict())
    with torch.no_grad(), one_thread():
        images = images_for("eager")
        error = (ours(images) - theirs(images)).abs().max() / theirs(images).abs().max()
        assert error < 1e-3, f"{name}: timm computes something else, relative error {error:.1e}"
        for setting in SETTINGS:
            pair = {"ours": prepared(ours, setting), "timm": prepared(theirs, setting)}
            x = images_for(setting)
            yield setting, race({side: partial(net, x) for side, net in pair.items()}, rounds=ROUNDS[setting])
        fast = default_inference(ours)
        plain, last = images_for("eager"), images_for("channels last")
        yield "default", race({"ours": partial(fast, last), "timm": partial(theirs, plain)}, rounds=ROUNDS["default"])


def growth() -> Iterator[Outcome]:
    for name, options in LINEAR.items():
        mixer = create(name, **options).eval()
        maps = {side: torch.randn(1, 96, side, side, generator=torch.Generator().manual_seed(side)) for side in SIDES}
        with torch.no_grad(), one_thread():
            times = race({str(side): partial(mixer, x) for side, x in maps.items()}, rounds=15)
        seconds = [times.median_s[str(side)] for side in SIDES]
        exponent = growth_exponent([side**2 for side in SIDES], seconds)
        shown = ", ".join(f"{side}^2: {value * 1e3:.1f} ms" for side, value in zip(SIDES, seconds, strict=True))
        what = f"{name}: exponent of time in the number of positions, 96 channels"
        yield at_most(f"vision growth {name}", what, exponent, 1.15, unit="", detail=shown)


def races() -> Iterator[Outcome]:
    yield from growth()
    gains = []
    for name, peer in PEERS.items():
        for setting, times in contest(name):
            gain = times.ratio("timm", "ours")
            detail = f"{times.median_s['ours']:.2f} s / {times.median_s['timm']:.2f} s"
            if setting == "default":
                gains.append(gain)
                continue
            what = f"timm {peer} / {name}, forward, {setting}, batch {BATCH} at {SIDE} x {SIDE}"
            yield at_least(f"vision {name} {setting}", what, gain, 1.0, detail=detail)
    yield at_least(
        "vision default inference",
        f"timm as it comes / ours as recommended for inference, geometric mean over {', '.join(PEERS)}",
        exp(mean(log(gain) for gain in gains)),
        DEFAULT_TARGET,
        detail=", ".join(f"{name} {gain:.2f}x" for name, gain in zip(PEERS, gains, strict=True)),
    )
