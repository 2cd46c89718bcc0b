"""The claims of DaViT (Ding et al., ECCV 2022, https://arxiv.org/abs/2204.03645), measured."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from regard.claims import Measured, claim, out_of_reach
from regard.claims._small_images import Images, accuracy, digits, fit_classifier
from regard.claims._training import SEEDS, mean
from regard.layers.conditional_position import ConditionalPosition
from regard.measure import Race, contraction_macs, one_thread, race
from regard.mixers.channel.davit_channel import DaViTChannelAttention
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.mixers.spatial.davit_window import DaViTWindowAttention
from regard.models.vision.davit import DaViT, DaViTBlock, DaViTConfig, Kind

COUNTED = {"davit_tiny": 28_360_168, "davit_small": 49_745_896, "davit_base": 87_954_408, "davit_large": 196_811_752}
DIM, HEADS = 96, 3
SIDES = (56, 112)
STEPS, BATCH, LEARNING_RATE = 600, 64, 2e-3
NETWORKS: Mapping[str, tuple[tuple[Kind, ...], int]] = {
    "dual": (("spatial", "channel"), 1),
    "spatial": (("spatial",), 2),
    "channel": (("channel",), 2),
}
"""Kinds of blocks and rounds through them: equal depth."""
PATTERNS, PATTERN_SIDE, SIDE = 4, 4, 16


def _block(mixer: DaViTWindowAttention | DaViTChannelAttention, channels: int) -> DaViTBlock:
    return DaViTBlock(mixer, channels=channels, hidden=4 * channels)


# --------------------------------------------------------------------------------------------------- exact


@claim(
    "davit",
    name="sizes",
    grade="exact",
    statement="Tiny, Small and Base have 28.3, 49.7 and 87.9 M parameters; Tiny takes 4.5 GFLOPs.",
    figure="28.3, 49.7, 87.9 M; 4.5 G",
    where="table 3",
    criterion="parameters of Tiny, Small, Base and Large are those of the authors' code, "
    + ", ".join(map(str, COUNTED.values()))
    + "; MACs of Tiny at 224 x 224 within 0.5 % of 4.54 G",
)
def sizes() -> Measured:
    """Counted without memory; the 4.54 G hold 18 M for norms, which are no contractions."""
    found = {}
    with torch.device("meta"):
        for name in COUNTED:
            found[name] = sum(value.numel() for value in DaViT(DaViT.VARIANTS[name].config).parameters())
        tiny = DaViT(DaViT.VARIANTS["davit_tiny"].config).eval()
        macs = contraction_macs(lambda: tiny(torch.empty(1, 3, 224, 224)))
    return Measured(
        value=", ".join(f"{count:,}" for count in found.values()) + f"; {macs / 1e9:.3f} G",
        held=found == COUNTED and abs(macs / 4.54e9 - 1) <= 0.005,
    )


@claim(
    "davit",
    name="linear_cost",
    grade="exact",
    statement="The cost is linear in the number of positions, and that of both attentions in the number of channels.",
    where="section 3.3",
    criterion="one dual block at twice the height and width takes 4 times the MACs at sizes that windows fill; at "
    "heads and groups of 32 channels the attention products of both take twice the MACs at twice the channels",
)
def linear_cost() -> Measured:
    """Blocks of 96 channels at 28 x 28 and 56 x 56; products are what a mixer takes beyond its projections."""
    with torch.device("meta"):
        blocks = nn.Sequential(
            _block(DaViTWindowAttention(DIM, num_heads=HEADS), DIM),
            _block(DaViTChannelAttention(DIM, num_groups=HEADS), DIM),
        )
        small, large = (contraction_macs(partial(blocks, torch.empty(1, DIM, side, side))) for side in (28, 56))
    products = {
        scale: (
            DaViTWindowAttention.macs(space=(28, 28), channels=DIM * scale, num_heads=HEADS * scale)
            + DaViTChannelAttention.macs(space=(28, 28), channels=DIM * scale, num_groups=HEADS * scale)
            - 2 * 4 * 28**2 * (DIM * scale) ** 2
        )
        for scale in (1, 2)
    }
    return Measured(
        value=f"{large / small:g} times at twice the side, {products[2] / products[1]:g} at twice the channels",
        held=large == 4 * small and products[2] == 2 * products[1],
    )


@claim(
    "davit",
    name="reach",
    grade="exact",
    statement="A channel block sees the whole image; a window block sees its window.",
    where="section 3.2",
    criterion="the derivative of an output position is non-zero at every input position for a channel block, and for a "
    "window block without its positional convolutions at those of its window alone",
)
def reach() -> Measured:
    """A map of 15 x 9 in windows of 5 x 5 (the last column of windows padded), in float64, output at (7, 4)."""
    torch.manual_seed(0)
    window = _block(DaViTWindowAttention(6, num_heads=2, window_size=5), 6).double()
    for part in window.modules():
        if isinstance(part, ConditionalPosition):
            nn.init.zeros_(part.conv.weight)
    channel = _block(DaViTChannelAttention(6, num_groups=2), 6).double()
    seen = {}
    for name, block in (("window", window), ("channel", channel)):
        x = torch.randn(1, 6, 15, 9, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad((block(x)[0, :, 7, 4] * torch.randn(6)).sum(), x)
        seen[name] = gradient[0].abs().amax(dim=0) > 0
    inside = torch.zeros(15, 9, dtype=torch.bool)
    inside[5:10, 0:5] = True
    return Measured(
        value=f"channel {int(seen['channel'].sum())} of 135 positions, window {int(seen['window'].sum())}",
        held=bool(seen["channel"].all()) and torch.equal(seen["window"], inside),
    )


# --------------------------------------------------------------------------------------------------- raced


@claim(
    "davit",
    name="time_of_channel_attention",
    grade="ratio",
    statement="Channel attention is linear in the number of positions, unlike full attention.",
    where="section 3.3",
    criterion="96 channels, 3 groups or heads, with projections, batch 1, medians of one run on one thread: at least 5 "
    "times faster than full attention at 3,136 positions and 20 times at 12,544; four times the positions take it at "
    "most 5.5 times as long, and full attention at least 10 times",
)
def time_of_channel_attention() -> Measured:
    """Full attention is softmax attention through PyTorch's fused kernel on the same tokens."""
    with one_thread(), torch.no_grad():
        raced = {side: _race_at(side, rounds) for side, rounds in zip(SIDES, (11, 5), strict=True)}
    over = {side: 1 / times.ratio("channel", "full") for side, times in raced.items()}
    growth = {name: raced[112].median_s[name] / raced[56].median_s[name] for name in ("channel", "full")}
    return Measured(
        value=f"{over[56]:.1f}x at 3,136, {over[112]:.1f}x at 12,544; growth {growth['channel']:.2f} and "
        f"{growth['full']:.1f}",
        held=over[56] >= 5 and over[112] >= 20 and growth["channel"] <= 5.5 and growth["full"] >= 10,
        detail="; ".join(
            f"{side}^2: channel {times.median_s['channel'] * 1e3:.1f} ms, full {times.median_s['full'] * 1e3:.0f} ms"
            for side, times in raced.items()
        ),
    )


def _race_at(side: int, rounds: int) -> Race:
    torch.manual_seed(side)
    channel = DaViTChannelAttention(DIM, num_groups=HEADS).eval()
    full = SoftmaxAttention(DIM, num_heads=HEADS, causal=False, qkv_bias=True).eval()
    tokens = torch.randn(1, side * side, DIM)
    maps = tokens.transpose(1, 2).unflatten(2, (side, side))
    return race({"channel": partial(channel, maps), "full": partial(full, tokens)}, rounds=rounds)


# --------------------------------------------------------------------------------------------------- trained


def _upsampled(images: Images) -> Images:
    """Twice the height and width."""
    train, test = (F.interpolate(part, scale_factor=2, mode="bilinear") for part in (images.train, images.test))
    return replace(images, train=train, test=test)


@functools.cache
def far_corners() -> Images:
    """Whether the patterns in two opposite corners of a noisy image are the same: half of 4,000 and of 1,000 are."""
    random = np.random.default_rng(0)
    patterns = random.choice([-1.0, 1.0], size=(PATTERNS, PATTERN_SIDE, PATTERN_SIDE))
    count = 5000
    pixels = 0.3 * random.standard_normal((count, SIDE, SIDE))
    labels = random.integers(0, 2, size=count)
    first = random.integers(0, PATTERNS, size=count)
    second = np.where(labels == 1, first, (first + random.integers(1, PATTERNS, size=count)) % PATTERNS)
    pixels[:, :PATTERN_SIDE, :PATTERN_SIDE] += patterns[first]
    pixels[:, -PATTERN_SIDE:, -PATTERN_SIDE:] += patterns[second]
    images = torch.from_numpy(pixels.astype(np.float32))[:, None]
    classes = torch.from_numpy(labels.astype(np.int64))
    return Images(images[:4000], classes[:4000], images[4000:], classes[4000:])


def _accuracies(config: DaViTConfig, images: Images) -> dict[str, float]:
    """Mean test accuracy over the seeds, in percent, of each kind of network at equal depth."""
    found = {}
    with one_thread():
        for name, (kinds, rounds) in NETWORKS.items():
            made = replace(config, kinds=kinds, depths=(rounds,) * len(config.dims))
            found[name] = mean(
                [
                    accuracy(
                        fit_classifier(
                            partial(DaViT, made),
                            images,
                            steps=STEPS,
                            batch=BATCH,
                            learning_rate=LEARNING_RATE,
                            seed=seed,
                        ),
                        images,
                    )
                    for seed in SEEDS
                ]
            )
    return found


_RECIPE = f"{STEPS} steps of {BATCH}, AdamW with rate {LEARNING_RATE:g}, {len(SEEDS)} seeds"


@claim(
    "davit",
    name="complementary_on_digits",
    grade="scaled",
    statement="Both attentions together are better than either alone.",
    where="table 8",
    criterion="mean test accuracy on scikit-learn's digits at 16 x 16: dual >= the better of window attention alone "
    f"and channel attention alone, at equal depth; two stages of 24 and 48 channels, windows of 4; {_RECIPE}",
)
def complementary_on_digits() -> Measured:
    """1,200 digits to train, 597 to test."""
    config = DaViTConfig(
        in_channels=1,
        num_classes=10,
        dims=(24, 48),
        num_heads=(2, 4),
        depths=(1, 1),
        window_size=4,
        mlp_ratio=2.0,
        patch_size=2,
    )
    found = _accuracies(config, _upsampled(digits()))
    return Measured(
        value=", ".join(f"{name} {value:.2f} %" for name, value in found.items()),
        held=found["dual"] >= max(found["spatial"], found["channel"]),
    )


@claim(
    "davit",
    name="complementary_over_distance",
    grade="scaled",
    statement="Channel attention brings the global view that windows lack.",
    where="section 1",
    criterion="whether the patterns in two far corners are equal (chance 50 %): in one stage, window attention alone "
    "stays within 5 points of chance, and dual >= the better of both alone; 32 channels, windows of 4 on 16 x 16; "
    f"{_RECIPE}",
)
def complementary_over_distance() -> Measured:
    """4,000 generated images to train, 1,000 to test."""
    config = DaViTConfig(
        in_channels=1,
        num_classes=2,
        dims=(32,),
        num_heads=(2,),
        depths=(1,),
        window_size=4,
        mlp_ratio=2.0,
        patch_size=1,
    )
    found = _accuracies(config, far_corners())
    return Measured(
        value=", ".join(f"{name} {value:.2f} %" for name, value in found.items()),
        held=found["dual"] >= max(found["spatial"], found["channel"]) and abs(found["spatial"] - 50) <= 5,
    )


out_of_reach(
    "davit",
    name="imagenet",
    statement="Tiny, Small and Base reach 82.8, 84.2 and 84.6 % top-1 accuracy on ImageNet-1K.",
    figure="82.8, 84.2, 84.6 %",
    where="table 3",
    criterion="top-1 accuracy within 0.3 point after 300 epochs on ImageNet-1K",
    reason="300 epochs on ImageNet take GPU weeks; the published weights load through load_reference, whose scores "
    "equal those of the authors' network",
)
out_of_reach(
    "davit",
    name="dense_tasks",
    statement="As a backbone DaViT gains over Swin on COCO and ADE20K.",
    figure="Mask R-CNN 1x: 45.0 box AP for Tiny; UPerNet: 46.3 mIoU for Tiny",
    where="tables 4-6",
    criterion="box AP and mIoU within 0.5 point with the papers' schedules",
    reason="training on COCO and ADE20K takes GPU days; features() and its cost are what is checked here",
)
out_of_reach(
    "davit",
    name="giant",
    statement="DaViT-Giant reaches 90.4 % on ImageNet with 1.5 B image-text pairs.",
    figure="90.4 %",
    where="table 3",
    criterion="top-1 accuracy of Giant within 0.3 point after that pre-training",
    reason="1.5 B image-text pairs and a network of 1.4 B parameters; its size is counted by the tests of the network",
)
