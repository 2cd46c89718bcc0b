"""MEDUSA on ResNet-50 at 480 x 480 against ResNet-50 with CBAM in every block, timm's and our own; and its fast form.

The fast form folds batch norms; the body runs at half of the image's resolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import timm
import torch
from harness import Outcome, at_most
from torch import nn

from regard.layers.attention_body import AttentionBody
from regard.measure import Race, race
from regard.models.medical.medusa import PAPER_SIZE, Medusa
from regard.models.medical.medusa_cost import cost_by_part

CONFIG = Medusa.VARIANTS["medusa_resnet50"].config
ROUNDS = 9


def timms_cbam() -> nn.Module:
    return timm.create_model("resnet50", num_classes=CONFIG.num_classes, block_args={"attn_layer": "cbam"})


def contest() -> Race:
    cbam = Medusa(replace(CONFIG, attention="cbam"))
    model = Medusa(CONFIG).eval()
    networks = {
        "MEDUSA": model,
        "fused": model.fused(),
        "CBAM": cbam.eval(),
        "timm CBAM": timms_cbam().eval(),
    }
    images = torch.randn(1, 3, PAPER_SIZE, PAPER_SIZE, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    networks["timm CBAM"].to(memory_format=torch.channels_last)
    with torch.no_grad():
        require_same_scores(networks["MEDUSA"], networks["fused"], images)
        return race({name: partial(network, images) for name, network in networks.items()}, rounds=ROUNDS)


def require_same_scores(one: nn.Module, other: nn.Module, images: torch.Tensor) -> None:
    assert torch.allclose(one(images), other(images), rtol=1e-3, atol=1e-4), "folding changed the scores"


def contest_of_bodies() -> Race:
    images = torch.randn(1, 3, PAPER_SIZE, PAPER_SIZE, generator=torch.Generator().manual_seed(1))
    half = AttentionBody(3, width=CONFIG.body_width).eval()
    full = AttentionBody(3, width=CONFIG.body_width, downscale=1).eval()
    with torch.no_grad():
        return race({"half": partial(half, images), "full": partial(full, images)}, rounds=5)


def races() -> Iterator[Outcome]:
    times = contest()
    macs = {
        name: sum(part.macs for part in cost_by_part(replace(CONFIG, attention=name), image_size=PAPER_SIZE).values())
        for name in ("medusa", "cbam")
    }
    shown = ", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in times.median_s.items())
    what = f"forward, float32, 1 x {PAPER_SIZE} x {PAPER_SIZE}"
    detail = f"{shown}; MACs {macs['medusa'] / macs['cbam']:.2f} x"
    yield at_most(
        "medusa over cbam",
        f"MEDUSA-ResNet-50, folded / timm's ResNet-50 with CBAM in every block, {what}",
        times.ratio("fused", "timm CBAM"),
        1.5,
        detail=detail,
    )
    yield at_most(
        "cbam over timm",
        f"our ResNet-50 with CBAM / timm's, {what}",
        times.ratio("CBAM", "timm CBAM"),
        1.0,
        detail=shown,
    )
    yield at_most(
        "medusa folded", f"MEDUSA-ResNet-50 folded / not folded, {what}", times.ratio("fused", "MEDUSA"), 0.95
    )
    bodies = contest_of_bodies()
    yield at_most(
        "medusa body half",
        f"attention body of width {CONFIG.body_width} at half / at full resolution, {what}",
        bodies.ratio("half", "full"),
        0.3,
        detail=", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in bodies.median_s.items()),
    )
