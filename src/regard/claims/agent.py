"""The claims of Agent Attention (Han et al., ECCV 2024, https://arxiv.org/abs/2312.08874), measured."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from regard.claims import Measured, claim, out_of_reach
from regard.claims._agent_networks import (
    AGENTS,
    HEAD_DIM,
    HEADS,
    MERGED_TO_AGENTS,
    SIDE,
    classifiers,
    diffusion_attention,
    few_keys,
    published_macs,
    rectangle_means,
    relative_error,
    silence,
    smooth_tokens,
)
from regard.claims._small_images import accuracy, digits, fit_classifier
from regard.claims._training import SEEDS, mean
from regard.layers.agent_sd import AgentSDSchedule, MergingPhase
from regard.measure import Race, contraction_macs, growth_exponent, one_thread, peak_bytes, race
from regard.metadata import Variant
from regard.mixers.sequence.agent import AgentAttention
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.mixers.spatial.agent import AgentAttention2d
from regard.models.vision.agent_cswin import AgentCSwin
from regard.models.vision.agent_deit import AgentDeiT
from regard.models.vision.agent_pvt import AgentPVT
from regard.models.vision.agent_swin import AgentSwin

NETWORKS: tuple[Any, ...] = (AgentDeiT, AgentPVT, AgentSwin, AgentCSwin)
CHANNELS, NUM_HEADS, NUM_AGENTS = 96, 3, 49
SIDES = (28, 56, 112)
STEPS, BATCH, LEARNING_RATE = 300, 64, 3e-3
CUTOFFS = (2, 4, 8)
EARLY = AgentSDSchedule().early
WITHOUT_AGENTS = MergingPhase(cell=EARLY.cell, ratio=EARLY.ratio, agent_ratio=0.0)


# --------------------------------------------------------------------------------------------------- counted


@claim(
    "agent",
    name="parameters_and_macs",
    grade="exact",
    statement="Agent attention replaces the attention of DeiT, PVT, Swin and CSwin at hardly any cost",
    figure="6.0 to 88 M parameters, 1.2 to 46.3 GFLOPs",
    where="tables of ImageNet classification",
    criterion="parameters and MACs of all 18 networks within 0.5 % of the reported, or within half of the last digit "
    "that is printed where that is more; exactly equal where the number of parameters is counted on the authors' code "
    "(MACs as such tables count them: contractions, 5 per normed number, 1 per pooled, 4 per interpolated)",
)
def parameters_and_macs() -> Measured:
    """Counted without memory for them."""
    wrong, furthest, count = [], 0.0, 0
    for name, variant, params, macs in _counts():
        reported, count = variant.reported, count + 1
        assert reported.params is not None
        assert reported.macs is not None
        off_params, off_macs = params / reported.params - 1, macs / reported.macs - 1
        # the authors' table has one digit after the point
        macs_tolerance = max(0.005, 0.05e9 / reported.macs) if reported.where.startswith("table") else 0.005
        furthest = max(furthest, abs(off_params), abs(off_macs))
        if abs(off_params) > reported.params_tolerance or abs(off_macs) > macs_tolerance:
            wrong.append(f"{name}: {params:,} parameters, {macs / 1e9:.3f} G")
    return Measured(
        value=f"{count - len(wrong)} of {count} agree, at most {furthest:.2%} off",
        held=not wrong and count == 18,
        detail="; ".join(wrong),
    )


def _counts() -> Iterator[tuple[str, Variant, int, float]]:
    for cls in NETWORKS:
        for name, variant in cls.VARIANTS.items():
            size = variant.config.image_size
            with torch.device("meta"):
                model: nn.Module = cls(variant.config).eval()
                images = torch.empty(1, variant.config.in_channels, size, size)
                macs = published_macs(partial(model, images))
            yield name, variant, sum(parameter.numel() for parameter in model.parameters()), macs


@claim(
    "agent",
    name="generalised_linear_attention",
    grade="exact",
    statement="Agent attention is a linear attention with the feature maps softmax(Q A^T) and softmax(A K^T)^T",
    where="agent attention and generalised linear attention",
    criterion="without biases and convolution the output equals phi_q(Q) (phi_k(K)^T V) to 1e-12 relative in float64, "
    "rows of phi_q phi_k^T sum to 1 and its rank is at most n; with agents = queries the map is softmax(Q Q^T) "
    "softmax(Q K^T)",
)
def generalised_linear_attention() -> Measured:
    """12 x 13 positions, 9 agents; and as many agents as 23 tokens."""
    torch.manual_seed(0)
    mixer = AgentAttention2d(24, num_heads=3, num_agents=9, window_size=(12, 13)).double().eval()
    silence(mixer)
    x = torch.randn(2, 24, 12, 13, dtype=torch.float64)
    with torch.no_grad():
        q, k, v = (part.unflatten(-1, (3, 8)) for part in mixer.qkv(x.permute(0, 2, 3, 1)).chunk(3, dim=-1))
        agents = rectangle_means(q, 3)
        phi_q = torch.einsum("byxhd,bnhd->bhyxn", q, agents).div(8**0.5).softmax(dim=-1).flatten(2, 3)
        phi_k = torch.einsum("byxhd,bnhd->bhnyx", k, agents).div(8**0.5).flatten(3).softmax(dim=-1)
        linear = phi_q @ (phi_k @ v.flatten(1, 2).transpose(1, 2))
        expected = mixer.o_proj(linear.transpose(1, 2).flatten(2)).unflatten(1, (12, 13)).permute(0, 3, 1, 2)
        error, square = relative_error(mixer(x), expected), mixer.attention_map(x)
        sums = float((square.sum(dim=-1) - 1).abs().max())
        rank = int(torch.linalg.matrix_rank(square).max())
        twice = _error_of_two_attentions()
    return Measured(
        value=f"error {error:.1e}, rows 1 to {sums:.1e}, rank {rank} of 156, twice attention to {twice:.1e}",
        held=error <= 1e-12 and sums <= 1e-12 and rank <= 9 and twice <= 1e-12,
    )


def _error_of_two_attentions() -> float:
    """As many agents as tokens: every agent is a query."""
    mixer = AgentAttention(24, num_heads=3, num_agents=23).double().eval()
    x = torch.randn(2, 23, 24, dtype=torch.float64)
    q, k = (project(x).unflatten(-1, (3, 8)) for project in (mixer.q_proj, mixer.k_proj))
    first = torch.einsum("bihd,bjhd->bhij", q, q).div(8**0.5).softmax(dim=-1)
    second = torch.einsum("bihd,bjhd->bhij", q, k).div(8**0.5).softmax(dim=-1)
    return relative_error(mixer.attention_map(x), first @ second)


@claim(
    "agent",
    name="linear_cost",
    grade="exact",
    statement="The cost is linear in the number of tokens for a fixed number of agents",
    where="the agent attention module",
    criterion="MACs at twice the side of the map are 4 times as many, exactly, at 28 -> 56 -> 112 positions per side",
)
def linear_cost() -> Measured:
    """96 channels, 3 heads, 49 agents; softmax attention beside it."""
    with torch.device("meta"):
        counts = [contraction_macs(partial(_agent_mixer(side), torch.empty(1, CHANNELS, side, side))) for side in SIDES]
        softmax = SoftmaxAttention(CHANNELS, num_heads=NUM_HEADS).eval()
        others = [contraction_macs(partial(softmax, torch.empty(1, side**2, CHANNELS))) for side in SIDES]
    ratios = [after / before for before, after in pairwise(counts)]
    return Measured(
        value=", ".join(f"{ratio:g}x" for ratio in ratios),
        held=all(ratio == 4 for ratio in ratios),
        detail="softmax attention: " + ", ".join(f"{b / a:.1f}x" for a, b in pairwise(others)),
    )


def _agent_mixer(side: int) -> AgentAttention2d:
    return AgentAttention2d(CHANNELS, num_heads=NUM_HEADS, num_agents=NUM_AGENTS, window_size=side).eval()


# --------------------------------------------------------------------------------------------------- raced


@claim(
    "agent",
    name="speed_and_memory",
    grade="ratio",
    statement="Agent attention is significantly more efficient than softmax attention, above all at high resolution",
    where="abstract",
    criterion="forward of a whole layer (C = 96, 3 heads, n = 49) against softmax attention in the fused kernel: at "
    "least 3 times as fast at N = 3,136 and 10 times at N = 12,544; its peak memory grows linearly (exponent of N at "
    "most 1.1 from 3,136 to 50,176 tokens)",
)
def speed_and_memory() -> Measured:
    """One image, medians of one run on one thread; memory for 4 images, the smallest of 5 peaks per size."""
    with one_thread(), torch.no_grad():
        raced = {side**2: _race_of_layers(side) for side in SIDES}
        peaks = {side**2: _peak(side) for side in (56, 112, 224)}
    faster = {tokens: times.ratio("softmax", "agent") for tokens, times in raced.items()}
    exponent = growth_exponent(list(peaks), list(peaks.values()))
    return Measured(
        value=", ".join(f"{ratio:.1f}x at {tokens:,}" for tokens, ratio in faster.items())
        + f"; memory N^{exponent:.2f}",
        held=faster[3136] >= 3 and faster[12544] >= 10 and exponent <= 1.1,
        detail="; ".join(
            f"agent {times.median_s['agent'] * 1e3:.1f} ms, softmax {times.median_s['softmax'] * 1e3:.1f} ms"
            for times in raced.values()
        )
        + "; peaks "
        + ", ".join(f"{peak / 2**20:.0f} MiB" for peak in peaks.values()),
    )


def _race_of_layers(side: int) -> Race:
    maps = torch.randn(1, CHANNELS, side, side, generator=torch.Generator().manual_seed(side))
    maps = maps.contiguous(memory_format=torch.channels_last)
    tokens = maps.flatten(2).transpose(1, 2)
    agent, softmax = _agent_mixer(side), SoftmaxAttention(CHANNELS, num_heads=NUM_HEADS, qkv_bias=True).eval()
    return race({"agent": partial(agent, maps), "softmax": partial(softmax, tokens)}, rounds=3 if side > 56 else 15)


def _peak(side: int) -> int:
    mixer = _agent_mixer(side)
    maps = torch.zeros(4, CHANNELS, side, side).contiguous(memory_format=torch.channels_last)
    return min(peak_bytes(partial(mixer, maps), warmup=1) for _ in range(5))


@claim(
    "agent",
    name="diffusion_layer_speed",
    grade="ratio",
    statement="In Stable Diffusion agents accelerate generation over the original and over token merging",
    figure="1.70x over the original at r = 40 %, 1.11x over token merging (whole generation)",
    where="table of Stable Diffusion",
    criterion="forward of a layer at N = 4,096, 8 heads of 40, r = 40 %, agents from 95 % merged: at least 1.8 times "
    "as fast as attention between all tokens and 1.2 times as token merging with the same cells",
)
def diffusion_layer_speed() -> Measured:
    """Two images (one and its unconditional twin), matching and merging included, medians of one run on one thread."""
    layer = diffusion_attention(0)
    x = torch.randn(2, SIDE**2, HEADS * HEAD_DIM, generator=torch.Generator().manual_seed(1))
    finer = MergingPhase(cell=(2, 2), ratio=EARLY.ratio, agent_ratio=0.0)
    with one_thread(), torch.no_grad():
        times = race(
            {
                "agents": partial(layer, x, (SIDE, SIDE), EARLY),
                "merging": partial(layer, x, (SIDE, SIDE), WITHOUT_AGENTS),
                "merging in 2 x 2 cells": partial(layer, x, (SIDE, SIDE), finer),
                "all": partial(layer.attend, x),
            },
            rounds=5,
        )
    over_all, over_merging = times.ratio("all", "agents"), times.ratio("merging", "agents")
    return Measured(
        value=f"{over_all:.2f}x over all tokens, {over_merging:.2f}x over merging",
        held=over_all >= 1.8 and over_merging >= 1.2,
        detail=", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in times.median_s.items()),
    )


# --------------------------------------------------------------------------------------------------- trained


@cache
def _mean_accuracy(network: str) -> float:
    build = classifiers()[network]
    with one_thread():
        found = [
            accuracy(
                fit_classifier(build, digits(), steps=STEPS, batch=BATCH, learning_rate=LEARNING_RATE, seed=seed),
                digits(),
            )
            for seed in SEEDS
        ]
    return mean(found)


@claim(
    "agent",
    name="accuracy_on_digits",
    grade="scaled",
    statement="Agent attention is more expressive than linear attention and as good as softmax attention or better",
    figure="DeiT-T 72.2 to 74.9 %, PVT-T 75.1 to 78.4 %, Swin-T 81.3 to 82.6 %, CSwin-T 82.7 to 83.1 % top-1",
    where="tables of ImageNet classification",
    criterion="mean test accuracy of 3 seeds, ViT on scikit-learn's 8 x 8 digits in 64 patches (width 64, 3 layers, "
    f"{STEPS} steps of {BATCH}): with agents (n = {AGENTS}, neither biases nor convolution) at least 0.5 point above "
    "linear attention (1 + elu) and at most 1.5 points below softmax",
)
def accuracy_on_digits() -> Measured:
    """The whole module, with biases and convolution, is reported beside them."""
    found = {name: _mean_accuracy(name) for name in classifiers()}
    over_linear, over_softmax = found["agent"] - found["linear"], found["agent"] - found["softmax"]
    return Measured(
        value=f"{over_linear:+.2f} points to linear, {over_softmax:+.2f} to softmax",
        held=over_linear >= 0.5 and over_softmax >= -1.5,
        detail=", ".join(f"{name} {value:.2f} %" for name, value in found.items()),
    )


@claim(
    "agent",
    name="diffusion_layer_error",
    grade="scaled",
    statement="In Stable Diffusion agents improve image quality over token merging without training",
    figure="FID 28.15 against 28.74 at r = 40 %",
    where="table of Stable Diffusion",
    criterion="on smooth token maps (random fields of 64 x 64 tokens without frequencies above 2, 4 and 8 cycles, "
    "random projections, 8 heads of 40), the layer with agents is closer to attention between all tokens than merging "
    "to as many tokens as there are agents (256): mean relative error over all maps and 3 seeds",
)
def diffusion_layer_error() -> Measured:
    """Beside them all queries with as many merged keys, and merging at the layer's own r."""
    ways = ("agents", "merging", "few keys", "merging 40 %")
    found: dict[str, dict[int, list[float]]] = {name: {cutoff: [] for cutoff in CUTOFFS} for name in ways}
    with one_thread(), torch.no_grad():
        for seed in SEEDS:
            layer = diffusion_attention(seed)
            for cutoff in CUTOFFS:
                x = smooth_tokens(cutoff, seed)
                exact = layer.attend(x)
                outputs = {
                    "agents": layer(x, (SIDE, SIDE), EARLY),
                    "merging": layer(x, (SIDE, SIDE), MERGED_TO_AGENTS),
                    "few keys": few_keys(layer, x),
                    "merging 40 %": layer(x, (SIDE, SIDE), WITHOUT_AGENTS),
                }
                for name, y in outputs.items():
                    found[name][cutoff].append(relative_error(y, exact))
    errors = {name: mean([mean(values) for values in of.values()]) for name, of in found.items()}
    shown = (
        f"{name} " + ", ".join(f"{mean(values):.3f}" for values in by_cutoff.values())
        for name, by_cutoff in found.items()
    )
    return Measured(
        value=f"error {errors['agents']:.3f} with agents, {errors['merging']:.3f} merged",
        held=errors["agents"] < errors["merging"],
        detail="at 2, 4 and 8 cycles: " + "; ".join(shown),
    )


# --------------------------------------------------------------------------------------------------- out of reach

out_of_reach(
    "agent",
    name="imagenet",
    statement="Agent attention improves DeiT, PVT, Swin and CSwin on ImageNet, notably at high resolution",
    figure="Agent-DeiT-T 74.9 %, Agent-PVT-L 83.7 %, Agent-Swin-B 84.0 %, Agent-CSwin-B 384 85.8 % top-1",
    where="tables of ImageNet classification",
    criterion="top-1 accuracy of the networks, trained for 300 epochs, above those of the networks they come from",
    reason="300 epochs on ImageNet take GPU weeks; accuracy_on_digits stands in at small scale, and the authors' "
    "weights load through load_reference",
)
out_of_reach(
    "agent",
    name="coco",
    statement="Agent attention improves detection and instance segmentation",
    where="tables of object detection",
    criterion="AP on COCO val2017 of RetinaNet, Mask R-CNN and Cascade Mask R-CNN above that with PVT and Swin",
    reason="training detectors on COCO takes GPU days; the backbones' features() at any image size and their cost are "
    "what is checked here",
)
out_of_reach(
    "agent",
    name="ade20k",
    statement="Agent attention improves semantic segmentation",
    where="tables of semantic segmentation",
    criterion="mIoU on ADE20K of Semantic FPN and UperNet above that with PVT and Swin",
    reason="training segmentation networks on ADE20K takes GPU days; the backbones' features() at any image size and "
    "their cost are what is checked here",
)
out_of_reach(
    "agent",
    name="fid",
    statement="Without training, Stable Diffusion generates faster and better images with agents",
    figure="FID 27.79 against 28.84, 1.84 times as fast at r = 50 %",
    where="table of Stable Diffusion",
    criterion="FID of 2,000 images of 512 x 512 pixels of ImageNet's classes below that of Stable Diffusion v1.5",
    reason="neither weights of Stable Diffusion nor images are at hand; diffusion_layer_speed and "
    "diffusion_layer_error stand in",
)
