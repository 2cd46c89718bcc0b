"""The claims of BiFormer (Zhu et al., CVPR 2023, https://arxiv.org/abs/2303.08810), measured."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from regard.claims import Measured, claim, out_of_reach
from regard.claims._far_patches import Reader, reading_accuracy, sample, trained_reader
from regard.claims._operators import random_tensors, worst_error
from regard.claims._small_images import accuracy, digits, fit_classifier
from regard.claims._training import SEEDS, mean
from regard.contract import FeatureMixer
from regard.layers.biformer_block import BiFormerBlock
from regard.layers.lepe_attention import LePEAttention
from regard.measure import Race, contraction_macs, growth_exponent, one_thread, peak_bytes, race
from regard.mixers.spatial.bilevel_routing import BiLevelRoutingAttention
from regard.mixers.spatial.davit_window import DaViTWindowAttention
from regard.models.vision.biformer import BiFormer
from regard.ops.bilevel_routing import routed_attention, routed_attention_reference
from regard.ops.softmax_attention import softmax_attention_reference

CHANNELS, HEADS, SIDE = 64, 2, 7
RACES = ((56, 1), (56, 4), (112, 4), (28, 4))
"""Positions per side of the map, and chosen regions."""
FAR_STEPS, FAR_BATCH, FAR_RATE = 300, 32, 4e-3
DIGIT_STEPS, DIGIT_BATCH, DIGIT_RATE = 200, 64, 3e-3


def _mixer(topk: int, *, channels: int = CHANNELS, per_side: int = SIDE, soft: bool = False) -> BiLevelRoutingAttention:
    torch.manual_seed(topk)
    return BiLevelRoutingAttention(
        channels, num_heads=HEADS, regions_per_side=per_side, topk=topk, soft_routing=soft, diff_routing=soft
    )


# --------------------------------------------------------------------------------------------------- exact


@claim(
    "biformer",
    name="parameters",
    grade="exact",
    statement="BiFormer-T, -S and -B have 13.1, 25.5 and 56.8 M parameters, the network of Swin-T's layout 28.4 M",
    figure="13.1, 25.5, 56.8 and 28.4 M",
    where="experiments on ImageNet-1K, and the ablation study in Swin-T's layout",
    criterion="13,142,760, 25,536,232, 56,804,968 and 28,372,552, as counted on the authors' code",
)
def parameters() -> Measured:
    """Counted without memory for them."""
    found = {}
    for name, variant in BiFormer.VARIANTS.items():
        with torch.device("meta"):
            found[name] = sum(parameter.numel() for parameter in BiFormer(variant.config).parameters())
    held = list(found.values()) == [13_142_760, 25_536_232, 56_804_968, 28_372_552]
    return Measured(value=", ".join(f"{count:,}" for count in found.values()), held=held)


@claim(
    "biformer",
    name="macs",
    grade="exact",
    statement="BiFormer-T, -S and -B take 2.2, 4.5 and 9.8 G for an image of 224 x 224, the network of Swin-T's layout "
    "4.6 G",
    figure="2.2, 4.5, 9.8 and 4.6 G",
    where="experiments on ImageNet-1K, and the ablation study in Swin-T's layout",
    criterion="the contractions of a forward, in multiply-accumulates, within 1 % of 2.228, 4.487 and 9.795 G (counted "
    "on the authors' code), and within 2 % of 4.6 G",
)
def macs() -> Measured:
    """On the meta device."""
    found = {}
    for name, variant in BiFormer.VARIANTS.items():
        with torch.device("meta"):
            model, images = BiFormer(variant.config).eval(), torch.empty(1, 3, 224, 224)
        found[name] = contraction_macs(partial(model, images)) / 1e9
    wanted = ((2.228, 0.01), (4.487, 0.01), (9.795, 0.01), (4.6, 0.02))
    held = all(abs(got / want - 1) <= by for got, (want, by) in zip(found.values(), wanted, strict=True))
    return Measured(value=", ".join(f"{name} {count:.3f} G" for name, count in found.items()), held=held)


def _model_cost(positions: float, topk: int, per_side: float) -> float:
    """The paper's FLOPs per channel of routing and attention: 2 S^4 + 2 N k N / S^2."""
    return 2 * per_side**4 + 2 * topk * positions**2 / per_side**2


def _best_size(positions: float, topk: int) -> float:
    return (topk / 2 * positions**2) ** (1 / 6)


def _other_sizes(positions: float, topk: int) -> list[float]:
    best = _best_size(positions, topk)
    return [best * (1 + 0.001 * step) for step in range(-900, 5000)]


def _counts_as_the_formula(side: int, topk: int) -> bool:
    """Whether a forward counts what the formula says, without output projection and LePE."""
    mixer, positions = _mixer(topk).eval(), side**2
    counted = contraction_macs(partial(mixer, torch.zeros(1, CHANNELS, side, side)))
    formula = 3 * positions * CHANNELS**2 + SIDE**4 * CHANNELS
    formula += 2 * positions * topk * (positions // SIDE**2) * CHANNELS
    return counted - positions * CHANNELS * (CHANNELS + 5**2) == formula


@claim(
    "biformer",
    name="cost_model",
    grade="exact",
    statement="With regions of the best size, attention costs O((H W)^(4/3))",
    figure="FLOPs = 3 H W C^2 + 2 (S^2)^2 C + 2 H W k (H W / S^2) C",
    where="section 3.2",
    criterion="the contractions of a forward without output projection and LePE are 3 N C^2 + S^4 C + 2 N k (N / S^2) "
    "C multiply-accumulates exactly, at 6 sizes; of all S, S^6 = k N^2 / 2 is the cheapest, costs 3 2^(1/3) C k^(2/3) "
    "N^(4/3) and grows with an exponent of 4/3, to 1e-6",
)
def cost_model() -> Measured:
    """N = 196 to 12,544 positions and k = 1 to 16; the best of S from a tenth to six times S*, in steps of 0.1 %."""
    counts = [_counts_as_the_formula(*sizes) for sizes in ((14, 1), (14, 16), (28, 4), (56, 1), (56, 4), (112, 4))]
    lengths = [2.0**power for power in range(6, 18)]
    costs = [_model_cost(positions, 4, _best_size(positions, 4)) for positions in lengths]
    closed = [3 * 2 ** (1 / 3) * 4 ** (2 / 3) * positions ** (4 / 3) for positions in lengths]
    worst = max(abs(cost / wanted - 1) for cost, wanted in zip(costs, closed, strict=True))
    cheapest = all(
        _model_cost(positions, 4, other) >= cost
        for positions, cost in zip(lengths, costs, strict=True)
        for other in _other_sizes(positions, 4)
    )
    exponent = growth_exponent(lengths, costs)
    return Measured(
        value=f"{sum(counts)} of {len(counts)} counts equal, exponent {exponent:.6f}",
        held=all(counts) and cheapest and worst <= 1e-6 and abs(exponent - 4 / 3) <= 1e-6,
        detail=f"closed form off by {worst:.1e}; {'no other S is' if cheapest else 'another S is'} cheaper",
    )


def _full_attention_with_lepe(mixer: BiLevelRoutingAttention, x: Tensor) -> Tensor:
    """Every position to every other, with the mixer's weights, scale and LePE."""
    assert mixer.lepe is not None
    tokens = mixer.qkv(x.permute(0, 2, 3, 1))
    q, k, v = (
        part.flatten(1, 2).unflatten(-1, (mixer.num_heads, -1)).transpose(1, 2)
        for part in tokens.split((mixer.qk_dim, mixer.qk_dim, mixer.channels), dim=-1)
    )
    # the reference divides by the root of a head's width
    mixed = softmax_attention_reference(q * (mixer.scale * q.shape[-1] ** 0.5), k, v)
    local = mixer.lepe(tokens[..., -mixer.channels :].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    merged = mixed.transpose(1, 2).flatten(2).unflatten(1, x.shape[2:])
    return mixer.o_proj(merged + local).permute(0, 3, 1, 2)


@claim(
    "biformer",
    name="all_regions",
    grade="exact",
    statement="Bi-level routing attention is attention whose keys are those of the chosen regions",
    where="section 3.2",
    criterion="with k = S^2 it equals full attention of the same scale and LePE, and a permutation of the chosen "
    "regions changes nothing, both to a relative 1e-9 in float64",
)
def all_regions() -> Measured:
    """Maps of 14 x 21 and 28 x 28 in 7 x 7 regions, 64 channels, 2 heads."""
    errors, shuffled = [], []
    with torch.no_grad():
        for space in ((14, 21), (28, 28)):
            mixer = _mixer(SIDE**2).double()
            (x,) = random_tensors((1, CHANNELS, *space), seed=3)
            errors.append(worst_error(mixer(x.double()), _full_attention_with_lepe(mixer, x.double())))
            q, kv, order = random_tensors((2, 49, 8, CHANNELS), (2, 49, 8, 2 * CHANNELS), (2, 49, 49), seed=4)
            index = order.argsort(dim=-1)[..., :5]
            run = partial(routed_attention, q.double(), kv.double(), num_heads=HEADS, scale=0.125)
            shuffled.append(worst_error(run(index[..., torch.randperm(5)]), run(index)))
    return Measured(
        value=f"{max(errors):.1e} from full attention, {max(shuffled):.1e} after a permutation",
        held=max(errors) <= 1e-9 and max(shuffled) <= 1e-9,
    )


def _gradients(mixer: BiLevelRoutingAttention, x: Tensor, *, detached: bool) -> list[Tensor]:
    """Of a random sum of the output; the regions' means lose their gradient, or keep it."""
    mixer.diff_routing = not detached
    (weights,) = random_tensors(tuple(x.shape), seed=6)
    return list(torch.autograd.grad((mixer(x) * weights.double()).sum(), list(mixer.parameters())))


@claim(
    "biformer",
    name="routing_gradient",
    grade="exact",
    statement="No gradient goes through the routing; queries and keys learn from token-to-token attention alone",
    where="section 3.2 and appendix A",
    criterion="hard routing: gradients with and without detaching the regions' means are equal to the bit; soft "
    "routing: they differ by more than 1 % of their norm",
)
def routing_gradient() -> Measured:
    """A map of 14 x 14 in 7 x 7 regions, k = 4, float64."""
    (x,) = random_tensors((2, CHANNELS, 14, 14), seed=5)
    differences = {}
    for soft in (False, True):
        mixer = _mixer(4, soft=soft).double()
        pairs = zip(*(_gradients(mixer, x.double(), detached=each) for each in (True, False)), strict=True)
        gaps = [float((one - other).norm() / other.norm()) for one, other in pairs]
        differences[soft] = max(gaps)
    return Measured(
        value=f"hard {differences[False]:g}, soft {differences[True]:.3f} of the norm",
        held=differences[False] == 0 and differences[True] > 0.01,
    )


# --------------------------------------------------------------------------------------------------- ratio


def _race(side: int, topk: int) -> Race:
    """The layer against a layer of full attention in the fused kernel."""
    routed, full = _mixer(topk).eval(), LePEAttention(CHANNELS, num_heads=HEADS, qkv_bias=True).eval()
    (x,) = random_tensors((1, CHANNELS, side, side), seed=side)
    x = x.contiguous(memory_format=torch.channels_last)
    return race({"routed": partial(routed, x), "full": partial(full, x)}, rounds=5 if side > 56 else 15)


def _race_of_forms() -> Race:
    """Attention alone at 112 x 112 with k = 4: in slices, and with all chosen keys and all weights in memory."""
    q, kv, order = random_tensors((1, 49, 256, CHANNELS), (1, 49, 256, 2 * CHANNELS), (1, 49, 49), seed=7)
    index, scale = order.argsort(dim=-1)[..., :4], CHANNELS**-0.5
    return race(
        {
            "slices": lambda: routed_attention(q, kv, index, num_heads=HEADS, scale=scale),
            "gather": lambda: routed_attention_reference(q, kv, index, num_heads=HEADS, scale=scale),
        },
        rounds=5,
    )


@claim(
    "biformer",
    name="speed",
    grade="ratio",
    statement="Routing to regions saves computation, with dense matrix products alone",
    where="abstract and section 3.2",
    criterion="forward of the layer against one with full attention in the fused kernel, 64 channels, 2 heads, 7 x 7 "
    "regions, one thread, medians of one run: >= 4 x at 56 x 56 with k = 1, and >= 4 x at 112 x 112 with k = 4",
)
def speed() -> Measured:
    """Batch 1, float32, projections and LePE on both sides; 56 x 56 with k = 4 and 28 x 28 are reported beside."""
    with one_thread(), torch.no_grad():
        races, forms = {sizes: _race(*sizes) for sizes in RACES}, _race_of_forms()
    ratios = {sizes: times.ratio("full", "routed") for sizes, times in races.items()}
    return Measured(
        value=", ".join(f"{ratio:.1f}x at {side}^2 k={topk}" for (side, topk), ratio in ratios.items()),
        held=ratios[56, 1] >= 4 and ratios[112, 4] >= 4,
        detail="; ".join(
            f"{side}^2 k={topk}: {times.median_s['routed'] * 1e3:.1f} against {times.median_s['full'] * 1e3:.1f} ms, "
            f"of minima {times.minimum_ratio('full', 'routed'):.1f}x"
            for (side, topk), times in races.items()
        )
        + f"; attention alone at 112^2 k=4 in {forms.ratio('slices', 'gather'):.2f} of the gather form's time",
    )


@claim(
    "biformer",
    name="memory",
    grade="ratio",
    statement="Routing to regions saves memory",
    where="abstract",
    criterion="peak memory of a forward at 56 x 56 against full attention that writes its scores: <= 1/5 with k = 1 "
    "and with k = 4",
)
def memory() -> Measured:
    """64 channels, 2 heads, batch 1, float32, what the process holds beyond its input."""
    (x,) = random_tensors((1, CHANNELS, 56, 56), seed=8)
    with one_thread(), torch.no_grad():
        mixers = {topk: _mixer(topk).eval() for topk in (1, 4)}
        full = peak_bytes(partial(_full_attention_with_lepe, mixers[1], x), warmup=1)
        routed = {topk: peak_bytes(partial(mixer, x), warmup=1) for topk, mixer in mixers.items()}
    return Measured(
        value=", ".join(f"1/{full / max(1, peak):.1f} with k = {topk}" for topk, peak in routed.items()),
        held=all(5 * peak <= full for peak in routed.values()),
        detail=f"full {full / 2**20:.0f} MiB, " + ", ".join(f"{peak / 2**20:.1f} MiB" for peak in routed.values()),
    )


# --------------------------------------------------------------------------------------------------- scaled


def _routed(channels: int) -> FeatureMixer:
    return BiLevelRoutingAttention(channels, num_heads=2, regions_per_side=4, topk=2)


def _windowed(channels: int) -> FeatureMixer:
    return DaViTWindowAttention(channels, num_heads=2, window_size=3)


@functools.cache
def _far_accuracy(mixer: Callable[[int], FeatureMixer], seed: int) -> float:
    with one_thread():
        model = trained_reader(mixer, steps=FAR_STEPS, batch=FAR_BATCH, learning_rate=FAR_RATE, seed=seed)
        return reading_accuracy(model)


@claim(
    "biformer",
    name="far_patches",
    grade="scaled",
    statement="Routing by content reaches what fixed windows do not: queries attend to the relevant regions, wherever "
    "they are",
    where="introduction",
    criterion="4 x 4 patches of 2 x 2 positions, six of which ask for the value of the patch with the same random key, "
    "two or more patches away: mean of 3 seeds, routing with k = 2 of 16 regions answers >= 90 %, windows of 3 x 3 "
    f"positions, which cost at least as much, <= 40 %; 2 blocks, at most 50,000 parameters, {FAR_STEPS} steps",
)
def far_patches() -> Measured:
    """A value is one of eight, so that 12.5 % are right by chance; patches fill regions, which favours routing."""
    found = {mixer: [_far_accuracy(mixer, seed) for seed in SEEDS] for mixer in (_routed, _windowed)}
    routed, windowed = (mean(values) for values in found.values())
    networks = [Reader(mixer).eval() for mixer in found]
    sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in networks]
    x, _, _ = sample(0, 0, batch=1)
    costs = [contraction_macs(partial(network, x)) for network in networks]
    return Measured(
        value=f"{routed:.1f} % with routing, {windowed:.1f} % in windows",
        held=routed >= 90 and windowed <= 40 and max(sizes) <= 50_000 and costs[1] >= costs[0],
        detail="patches fill regions, which favours routing; seeds "
        f"{', '.join(f'{value:.1f}' for values in found.values() for value in values)} %; "
        f"{sizes[0]:,} and {sizes[1]:,} parameters, {costs[0] / 1e6:.2f} and {costs[1] / 1e6:.2f} M contractions",
    )


def _in_windows() -> nn.Module:
    """The same network, whose routing mixers become windows of as many keys."""
    config = BiFormer.SMALL
    model = BiFormer(config)
    for block in model.modules():
        if isinstance(block, BiFormerBlock) and isinstance(block.mixer, BiLevelRoutingAttention):
            routed = block.mixer
            block.mixer = DaViTWindowAttention(routed.channels, num_heads=routed.num_heads, window_size=4)
    return model


@claim(
    "biformer",
    name="digits",
    grade="scaled",
    statement="Routing by content is more accurate than fixed windows",
    where="ablation study in Swin-T's layout",
    criterion="handwritten digits, mean of 3 seeds: not worse than the same network with windows of as many keys by "
    f"more than 0.5 point (1,200/597 images, {DIGIT_STEPS} steps of {DIGIT_BATCH})",
)
def digits_beside_windows() -> Measured:
    """8 x 8 positions, 4 x 4 regions of which 4 are chosen: 16 keys, as in a window of 4 x 4."""
    builders: dict[str, Callable[[], nn.Module]] = {
        "routing": lambda: BiFormer(replace(BiFormer.SMALL)),
        "windows": _in_windows,
    }
    found = {}
    with one_thread():
        for name, build in builders.items():
            fitted = (
                fit_classifier(
                    build, digits(), steps=DIGIT_STEPS, batch=DIGIT_BATCH, learning_rate=DIGIT_RATE, seed=seed
                )
                for seed in SEEDS
            )
            found[name] = mean([accuracy(model, digits()) for model in fitted])
    gap = found["routing"] - found["windows"]
    return Measured(
        value=f"{gap:+.2f} points",
        held=gap >= -0.5,
        detail=", ".join(f"{name} {value:.2f} %" for name, value in found.items()),
    )


# --------------------------------------------------------------------------------------------------- out of reach

out_of_reach(
    "biformer",
    name="imagenet",
    statement="BiFormer is more accurate on ImageNet than other networks of its size",
    figure="81.4, 83.8 and 84.3 % top-1 for T, S and B; 82.7 % in Swin-T's layout against Swin-T's 81.3 %",
    where="experiments on ImageNet-1K, and the ablation study in Swin-T's layout",
    criterion="top-1 accuracy on ImageNet within 0.1 point of the figures",
    reason="training takes 300 epochs on several GPUs, and no trained weights are at hand; parity with the authors' "
    "code stands in, and the claims far_patches and digits at a small scale",
)
out_of_reach(
    "biformer",
    name="dense_prediction",
    statement="BiFormer does better as a backbone of detectors and of segmentation",
    where="experiments on COCO and ADE20K",
    criterion="COCO: AP of RetinaNet and Mask R-CNN; ADE20K: mIoU of Semantic FPN and UPerNet, above Swin's",
    reason="training on COCO and ADE20K takes GPU days; features() on maps that regions do not fill is what is tested",
)
