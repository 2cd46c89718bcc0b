"""The claims of EfficientViT (Liu et al., CVPR 2023, https://arxiv.org/abs/2305.07027), measured."""

from __future__ import annotations

import functools
import re
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.profiler import ProfilerActivity, profile

from regard.claims import Measured, claim, out_of_reach
from regard.claims._light_networks import (
    BATCH,
    PlainHeads,
    enlarged_digits,
    milliseconds,
    parameters,
    race_networks,
    random_images,
    settled,
    sizes_as_reported,
)
from regard.claims._small_images import accuracy, fit_classifier
from regard.claims._training import SEEDS, mean
from regard.layers.conv_norm import ConvNorm, fold_norms
from regard.measure import contraction_macs, one_thread
from regard.mixers.spatial.cascaded_group import CascadedGroupAttention
from regard.models.vision.efficientvit import EfficientViT, EfficientViTBlock, EfficientViTConfig
from regard.models.vision.shvit import SHViTBlock

MEMORY_BOUND = re.compile(r"aten::(add|cat|clamp_min|clone|constant_pad_nd|copy|mul|relu|_softmax)_?")
TINY = EfficientViTConfig(
    in_channels=1,
    num_classes=10,
    image_size=32,
    dims=(48,),
    depths=(3,),
    num_heads=(4,),
    kernel_sizes=(3, 3, 3, 3),
    window_size=8,
    patch_size=4,
)
STEPS, TRAINING_BATCH, LEARNING_RATE = 300, 64, 3e-3


# --------------------------------------------------------------------------------------------------- exact


@claim(
    "efficientvit",
    name="sizes",
    grade="exact",
    statement="Six networks of 2.3 to 12.4 M parameters",
    figure="2.3, 3.0, 4.2, 6.9, 8.8, 12.4 M parameters; 79, 167, 201, 263, 299, 522 M MACs",
    where="results on ImageNet-1K",
    criterion="parameters equal those of the authors' code, 2,349,436, 2,980,560, 4,187,554, 6,900,722, 8,804,228 and "
    "12,473,772; contractions at 224 x 224 within 1 % of the paper's MACs",
)
def network_sizes() -> Measured:
    """Counted without memory for them."""
    return sizes_as_reported(EfficientViT)


@claim(
    "efficientvit",
    name="projections",
    grade="exact",
    statement="Splitting the features over heads saves computation; the cascade adds none",
    where="section 3.1",
    criterion="of every published width and number of heads: weights of the projections to queries, keys and values = "
    "sum over heads of (C/h) (32 + C/h), h times fewer than of heads that see all features; and with the outputs that "
    "are handed on zeroed, the cascade equals independent heads to 1e-6",
)
def projections() -> Measured:
    """Values of all heads but one are zeroed in turn, so that nothing is handed on to a head that counts."""
    held, shown, worst = True, [], 0.0
    pairs = {
        pair
        for variant in EfficientViT.VARIANTS.values()
        for pair in zip(variant.config.dims, variant.config.num_heads, strict=True)
    }
    for channels, heads in sorted(pairs):
        count = sum(qkv.conv.weight.numel() for qkv in _projections(CascadedGroupAttention(channels, num_heads=heads)))
        plain = PlainHeads(channels, num_heads=heads, head_dim=16, side=7).qkv.conv.weight.numel()
        width = channels // heads
        held = held and count == heads * width * (32 + width) and plain == heads * count
        shown.append(f"C = {channels}, h = {heads}: {count:,} against {plain:,}")
        worst = max(worst, *(_independence(channels, heads, kept) for kept in range(heads)))
    return Measured(
        value=f"as counted for {len(pairs)} pairs; independent to {worst:.1e}",
        held=held and worst <= 1e-6,
        detail="; ".join(shown),
    )


def _projections(layer: CascadedGroupAttention) -> list[ConvNorm]:
    return [part for part in layer.qkvs if isinstance(part, ConvNorm)]


def _independence(channels: int, heads: int, kept: int) -> float:
    """How far the cascade is from independent heads when the values of all heads but one are 0."""
    torch.manual_seed(heads)
    cascade = CascadedGroupAttention(channels, num_heads=heads)
    settled(cascade)
    with torch.no_grad():
        for head, qkv in enumerate(_projections(cascade)):
            if head != kept:
                qkv.norm.weight[2 * cascade.head_dim :] = 0
                qkv.norm.bias[2 * cascade.head_dim :] = 0
        alone = CascadedGroupAttention(channels, num_heads=heads, cascade=False).eval()
        alone.load_state_dict(cascade.state_dict())
        x = torch.randn(1, channels, 7, 7, generator=torch.Generator().manual_seed(kept))
        return float((cascade(x) - alone(x)).abs().max())


# --------------------------------------------------------------------------------------------------- ratio


def _race_with_timm(ours: str, theirs: str, side: int) -> tuple[float, float, str]:
    """Times of timm's network over those of ours, unfused and fused, and all of them in words."""
    import timm

    model = EfficientViT(EfficientViT.VARIANTS[ours].config)
    images = random_images(224)
    times = race_networks(
        {
            "ours": (model, images),
            "fused": (model.fused(), images),
            "theirs": (timm.create_model(theirs), random_images(side)),
        }
    )
    shown = f"{milliseconds(times)}; of minima {times.minimum_ratio('theirs', 'ours'):.2f}"
    return times.ratio("theirs", "ours"), times.ratio("theirs", "fused"), shown


@claim(
    "efficientvit",
    name="speed_beside_mobilenetv3",
    grade="ratio",
    statement="EfficientViT-M5 has 40.4 % and 45.2 % more throughput than MobileNetV3-Large on V100 and Xeon",
    figure="1.452 x on a Xeon",
    where="abstract, results on ImageNet-1K",
    criterion=f"forward at 224 x 224, batch {BATCH}, one thread, eager and unfused, medians of one run against timm's "
    "mobilenetv3_large_100: at least 1.25 times as fast",
)
def speed_beside_mobilenetv3() -> Measured:
    """Needs timm."""
    unfused, fused, shown = _race_with_timm("efficientvit_m5", "mobilenetv3_large_100", 224)
    return Measured(value=f"{unfused:.2f} x", held=unfused >= 1.25, detail=f"fused {fused:.2f} x; {shown}")


@claim(
    "efficientvit",
    name="speed_beside_mobilevit",
    grade="ratio",
    statement="EfficientViT-M2 is 5.8 and 3.7 times as fast as MobileViT-XXS on GPU and CPU",
    figure="3.7 x on a CPU",
    where="abstract, results on ImageNet-1K",
    criterion=f"forward, batch {BATCH}, one thread, eager and unfused, medians of one run: M2 at 224 x 224 at least "
    "2.2 times as fast as timm's mobilevit_xxs at 256 x 256",
)
def speed_beside_mobilevit() -> Measured:
    """Needs timm."""
    unfused, fused, shown = _race_with_timm("efficientvit_m2", "mobilevit_xxs", 256)
    return Measured(value=f"{unfused:.2f} x", held=unfused >= 2.2, detail=f"fused {fused:.2f} x; {shown}")


@claim(
    "efficientvit",
    name="memory_bound_share",
    grade="ratio",
    statement="One attention between more perceptrons spends less time in memory-bound operations than one of each",
    where="sections 2.1 and 3.1",
    criterion="blocks at 14 x 14 of 192 channels and 3 heads, fused: three sandwiches of two perceptrons against "
    f"five blocks of one attention and one perceptron of the same MACs (within 2 %); batch {BATCH}, one thread: less "
    "time in copies, concatenation, softmax and elementwise operations",
)
def memory_bound_share() -> Measured:
    """By the profiler, five forwards of each."""
    torch.manual_seed(0)
    sandwiches = [EfficientViTBlock(_attention(), channels=192, hidden=384) for _ in range(3)]
    pairs = [SHViTBlock(_attention(), channels=192, hidden=390) for _ in range(5)]
    x = torch.randn(BATCH, 192, 14, 14).to(memory_format=torch.channels_last)
    found = {}
    for name, blocks in (("sandwich", sandwiches), ("one of each", pairs)):
        network = nn.Sequential(*blocks)
        settled(network)
        fold_norms(network)
        with one_thread(), torch.no_grad():
            found[name] = (contraction_macs(functools.partial(network, x)), *_profiled(network, x))
    macs = found["one of each"][0] / found["sandwich"][0]
    ours, theirs = found["sandwich"][1], found["one of each"][1]
    return Measured(
        value=f"{ours / theirs:.2f} x the time in memory-bound operations",
        held=abs(macs - 1) <= 0.02 and ours < theirs,
        detail=f"MACs of one of each {macs:.3f} x; "
        + "; ".join(f"{name} {bound:.1f} of {whole:.1f} ms" for name, (_, bound, whole) in found.items()),
    )


def _attention() -> CascadedGroupAttention:
    return CascadedGroupAttention(192, num_heads=3, kernel_sizes=(7, 5, 3))


def _profiled(network: nn.Module, x: Tensor, *, forwards: int = 5) -> tuple[float, float]:
    """Milliseconds per forward in memory-bound operations, and in all."""
    network(x)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(forwards):
            network(x)
    times: dict[str, float] = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    bound = sum(microseconds for name, microseconds in times.items() if MEMORY_BOUND.fullmatch(name))
    return bound / 1e3 / forwards, sum(times.values()) / 1e3 / forwards


# --------------------------------------------------------------------------------------------------- scaled


def _plain() -> EfficientViT:
    model = EfficientViT(TINY)
    heads: dict[str, Any] = {"num_heads": TINY.num_heads[0], "head_dim": TINY.head_dim, "side": TINY.window_size}
    for part in model.modules():
        if isinstance(part, EfficientViTBlock):
            part.mixer = PlainHeads(TINY.dims[0], **heads)  # type: ignore[assignment]
    return model


@torch.no_grad()
def head_similarity(model: EfficientViT, images: Tensor) -> float:
    """Mean cosine similarity of the maps of two heads, over images, blocks and pairs of heads."""
    found, x = [], model.stem(images)
    for block in model.stages[0].blocks:  # type: ignore[union-attr]
        maps = block.mixer.attention_map(block.before(x)).flatten(2)
        pairs = combinations(range(maps.shape[1]), 2)
        found += [float(cosine_similarity(maps[:, one], maps[:, other], dim=-1).mean()) for one, other in pairs]
        x = block(x)
    return mean(found)


@claim(
    "efficientvit",
    name="diversity",
    grade="scaled",
    statement="Heads that see different splits of the features in a cascade are more diverse than plain heads",
    where="sections 2.2 and 3.1",
    criterion="mean cosine similarity of the attention maps of two heads lower than of heads that all see every "
    f"channel, and mean accuracy not lower; handwritten digits at 32 x 32, three blocks of 4 heads on maps of 8 x 8, "
    f"{STEPS} steps of {TRAINING_BATCH}, {len(SEEDS)} seeds",
)
def diversity() -> Measured:
    """Both with the same biases and convolutions of queries."""
    images = enlarged_digits()
    train: dict[str, Any] = {"steps": STEPS, "batch": TRAINING_BATCH, "learning_rate": LEARNING_RATE}
    similar, right = {}, {}
    for name, build in (("cascade", lambda: EfficientViT(TINY)), ("plain", _plain)):
        with one_thread():
            trained = [fit_classifier(build, images, seed=seed, **train) for seed in SEEDS]
            right[name] = mean([accuracy(model, images) for model in trained])
            similar[name] = mean([head_similarity(model, images.test[:128]) for model in trained])  # type: ignore[arg-type]
    counts = [parameters(EfficientViT(TINY)), parameters(_plain())]
    return Measured(
        value=f"similarity {similar['cascade']:.3f} against {similar['plain']:.3f}, accuracy {right['cascade']:.2f} % "
        f"against {right['plain']:.2f} %",
        held=similar["cascade"] < similar["plain"] and right["cascade"] >= right["plain"],
        detail=f"{counts[0]:,} against {counts[1]:,} parameters",
    )


# --------------------------------------------------------------------------------------------------- out of reach

out_of_reach(
    "efficientvit",
    name="imagenet",
    statement="M5 is 1.9 points above MobileNetV3-Large and M2 1.8 points above MobileViT-XXS on ImageNet-1K",
    figure="63.2, 68.4, 70.8, 73.4, 74.3, 77.1 %",
    where="results on ImageNet-1K",
    criterion="top-1 accuracy of M0 to M5 on ImageNet-1K after 300 epochs",
    reason="300 epochs on ImageNet take GPU days; diversity stands in at small scale, and the authors' weights load "
    "through load_reference",
)
out_of_reach(
    "efficientvit",
    name="devices",
    statement="M5 has 40.4 % more throughput than MobileNetV3-Large on a V100, M2 is 7.4 times as fast as MobileViT-"
    "XXS as ONNX",
    figure="10,621 images per second on a V100",
    where="abstract, results on ImageNet-1K",
    criterion="throughput on a V100, and with ONNX on the paper's Xeon",
    reason="neither machine is here; the two races on a CPU stand in",
)
