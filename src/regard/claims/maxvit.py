"""The claims of MaxViT (Tu et al., ECCV 2022, https://arxiv.org/abs/2204.01697), measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from regard.claims import Measured, claim, out_of_reach
from regard.claims._generation import digit_features, features_of, fit_generator, frechet_distance, generated
from regard.claims._maxvit_networks import BATCH, SIDE, STEPS, influence, pair_accuracy, same_window
from regard.claims._small_images import accuracy, digits, fit_classifier
from regard.claims._training import SEEDS, mean
from regard.measure import contraction_macs, one_thread, race
from regard.mixers.spatial.maxvit_block import MaxViTBlockAttention
from regard.mixers.spatial.maxvit_grid import MaxViTGridAttention
from regard.models.vision.maxvit import Kind, MaxViT, MaxViTConfig
from regard.models.vision.maxvit_blocks import AttentionBlock
from regard.models.vision.maxvit_generator import MaxViTGenerator, MaxViTGeneratorConfig

COUNTED = {
    "maxvit_tiny": 30_916_528,
    "maxvit_small": 68_927_956,
    "maxvit_base": 119_467_708,
    "maxvit_large": 211_785_560,
    "maxvit_xlarge": 474_951_952,
}
CHANNELS, HEADS, WINDOW = 64, 2, 7
PARTS: Mapping[str, tuple[Kind, Kind]] = {
    "block and grid": ("block", "grid"),
    "block alone": ("block", "block"),
    "grid alone": ("grid", "grid"),
}


def _pair() -> nn.Sequential:
    """Block attention, perceptron, grid attention, perceptron."""
    mixers = (
        MaxViTBlockAttention(CHANNELS, num_heads=HEADS, window_size=WINDOW),
        MaxViTGridAttention(CHANNELS, num_heads=HEADS, grid_size=WINDOW),
    )
    return nn.Sequential(*(AttentionBlock(mixer, channels=CHANNELS, hidden=4 * CHANNELS) for mixer in mixers)).eval()


def _map(side: int, channels: int = CHANNELS) -> Tensor:
    x = torch.randn(1, channels, side, side, generator=torch.Generator().manual_seed(side))
    return x.contiguous(memory_format=torch.channels_last)


def _queries(side: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(side)
    q, k, v = torch.randn(3, 1, HEADS, side * side, CHANNELS // HEADS, generator=generator)
    return q, k, v


# --------------------------------------------------------------------------------------------------- exact


@claim(
    "maxvit",
    name="parameters",
    grade="exact",
    statement="MaxViT-T, S, B, L and XL have 31, 69, 120, 212 and 475 M parameters.",
    figure="31, 69, 120, 212 and 475 M",
    where="experiments",
    criterion="all five counts equal those of the authors' code: " + ", ".join(map(str, COUNTED.values())),
)
def parameters() -> Measured:
    """Counted without memory for them; the variants for larger images have as many."""
    found = {}
    for name, variant in MaxViT.VARIANTS.items():
        with torch.device("meta"):
            found[name] = sum(parameter.numel() for parameter in MaxViT(variant.config).parameters())
    same = all(found[f"{name}_{side}"] == found[name] for name in COUNTED for side in (384, 512))
    return Measured(
        value=", ".join(str(found[name]) for name in COUNTED),
        held=same and {name: found[name] for name in COUNTED} == COUNTED,
    )


@claim(
    "maxvit",
    name="macs",
    grade="exact",
    statement="MaxViT-T takes 5.6 GFLOPs at 224 x 224.",
    figure="5.6 G",
    where="experiments",
    criterion="contractions counted in a forward pass of MaxViT-T are within 5 % of 5.6 G",
)
def macs() -> Measured:
    """The paper's figure counts elementwise work, too."""
    with torch.device("meta"):
        model = MaxViT(MaxViT.VARIANTS["maxvit_tiny"].config).eval()
        counted = contraction_macs(lambda: model(torch.empty(1, 3, 224, 224)))
    return Measured(value=f"{counted / 1e9:.2f} G", held=abs(counted / 5.6e9 - 1) <= 0.05)


@claim(
    "maxvit",
    name="linear_cost",
    grade="exact",
    statement="Multi-axis attention has linear complexity with respect to the size of the image.",
    where="abstract and section 3.2",
    criterion="contractions of block and grid attention with their perceptrons on a map of twice the height and width "
    "= 4 x; those of full attention's products 16 x",
)
def linear_cost() -> Measured:
    """Maps of 56 x 56 and 112 x 112, windows and combs of 7 x 7."""
    pair = _pair()
    ours = contraction_macs(lambda: pair(_map(112))) / contraction_macs(lambda: pair(_map(56)))
    large, small = _queries(112), _queries(56)
    full = contraction_macs(lambda: scaled_dot_product_attention(*large)) / contraction_macs(
        lambda: scaled_dot_product_attention(*small)
    )
    return Measured(value=f"{ours:g} x, full attention {full:g} x", held=ours == 4 and full == 16)


@claim(
    "maxvit",
    name="global_reach",
    grade="exact",
    statement="Block and grid attention interact locally and globally: a block sees the whole map even in the first, "
    "high-resolution stage.",
    where="abstract and section 3.2",
    criterion="without the convolution, on a map of P G positions per side, block attention followed by grid attention "
    "connects every pair of positions (Jacobian); block attention alone exactly the pairs of a window, grid attention "
    "alone exactly those of a comb",
)
def global_reach() -> Measured:
    """P = G = 3 and 9 x 9 positions; and the share of pairs that have a path on the map of MaxViT's first stage."""
    side, size, channels = 9, 3, 6
    block = MaxViTBlockAttention(channels, num_heads=2, window_size=size)
    grid = MaxViTGridAttention(channels, num_heads=2, grid_size=size)
    found: dict[str, Tensor] = {}
    forms: dict[str, nn.Module] = {"block": block, "grid": grid, "both": nn.Sequential(block, grid)}
    for name, form in forms.items():
        found[name] = influence(form.double(), _map(side, channels).double())
    exact = [
        torch.equal(found["block"], same_window(side, size, "window")),
        torch.equal(found["grid"], same_window(side, size, "grid")),
    ]
    paths = same_window(56, WINDOW, "grid").float() @ same_window(56, WINDOW, "window").float() > 0
    return Measured(
        value=f"{found['both'].float().mean():.0%} of all pairs; block {found['block'].float().mean():.1%}, grid "
        f"{found['grid'].float().mean():.1%}",
        held=bool(found["both"].all()) and all(exact),
        detail=f"on 56 x 56 positions with P = G = 7, MaxViT's first stage at 224 pixels, a single pair connects "
        f"{paths.float().mean():.1%} of all pairs, as combs are 8 positions apart and windows 7 wide; the convolution "
        "and the next block close the gap",
    )


# --------------------------------------------------------------------------------------------------- ratio


@claim(
    "maxvit",
    name="speed_against_full_attention",
    grade="ratio",
    statement="Multi-axis attention is linear, where full attention is quadratic.",
    where="section 3.2",
    criterion="64 channels, 2 heads, one thread: block and grid attention with both perceptrons against the products "
    "of full attention alone (the fused kernel) are >= 1.5 x as fast at 56 x 56 and >= 8 x at 112 x 112; time at 112 x "
    "112 <= 5.5 x that at 56 x 56",
)
def speed_against_full_attention() -> Measured:
    """Batch 1, float32, forward."""
    pair = _pair()
    small, large = _map(56), _map(112)
    few, many = _queries(56), _queries(112)
    with one_thread(), torch.no_grad():
        times = race(
            {
                "ours at 56": lambda: pair(small),
                "full at 56": lambda: scaled_dot_product_attention(*few),
                "ours at 112": lambda: pair(large),
                "full at 112": lambda: scaled_dot_product_attention(*many),
            },
            rounds=9,
        )
    at_56, at_112 = times.ratio("full at 56", "ours at 56"), times.ratio("full at 112", "ours at 112")
    growth = times.ratio("ours at 112", "ours at 56")
    return Measured(
        value=f"{at_56:.2f} x as fast at 56, {at_112:.1f} x at 112; grows {growth:.2f} x",
        held=at_56 >= 1.5 and at_112 >= 8 and growth <= 5.5,
        detail=", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in times.median_s.items()),
    )


# --------------------------------------------------------------------------------------------------- scaled

DIGIT_STEPS, DIGIT_BATCH, DIGIT_RATE = 150, 64, 2e-3


@claim(
    "maxvit",
    name="parts_on_digits",
    grade="scaled",
    statement="Block and grid attention are better together than each alone.",
    where="experiments",
    criterion="two stages of 32 and 64 channels on scikit-learn's digits (1,200 to train, 597 to test), "
    f"{DIGIT_STEPS} steps of {DIGIT_BATCH}, 3 seeds: mean accuracy of block and grid attention >= that of two block "
    "attentions and >= that of two grid attentions, of equal parameters",
)
def parts_on_digits() -> Measured:
    """All are trained the same."""
    found = {}
    with one_thread():
        for name, kinds in PARTS.items():
            config = replace(MaxViT.SMALL, kinds=kinds)
            found[name] = mean([_digit_accuracy(config, seed) for seed in SEEDS])
    both = found["block and grid"]
    return Measured(
        value=", ".join(f"{name} {value:.2f} %" for name, value in found.items()),
        held=both >= max(found.values()),
    )


def _digit_accuracy(config: MaxViTConfig, seed: int) -> float:
    model = fit_classifier(
        lambda: MaxViT(config), digits(), steps=DIGIT_STEPS, batch=DIGIT_BATCH, learning_rate=DIGIT_RATE, seed=seed
    )
    return accuracy(model, digits())


@claim(
    "maxvit",
    name="far_pairs",
    grade="scaled",
    statement="Grid attention gives global interaction, which block attention alone lacks, at every stage.",
    where="section 3.2",
    criterion=f"at every one of {SIDE} x {SIDE} positions, whether the sign half a map away is the same, read from the "
    f"first stage's map (one block, windows and combs of 4 x 4, {STEPS} steps of {BATCH}, 3 seeds): two block "
    "attentions stay within 5 points of chance (50 %), block and grid attention are at least 20 points above them",
)
def far_pairs_claim() -> Measured:
    """Convolutions and a window reach 6 positions, the partner is 8 away."""
    with one_thread():
        found = {name: mean([pair_accuracy(kinds, seed) for seed in SEEDS]) for name, kinds in PARTS.items()}
    both, block = found["block and grid"], found["block alone"]
    return Measured(
        value=", ".join(f"{name} {value:.1f} %" for name, value in found.items()),
        held=abs(block - 50) <= 5 and both >= block + 20,
    )


GENERATOR = MaxViTGeneratorConfig(dims=(32, 16), latent_dim=16)
GAN_STEPS, GAN_BATCH, GAN_RATE = 1000, 32, 2e-3


@claim(
    "maxvit",
    name="generation",
    grade="scaled",
    statement="As a generator MaxViT is strong in unconditional generation: attention across the map and nearby.",
    where="experiments",
    criterion=f"generators of 8 x 8 digits trained against the same discriminator for {GAN_STEPS:,} steps of "
    f"{GAN_BATCH}, 3 seeds: the mean Fréchet distance from the real images, in the features of a fixed small "
    "classifier, is smaller with grid and block attention than without, all else being the same",
)
def generation() -> Measured:
    """1,797 images of each; without attention its perceptrons and convolutions remain."""
    images = digits()
    real = features_of(torch.cat([images.train, images.test]))
    found: dict[str, list[float]] = {}
    with one_thread():
        for name, attention in (("with attention", True), ("without", False)):
            found[name] = [_distance(replace(GENERATOR, attention=attention), seed, real) for seed in SEEDS]
    _, right = digit_features()
    means = {name: mean(values) for name, values in found.items()}
    return Measured(
        value=f"{means['with attention']:.2f} with attention, {means['without']:.2f} without",
        held=means["with attention"] < means["without"],
        detail="; ".join(f"{name} {', '.join(f'{each:.2f}' for each in values)}" for name, values in found.items())
        + f"; the classifier is right on {right:.1f} % of the test images",
    )


def _distance(config: MaxViTGeneratorConfig, seed: int, real: NDArray[np.float64]) -> float:
    generator = fit_generator(
        lambda: MaxViTGenerator(config),
        digits(),
        latent_dim=config.latent_dim,
        steps=GAN_STEPS,
        batch=GAN_BATCH,
        rate=GAN_RATE,
        seed=seed,
    )
    made = generated(generator, latent_dim=config.latent_dim, count=len(real), seed=seed)
    return frechet_distance(features_of(made), real)


# --------------------------------------------------------------------------------------------------- out of reach

out_of_reach(
    "maxvit",
    name="imagenet",
    statement="MaxViT attains 86.5 % top-1 accuracy on ImageNet-1K without extra data.",
    figure="86.5 % (86.70 % in the table beside the code, MaxViT-L at 512 x 512)",
    where="abstract and experiments",
    criterion="top-1 accuracy of MaxViT-L on ImageNet-1K after 300 epochs and fine-tuning at 512 x 512 >= 86.5 %",
    reason="300 epochs on ImageNet take months on two cores; parts_on_digits stands in at small scale, and the "
    "authors' weights load through load_reference, in their layout and in timm's",
)
out_of_reach(
    "maxvit",
    name="pre_training",
    statement="With pre-training on ImageNet-21K MaxViT attains 88.7 % on ImageNet-1K, and more with JFT.",
    figure="88.7 % (XL at 512 x 512), 89.53 % with JFT",
    where="abstract and experiments",
    criterion="top-1 accuracy of MaxViT-XL on ImageNet-1K, pre-trained on ImageNet-21K, >= 88.7 %",
    reason="neither ImageNet-21K nor JFT, which is not public, can be trained on here; the published weights load "
    "through load_reference",
)
out_of_reach(
    "maxvit",
    name="coco",
    statement="As a backbone of detectors MaxViT is better than Swin and others of equal cost.",
    where="experiments",
    criterion="box AP of a Cascade R-CNN on COCO with MaxViT above that with Swin of equal cost",
    reason="training detectors on COCO takes GPU days; what is checked here is features(), on maps of any size",
)
out_of_reach(
    "maxvit",
    name="aesthetics",
    statement="MaxViT is strong in visual aesthetic assessment.",
    where="experiments",
    criterion="linear correlation of predicted with mean scores on AVA above those of networks of equal size",
    reason="AVA's 255,000 images and the networks' training on them are out of reach; features() is what such a head "
    "would take",
)
