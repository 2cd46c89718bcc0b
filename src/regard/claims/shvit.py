"""The claims of SHViT (Yun and Ro, CVPR 2024, https://arxiv.org/abs/2401.16456), measured."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from regard.claims import Measured, claim, out_of_reach
from regard.claims._light_networks import (
    BATCH,
    enlarged_digits,
    forward_macs,
    milliseconds,
    race_networks,
    random_images,
    settled,
    sizes_as_reported,
)
from regard.claims._small_images import accuracy, fit_classifier
from regard.claims._training import SEEDS, mean
from regard.layers.conv_norm import ConvNorm
from regard.measure import contraction_macs, one_thread, race
from regard.mixers.spatial.shsa import SingleHeadAttention
from regard.models.vision.shvit import SHViT, SHViTBlock, SHViTConfig
from regard.ops.softmax_attention import softmax_attention

FOUR_STAGES = SHViTConfig(
    dims=(26, 52, 110, 220),
    depths=(2, 2, 5, 2),
    partial_dims=(6, 11, 24, 47),
    types=("i", "i", "s", "s"),
    patch_size=4,
)
TINY = SHViTConfig(
    in_channels=1, num_classes=10, dims=(64,), depths=(3,), partial_dims=(14,), types=("s",), patch_size=4
)
HEADS, STEPS, TRAINING_BATCH, LEARNING_RATE = 4, 300, 64, 3e-3


class MultiHead(nn.Module):
    """The attention that a single head on a part of the channels replaces: all channels, normed, in several heads.

    Args:
        channels: number of channels.
        num_heads: number of heads.
    """

    def __init__(self, channels: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.GroupNorm(1, channels)
        self.qkv = ConvNorm(channels, 3 * channels)
        self.o_proj = ConvNorm(channels, channels, initial_scale=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Queries, keys and values as wide as the map, in heads."""
        tokens = self.qkv(self.norm(x)).permute(0, 2, 3, 1).flatten(1, 2)
        q, k, v = tokens.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = softmax_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.o_proj(mixed.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2).relu())


# --------------------------------------------------------------------------------------------------- exact


@claim(
    "shvit",
    name="sizes",
    grade="exact",
    statement="Four networks of 6.3 to 16.5 M parameters",
    figure="6.3, 11.4, 14.2, 16.5 M parameters; 241, 366, 601, 986 M MACs (S4 at 256 x 256)",
    where="results on ImageNet-1K",
    criterion="parameters equal those of the authors' code, 6,330,808, 11,483,072, 14,245,273 and 16,588,484; "
    "contractions within 1 % of the paper's MACs",
)
def network_sizes() -> Measured:
    """Counted without memory for them."""
    return sizes_as_reported(SHViT)


@claim(
    "shvit",
    name="cost_of_a_single_head",
    grade="exact",
    statement="Attention on a part of the channels: its products do not depend on the channels that pass by",
    where="single-head self-attention",
    criterion="contractions besides the projections: N^2 (16 + p) for C = 224, 336 and 448 at p = 48 and N = 196; "
    "those of a multi-head layer of the same block N^2 2C",
)
def cost_of_a_single_head() -> Measured:
    """Counted in a forward, less the 1x1 convolutions."""
    positions, attended, held, shown = 196, 48, True, []
    for channels in (224, 336, 448):
        x = torch.zeros(1, channels, 14, 14)
        single = SingleHeadAttention(channels, partial_dim=attended).eval()
        several = MultiHead(channels, num_heads=8).eval()
        of_one = _macs(single, x) - positions * (attended * (32 + attended) + channels**2)
        of_all = _macs(several, x) - positions * 4 * channels**2
        held = held and of_one == positions**2 * (16 + attended) and of_all == positions**2 * 2 * channels
        shown.append(f"C = {channels}: {of_one:,.0f} against {of_all:,.0f}")
    return Measured(value="; ".join(shown), held=held)


def _macs(module: nn.Module, x: Tensor) -> float:
    return contraction_macs(lambda: module(x))


@claim(
    "shvit",
    name="fusion",
    grade="exact",
    statement="Batch norms are fused into the maps before them for inference",
    where="implementation details",
    criterion="S1 to S4: scores of the fused network within 1e-4 of the unfused one's, with fewer modules and no batch "
    "norm",
)
def fusion() -> Measured:
    """At 224 x 224, norms away from their start."""
    images, worst, largest, held, shown = random_images(224, batch=1), 0.0, 0.0, True, []
    for name, variant in SHViT.VARIANTS.items():
        model = settled(SHViT(variant.config))
        fused = model.fused()  # type: ignore[operator]
        with torch.no_grad():
            scores = model(images)
            worst = max(worst, float((fused(images) - scores).abs().max()))
            largest = max(largest, float(scores.abs().max()))
        before, after = (sum(1 for _ in network.modules()) for network in (model, fused))
        norms = any(isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) for part in fused.modules())
        held = held and after < before and not norms
        shown.append(f"{name} {before} to {after} modules")
    return Measured(
        value=f"off by {worst:.1e}, scores up to {largest:.2g}", held=held and worst <= 1e-4, detail=", ".join(shown)
    )


# --------------------------------------------------------------------------------------------------- ratio


@claim(
    "shvit",
    name="speed_beside_mobilevitv2",
    grade="ratio",
    statement="SHViT-S4 is 3.3, 8.1 and 2.4 times as fast as MobileViTv2 x 1.0 on GPU, CPU and iPhone 12",
    figure="8.1 x on a CPU",
    where="abstract, results on ImageNet-1K",
    criterion=f"forward at 256 x 256, batch {BATCH}, one thread, medians of one run against timm's mobilevitv2_100: at "
    "least 4 times as fast unfused and 5 times fused",
)
def speed_beside_mobilevitv2() -> Measured:
    """All in eager mode; needs timm."""
    import timm

    images = random_images(256)
    model = SHViT(SHViT.VARIANTS["shvit_s4"].config)
    networks = {"SHViT-S4": model, "fused": model.fused(), "MobileViTv2": timm.create_model("mobilevitv2_100")}
    times = race_networks({name: (network, images) for name, network in networks.items()})
    unfused, fused = times.ratio("MobileViTv2", "SHViT-S4"), times.ratio("MobileViTv2", "fused")
    return Measured(
        value=f"{unfused:.2f} x unfused, {fused:.2f} x fused",
        held=unfused >= 4 and fused >= 5,
        detail=f"{milliseconds(times)}; of minima {times.minimum_ratio('MobileViTv2', 'SHViT-S4'):.2f} and "
        f"{times.minimum_ratio('MobileViTv2', 'fused'):.2f}",
    )


@claim(
    "shvit",
    name="stem_and_stages",
    grade="ratio",
    statement="A stem of stride 16 and three stages move less memory than a stem of stride 4 and four stages",
    where="analysis of the macro design",
    criterion="S1 against four stages behind a stem of stride 4, of the same blocks and MACs (within 2 %): outputs of "
    f"all layers of the fused networks at most half as many bytes, and less time (batch {BATCH}, one thread, medians)",
)
def stem_and_stages() -> Measured:
    """At 224 x 224; without attention in the two finest of the four stages."""
    networks = {"three": SHViT(SHViT.VARIANTS["shvit_s1"].config).fused(), "four": SHViT(FOUR_STAGES).fused()}
    images = random_images(224)
    moved = {name: _output_bytes(network, images[:1]) for name, network in networks.items()}
    times = race_networks({name: (network, images) for name, network in networks.items()})
    macs = {name: forward_macs(network, 224) for name, network in networks.items()}
    equal, bytes_ratio = macs["four"] / macs["three"], moved["four"] / moved["three"]
    slower = times.ratio("four", "three")
    return Measured(
        value=f"four stages: {bytes_ratio:.2f} x the bytes, {slower:.2f} x the time",
        held=abs(equal - 1) <= 0.02 and bytes_ratio >= 2 and slower > 1,
        detail=f"MACs {equal:.3f} x; {moved['three'] / 1e6:.1f} and {moved['four'] / 1e6:.1f} MB per image; "
        f"{milliseconds(times)}",
    )


def _output_bytes(model: nn.Module, images: Tensor) -> int:
    """Bytes of what all layers without parts give in a forward."""
    total = [0]

    def add(module: nn.Module, inputs: Any, output: Tensor) -> None:
        total[0] += output.numel() * output.element_size()

    handles = [part.register_forward_hook(add) for part in model.modules() if not any(part.children())]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return total[0]


# --------------------------------------------------------------------------------------------------- scaled


def _with_many_heads() -> SHViT:
    model = SHViT(TINY)
    for part in model.modules():
        if isinstance(part, SHViTBlock):
            part.mixer = MultiHead(TINY.dims[0], num_heads=HEADS)
    return model


@claim(
    "shvit",
    name="one_head_beside_many",
    grade="scaled",
    statement="A single head on a part of the channels is more accurate and faster than many on all of them",
    where="analysis of the micro design",
    criterion=f"mean accuracy with a single head on 14 of 64 channels >= that with {HEADS} heads on all - 1 point, and "
    f"the forward (batch 128) at least 1.3 times as fast; handwritten digits at 32 x 32, three blocks behind a stem of "
    f"stride 4, {STEPS} steps of {TRAINING_BATCH}, {len(SEEDS)} seeds",
)
def one_head_beside_many() -> Measured:
    """Maps of 8 x 8 positions."""
    builders: dict[str, Callable[[], SHViT]] = {"one": lambda: SHViT(TINY), "many": _with_many_heads}
    images = enlarged_digits()
    train: dict[str, Any] = {"steps": STEPS, "batch": TRAINING_BATCH, "learning_rate": LEARNING_RATE}
    with one_thread():
        found = {
            name: [accuracy(fit_classifier(build, images, seed=seed, **train), images) for seed in SEEDS]
            for name, build in builders.items()
        }
        with torch.no_grad():
            calls = {name: partial(build().eval(), images.test[:128]) for name, build in builders.items()}
            times = race(calls, rounds=31, warmup=3)
    gain, faster = mean(found["one"]) - mean(found["many"]), times.ratio("many", "one")
    return Measured(
        value=f"{gain:+.2f} points, {faster:.2f} x as fast",
        held=gain >= -1 and faster >= 1.3,
        detail="; ".join(f"{name} {mean(values):.2f} %" for name, values in found.items()) + f"; {milliseconds(times)}",
    )


# --------------------------------------------------------------------------------------------------- out of reach

out_of_reach(
    "shvit",
    name="imagenet",
    statement="SHViT-S4 reaches 79.4 % on ImageNet-1K, 1.3 points more than MobileViTv2 x 1.0",
    figure="72.8, 75.2, 77.4, 79.4 %",
    where="results on ImageNet-1K",
    criterion="top-1 accuracy of S1 to S4 on ImageNet-1K after 300 epochs",
    reason="300 epochs on ImageNet take GPU days; one_head_beside_many stands in at small scale, and the authors' "
    "weights load through load_reference",
)
out_of_reach(
    "shvit",
    name="coco",
    statement="With Mask R-CNN on COCO on a par with FastViT-SA12, at a third of its backbone's latency on a GPU",
    figure="3.8 and 2.0 times lower latency of the backbone on GPU and mobile",
    where="results on COCO",
    criterion="AP of boxes and masks with Mask R-CNN on COCO val2017, and the backbone's latency",
    reason="training detectors on COCO takes GPU days; features() and its cost are what is checked here",
)
out_of_reach(
    "shvit",
    name="devices",
    statement="SHViT-S4 is 3.3 and 2.4 times as fast as MobileViTv2 x 1.0 on GPU and iPhone 12",
    figure="14,283 images per second on an A100",
    where="abstract, results on ImageNet-1K",
    criterion="throughput on an A100, and latency through Core ML on an iPhone 12",
    reason="neither device is here; speed_beside_mobilevitv2 is the same race on a CPU",
)
