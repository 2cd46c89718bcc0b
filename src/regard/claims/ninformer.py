"""The claims of NiNformer (Abdullah and Aydin, 2024, https://arxiv.org/abs/2403.02411), measured."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from regard.claims import Measured, claim, out_of_reach
from regard.claims._small_images import Images, accuracy, digits, fit_classifier, mnist_test_file
from regard.claims._training import SEEDS, mean
from regard.layers.encoder_block import EncoderBlock
from regard.measure import Race, contraction_macs, one_thread, race
from regard.mixers.sequence.ninformer import MixerGatingUnit
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.models.vision.mlp_mixer import MLPMixer
from regard.models.vision.ninformer import NiNformerBlock, NiNformerClassifier, ninformer_macs
from regard.models.vision.vit import ViT
from regard.ops.heads import merge_heads, split_heads
from regard.ops.softmax_attention import softmax_attention_reference

DIM, HIDDEN, HEADS = 256, 512, 8
LENGTHS = (64, 256, 1024)
STEPS = {"digits": 200, "MNIST": 125}
BATCH, LEARNING_RATE = 128, 3e-3
RECIPE = (
    "reduced recipe: width 64, perceptrons 128 wide, 3 layers, 16 patches, dropout 0.1, Adam with rate 3e-3 (warm-up, "
    "cosine), batches of 128; 8 x 8 digits 1,200/597 images and 200 steps, MNIST's test file 8,000/2,000 images in "
    "patches of 7 and 125 steps"
)


# --------------------------------------------------------------------------------------------------- exact


@claim(
    "ninformer",
    name="parameters",
    grade="exact",
    statement="Four layers of width 256, perceptrons 512 wide, patches of 4, at the baselines' width and depth",
    where="experiments",
    criterion="CIFAR-10 2,652,170, MNIST 2,582,478 (counted on the authors' code), CIFAR-100 2,675,300 parameters",
)
def parameters() -> Measured:
    """Counted without memory for them."""
    found = {}
    for name, variant in NiNformerClassifier.VARIANTS.items():
        with torch.device("meta"):
            model = NiNformerClassifier(variant.config)
        found[name] = (sum(parameter.numel() for parameter in model.parameters()), variant.reported.params)
    shown = ", ".join(f"{count:,}" for count, _ in found.values())
    return Measured(value=shown, held=all(count == reported for count, reported in found.values()))


@claim(
    "ninformer",
    name="macs",
    grade="exact",
    statement="A block costs a linear map of each token and three perceptrons: no product of tokens with tokens",
    where="the block",
    criterion="contractions counted in a forward pass of the CIFAR-10 network = 4 (N D^2 + 3 x 2 N D 512) + 64 x 48 x "
    "256 + 2,560",
)
def macs() -> Measured:
    """N = 64, D = 256."""
    config = NiNformerClassifier.VARIANTS["ninformer_cifar10"].config
    model = NiNformerClassifier(config).eval()
    images = torch.zeros(1, config.in_channels, config.image_size, config.image_size)
    counted = contraction_macs(lambda: model(images))
    formula = 4 * (64 * 256**2 + 6 * 64 * 256 * 512) + 64 * 48 * 256 + 2560
    return Measured(
        value=f"{counted:,.0f} counted, {formula:,} by the formula",
        held=counted == formula == ninformer_macs(config),
    )


@claim(
    "ninformer",
    name="attention_free",
    grade="exact",
    statement="Lower compute burden than attention: tokens are mixed by a perceptron of fixed width",
    where="abstract",
    criterion="without the map of each token (N D^2) a block's contractions double with D and double with N, where the "
    "width inside is fixed; N meets 512 in the perceptron along the tokens alone (2 N D 512 of a gating unit's count)",
)
def attention_free() -> Measured:
    """Counted on the gating unit: its perceptron along the tokens, and all but the map of each token."""

    def count(tokens: int, dim: int) -> tuple[float, float]:
        unit = MixerGatingUnit(dim, seq_len=tokens, token_hidden=HIDDEN, channel_hidden=HIDDEN).eval()
        x = torch.zeros(1, tokens, dim)
        return contraction_macs(lambda: unit.block(x)), contraction_macs(lambda: unit.block.token_mlp(x))

    base, along_tokens = count(64, 128)
    wide, long = count(64, 256)[0] / base, count(128, 128)[0] / base
    share = along_tokens / (2 * 64 * 128 * HIDDEN)
    return Measured(
        value=f"{wide:g}x with D, {long:g}x with N",
        held=wide == 2 and long == 2 and share == 1,
        detail=f"along the tokens {share:g} x 2 N D 512; N = 64 and 128, D = 128 and 256",
    )


# --------------------------------------------------------------------------------------------------- ratio


def transformer_block() -> EncoderBlock:
    """A ViT's block of equal width, whose attention runs in the fused kernel."""
    return EncoderBlock(SoftmaxAttention(DIM, num_heads=HEADS, qkv_bias=True), dim=DIM, hidden=HIDDEN).eval()


def materialised(block: EncoderBlock) -> Callable[[Tensor], Tensor]:
    """The same block, but its attention writes all scores to memory."""
    attention = block.mixer
    assert isinstance(attention, SoftmaxAttention)

    def run(x: Tensor) -> Tensor:
        normed = block.mixer_norm(x)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        q, k, v = (split_heads(project(normed), HEADS) for project in projections)
        x = x + attention.o_proj(merge_heads(softmax_attention_reference(q, k, v)))
        return x + block.mlp(block.mlp_norm(x))

    return run


def compare_blocks(tokens: int) -> tuple[Race, float]:
    """A forward pass of our block, and of a Transformer's with materialised and with fused attention; and our MACs
    relative to the Transformer's.
    """
    ours, fused = NiNformerBlock(tokens, DIM, hidden=HIDDEN).eval(), transformer_block()
    theirs = materialised(fused)
    x = torch.randn(1, tokens, DIM)
    with one_thread(), torch.no_grad():
        times = race({"ours": lambda: ours(x), "materialised": lambda: theirs(x), "fused": lambda: fused(x)}, rounds=15)
    return times, contraction_macs(lambda: ours(x)) / contraction_macs(lambda: theirs(x))


@claim(
    "ninformer",
    name="compute",
    grade="ratio",
    statement="The new block reduces the computational requirements by replacing attention",
    where="abstract",
    criterion="forward of a block against a ViT block of equal D and N, N in (64, 256, 1,024), D = 256, perceptrons of "
    "512: the crossover is reported; at N = 1,024 time <= the ViT block's with materialised attention",
)
def compute() -> Measured:
    """Batch 1, float32, 8 heads; the fused attention kernel beside it."""
    ratios, counts, shown = {}, {}, []
    for tokens in LENGTHS:
        times, counts[tokens] = compare_blocks(tokens)
        ratios[tokens] = times.ratio("ours", "materialised")
        shown.append(
            f"N = {tokens}: time {ratios[tokens]:.2f}x (fused {times.ratio('ours', 'fused'):.2f}x), "
            f"MACs {counts[tokens]:.2f}x"
        )
    faster = crossover(ratios)
    fewer = crossover(counts)
    return Measured(
        value=f"{ratios[1024]:.2f}x at 1,024; faster {faster}, fewer MACs {fewer}",
        held=ratios[1024] <= 1,
        detail="; ".join(shown),
    )


def crossover(ratios: Mapping[int, float]) -> str:
    """From which length on a ratio is at most 1, in words."""
    above = max((tokens for tokens, ratio in ratios.items() if ratio > 1), default=0)
    rest = [tokens for tokens in ratios if tokens > above]
    return f"from N = {min(rest):,} on" if rest else "at none of the lengths"


# --------------------------------------------------------------------------------------------------- scaled


def _networks(image_size: int, patch_size: int) -> dict[str, Callable[[], nn.Module]]:
    sizes: dict[str, Any] = {"image_size": image_size, "patch_size": patch_size}
    return {
        "NiNformer": lambda: NiNformerClassifier(replace(NiNformerClassifier.SMALL, **sizes)),
        "MLP-Mixer": lambda: MLPMixer(replace(MLPMixer.SMALL, **sizes)),
        "ViT": lambda: ViT(replace(ViT.SMALL, **sizes)),
        "MLP-Mixer of 6 layers": lambda: MLPMixer(replace(MLPMixer.SMALL, **sizes, num_layers=6)),
    }


def without_map(model: nn.Module) -> nn.Module:
    """The classifier whose gate is 1: a block adds what its mixer block makes of all tokens."""
    assert isinstance(model, NiNformerClassifier)
    for block in model.backbone.blocks:
        assert isinstance(block, NiNformerBlock)
        block.mixer = block.mixer.block  # type: ignore[assignment]
    return model


def image_sets() -> dict[str, tuple[Images, int]]:
    """The sets that are here, each with its patches' size."""
    mnist = mnist_test_file()
    return {"digits": (digits(), 2), **({} if mnist is None else {"MNIST": (mnist, 7)})}


@functools.cache
def trained(data: str, network: str, seed: int) -> nn.Module:
    """A network trained on a set, once for all claims."""
    images, patch_size = image_sets()[data]
    builders = _networks(images.train.shape[-1], patch_size)
    builders["NiNformer without the map"] = lambda: without_map(builders["NiNformer"]())
    return fit_classifier(
        builders[network], images, steps=STEPS[data], batch=BATCH, learning_rate=LEARNING_RATE, seed=seed
    )


def _accuracy(data: str, network: str) -> float:
    images, _ = image_sets()[data]
    with one_thread():
        return mean([accuracy(trained(data, network, seed), images) for seed in SEEDS])


@claim(
    "ninformer",
    name="accuracy",
    grade="scaled",
    statement="Highest accuracy on CIFAR-10, CIFAR-100 and MNIST among ViT, Local-ViT, MLP-Mixer and NiNformer at "
    "equal patches, width and depth",
    where="tables of results",
    criterion="mean of 3 seeds, NiNformer > MLP-Mixer and > ViT of equal width and depth trained the same: best on the "
    f"majority of sets and never worse than the best by more than 1 point ({RECIPE}); an MLP-Mixer of 6 layers, whose "
    "parameters match, is reported beside it",
)
def accuracy_beside_baselines() -> Measured:
    """Digits, and MNIST's test file where the data folder has it."""
    best, worst_gap, shown = 0, 0.0, []
    sets = list(image_sets())
    for data in sets:
        found = {network: _accuracy(data, network) for network in _networks(8, 2)}
        rivals = max(found["MLP-Mixer"], found["ViT"])
        best += found["NiNformer"] > rivals
        worst_gap = max(worst_gap, rivals - found["NiNformer"])
        shown.append(f"{data}: " + ", ".join(f"{name} {value:.1f} %" for name, value in found.items()))
    absent = "" if "MNIST" in sets else "; MNIST is not in the data folder"
    return Measured(
        value=f"best on {best} of {len(sets)} sets, at most {worst_gap:.1f} points behind",
        held=2 * best > len(sets) and worst_gap <= 1,
        detail="; ".join(shown) + absent,
    )


def relative_variance(form: Callable[[Tensor], Tensor], inputs: Tensor) -> float:
    """How much the effective token mixing d out[i, c] / d x[j, c] varies between inputs, relative to its mean square.

    Args:
        form: from `(1, tokens, channels)` to the same.
        inputs: `(number, tokens, channels)`.
    """

    def of_one(x: Tensor) -> Tensor:
        jacobian = jacrev(lambda tokens: form(tokens[None])[0])(x)
        return jacobian.diagonal(dim1=1, dim2=3)

    with torch.no_grad():
        mixing = vmap(of_one, chunk_size=4)(inputs)
    return float(mixing.var(dim=0, correction=0).sum() / mixing.square().mean(dim=0).sum())


def _variances_of_mixing(seed: int, inputs: int) -> tuple[list[float], list[float]]:
    """Of every layer, on digits: the gating units', and those of the Mixer's perceptrons along the tokens."""
    test = digits().test[:inputs]
    ours, theirs = trained("digits", "NiNformer", seed), trained("digits", "MLP-Mixer", seed)
    assert isinstance(ours, NiNformerClassifier)
    assert isinstance(theirs, MLPMixer)
    found: tuple[list[float], list[float]] = ([], [])
    with one_thread(), torch.no_grad():
        x = ours.patches(test)
        for gated in ours.backbone.blocks:
            assert isinstance(gated, NiNformerBlock)
            found[0].append(relative_variance(gated.mixer, gated.norm(x)))
            x = gated(x)
        x = theirs.patches(test)
        for block in theirs.blocks:
            found[1].append(relative_variance(block.token_mlp, block.token_norm(x)))  # type: ignore[operator, arg-type]
            x = block(x)
    return found


@claim(
    "ninformer",
    name="dynamic_gate",
    grade="scaled",
    statement="The static token mixing of MLP-Mixer becomes a dynamic, element-wise gating function",
    where="abstract",
    criterion="the effective token mixing d out_i / d x_j varies between inputs (relative variance > 0.05 in every "
    "layer), that of the Mixer much less (at most half, mean over layers); without the map u (gate -> 1), trained the "
    f"same, accuracy is lower ({RECIPE}; digits, 3 seeds)",
)
def dynamic_gate() -> Measured:
    """16 test images of digits: every input takes a whole Jacobian."""
    pairs = [_variances_of_mixing(seed, inputs=16) for seed in SEEDS]
    ours, theirs = ([value for pair in pairs for value in pair[side]] for side in (0, 1))
    with_map, without = _accuracy("digits", "NiNformer"), _accuracy("digits", "NiNformer without the map")
    held = min(ours) > 0.05 and mean(theirs) <= mean(ours) / 2 and without < with_map
    return Measured(
        value=f"relative variance {mean(ours):.2f}, Mixer {mean(theirs):.2f}; accuracy {with_map:.1f} %, "
        f"{without:.1f} % without the map",
        held=held,
        detail=f"variance in single layers: NiNformer {min(ours):.2f} to {max(ours):.2f}, MLP-Mixer {min(theirs):.2f} "
        f"to {max(theirs):.2f}",
    )


# --------------------------------------------------------------------------------------------------- out of reach

out_of_reach(
    "ninformer",
    name="full_training",
    statement="Highest top-1 accuracy on CIFAR-10, CIFAR-100 and MNIST after 100 epochs of the full training sets",
    where="tables of results",
    criterion="top-1 accuracy above ViT's, Local-ViT's and MLP-Mixer's on all three sets, trained for 100 epochs",
    reason="100 epochs of full CIFAR take days on two cores; the claim `accuracy` at a small size stands in",
)
