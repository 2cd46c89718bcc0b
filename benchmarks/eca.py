"""The ECA module against SE, timm's `EcaModule` (the same mathematics) and torchvision's `SqueezeExcitation`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from harness import Outcome, at_most, short
from timm.layers.eca import EcaModule
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation as TorchvisionSE

from regard.measure import Race, race
from regard.mixers.channel.eca import ECA
from regard.mixers.channel.squeeze_excitation import SqueezeExcitation

SIZES = ((256, 56), (2048, 7))
BATCH, REDUCTION = 4, 16
OTHERS = {"se": "SE", "timm": "timm EcaModule", "torchvision": "torchvision SqueezeExcitation"}


def modules(channels: int, dtype: torch.dtype) -> dict[str, nn.Module]:
    made: dict[str, nn.Module] = {
        "eca": ECA(channels),
        "se": SqueezeExcitation(channels, reduction=REDUCTION),
        "timm": EcaModule(channels),
        "torchvision": TorchvisionSE(channels, channels // REDUCTION),
    }
    with torch.no_grad():
        made["timm"].conv.weight.copy_(made["eca"].taps.view(1, 1, -1))
    return {name: module.to(dtype).eval() for name, module in made.items()}


def require_same_mathematics(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    error = (ours(x).float() - theirs(x).float()).norm() / theirs(x).float().norm()
    assert error < 0.02, f"the peer computes something else: relative error {error:.3f}"


def contest(channels: int, side: int, dtype: torch.dtype, training: bool) -> Race:
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn(BATCH, channels, side, side, generator=generator).to(dtype)
    made = modules(channels, dtype)
    if not training:
        with torch.no_grad():
            require_same_mathematics(made["eca"], made["timm"], x)
            return race({name: lambda module=module: module(x) for name, module in made.items()}, rounds=101, warmup=3)
    upstream = torch.randn(x.shape, generator=generator).to(dtype)
    x.requires_grad_()

    def gradients(module: nn.Module) -> Callable[[], object]:
        return lambda: torch.autograd.grad(module(x), (x, *module.parameters()), upstream)

    return race({name: gradients(module) for name, module in made.items()}, rounds=41, warmup=3)


def races() -> Iterator[Outcome]:
    for dtype in (torch.float32, torch.bfloat16):
        for channels, side in SIZES:
            for training in (False, True):
                times = contest(channels, side, dtype, training)
                kind = "forward and backward" if training else "forward"
                for other, title in OTHERS.items():
                    what = f"ECA / {title}, {kind}, {short(dtype)}, {BATCH} x {channels} channels of {side} x {side}"
                    name = f"eca {'training' if training else 'forward'} {other} {channels} {short(dtype)}"
                    detail = f"{times.median_s['eca'] * 1e3:.2f} ms / {times.median_s[other] * 1e3:.2f} ms"
                    yield at_most(name, what, times.ratio("eca", other), 1.0, detail=detail)
