"""The claims of DependencyViT (Ding et al., CVPR 2023, https://arxiv.org/abs/2304.03282), measured.

The authors published neither code nor weights, so that their own figures are neither confirmed nor shown here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from regard.claims import Measured, claim, out_of_reach
from regard.claims._dependency_digits import RECIPE, mean_accuracy
from regard.claims._dependency_structure import STRUCTURE_RECIPE, Structure, structure
from regard.claims._training import SEEDS, mean
from regard.layers.dependency_block import DependencyBlock
from regard.layers.reversed_attention import ReversedAttention
from regard.measure import contraction_macs, one_thread, peak_bytes, race
from regard.models.vision.dependencyvit import DependencyViT
from regard.ops.reversed_attention import forward_weights

SYSTEM = "dependencyvit"
NAMES = ("tiny", "small")
TOKENS_LEFT = [164, 132, 100, 69]
IMAGE = (224, 224)


# --------------------------------------------------------------------------------------------------- exact


@claim(
    SYSTEM,
    name="sending_is_normalised",
    grade="exact",
    statement="A child sends its information to its parents following a normalised probability distribution, which a "
    "message controller scales down from layer to layer.",
    where="abstract; section 3",
    criterion="in all 12 layers of the tiny network at 224 x 224, columns of the dependency mask sum to m within 1e-5, "
    "and m never rises from layer to layer",
)
def sending_is_normalised() -> Measured:
    """Random weights ten times as large as at the start, so that choices and gates are far from uniform."""
    torch.manual_seed(0)
    model = DependencyViT(DependencyViT.VARIANTS["dependencyvit_tiny"].config).eval()
    worst, rises = 0.0, 0
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter.mul_(10 if parameter.ndim > 1 else 1)
        x, m = model.patches(torch.randn(1, 3, *IMAGE)), torch.ones(1, 196)
        for block in model.blocks:
            assert isinstance(block, DependencyBlock)
            before, sums = m, block.dependency_mask(x, m).sum(dim=1)
            x, m, _ = block(x, m, None)
            worst = max(worst, float((sums - m).abs().max()))
            rises += int((m > before).sum())
    return Measured(
        value=f"sums off by at most {worst:.1e}, {rises} rises of m",
        held=worst <= 1e-5 and rises == 0,
        detail=f"196 tokens, 12 heads; m between {float(m.min()):.1e} and {float(m.max()):.1e} in the end",
    )


@claim(
    SYSTEM,
    name="transposed_attention",
    grade="exact",
    statement="Reversed attention transposes the forward attention from children to parents.",
    where="section 3; figure 2",
    criterion="with P = 1 and m = 1 the layer's output before its projection equals A^T V, and it is equivariant to "
    "permutations of the tokens, both within 1e-10 in float64",
)
def transposed_attention() -> Measured:
    """P is uniform where the selector is 0, times the number of heads; m is 1 where the controller is saturated."""
    torch.manual_seed(0)
    layer = ReversedAttention(24, num_heads=4, controller_bias=True).double()
    x, order = torch.randn(2, 11, 24, dtype=torch.float64), torch.randperm(11)
    with torch.no_grad():
        shuffled = (layer(x[:, order]).y - layer(x).y[:, order]).abs().max()
        layer.head_selector.weight.zero_()
        layer.message_controller.down_proj.bias.fill_(60)
        layer.o_proj.weight.copy_(torch.eye(24))
        layer.o_proj.bias.zero_()
        q, k, v = (part.unflatten(-1, (4, 6)).transpose(1, 2) for part in layer.qkv(x).chunk(3, dim=-1))
        expected = (forward_weights(q, k).transpose(2, 3) @ v).transpose(1, 2).flatten(2)
        off = (4 * layer(x).y - expected).abs().max()
    return Measured(
        value=f"off by {float(off):.1e}, permuted {float(shuffled):.1e}",
        held=float(off) <= 1e-10 and float(shuffled) <= 1e-10,
        detail="11 tokens, 4 heads, width 24",
    )


@claim(
    SYSTEM,
    name="sizes",
    grade="exact",
    statement="The lite networks prune leaves that rarely send messages, which takes less computation.",
    where="section 3",
    criterion="5,964,712 and 22,987,624 parameters and 1.296 and 4.759 G MACs (lite 0.849 and 3.144 G) at 224 x 224 by "
    "the formula, 164, 132, 100 and 69 of 196 tokens left; MACs lite over full <= 0.67",
)
def sizes() -> Measured:
    """Counted without memory for them; the score that prunes is within the 0.2 % that MACs may be off."""
    shown, ratios, right = [], [], True
    for size in NAMES:
        counted = {}
        for name in (f"dependencyvit_{size}", f"dependencyvit_lite_{size}"):
            variant = DependencyViT.VARIANTS[name]
            with torch.device("meta"):
                model = DependencyViT(variant.config).eval()
                counted[name] = contraction_macs(functools.partial(model, torch.empty(1, 3, *IMAGE)))
            params = sum(parameter.numel() for parameter in model.parameters())
            assert variant.reported.macs is not None
            right &= params == variant.reported.params
            right &= abs(counted[name] / variant.reported.macs - 1) <= variant.reported.macs_tolerance
            right &= variant.config.tokens_left(196) == (TOKENS_LEFT if "lite" in name else [])
            shown.append(f"{name} {params:,} and {counted[name] / 1e9:.3f} G")
        full, lite = counted.values()
        ratios.append(lite / full)
    return Measured(
        value="lite over full " + ", ".join(f"{ratio:.3f}" for ratio in ratios),
        held=right and max(ratios) <= 0.67,
        detail="; ".join(shown),
    )


# --------------------------------------------------------------------------------------------------- ratio


def _tiny_networks() -> dict[str, DependencyViT]:
    torch.manual_seed(0)
    full = DependencyViT(DependencyViT.VARIANTS["dependencyvit_tiny"].config)
    return {"full": full, "lite": full.pruned()}


@claim(
    SYSTEM,
    name="lite_throughput",
    grade="ratio",
    statement="DependencyViT-Lite reduces the computational footprint.",
    where="abstract",
    criterion="images per second of the lite tiny network >= 1.4 x those of the full one: forward at 224 x 224, batch "
    "4, medians of one run",
)
def lite_throughput() -> Measured:
    """On one thread, taking turns with each other."""
    networks, images = _tiny_networks(), torch.randn(4, 3, *IMAGE)
    with one_thread(), torch.no_grad():
        runs: dict[str, Callable[[], object]] = {
            name: functools.partial(model.eval(), images) for name, model in networks.items()
        }
        times = race(runs, rounds=9)
    faster = times.ratio("full", "lite")
    return Measured(
        value=f"{faster:.2f} x",
        held=faster >= 1.4,
        detail=", ".join(f"{name} {4 / seconds:.1f} images/s" for name, seconds in times.median_s.items())
        + f"; of minima {times.minimum_ratio('full', 'lite'):.2f} x; float32, 1 thread",
    )


@claim(
    SYSTEM,
    name="lite_memory",
    grade="ratio",
    statement="DependencyViT-Lite reduces the memory footprint.",
    where="abstract",
    criterion="peak memory of the activations that a forward keeps for the gradient, lite tiny <= 0.75 x full, at "
    "224 x 224, batch 4",
)
def lite_memory() -> Measured:
    """Resident memory of a forward in training with all that it keeps, beyond what was held before."""
    networks, images = _tiny_networks(), torch.randn(4, 3, *IMAGE)
    with one_thread():
        peaks = {name: peak_bytes(functools.partial(model, images), warmup=1) for name, model in networks.items()}
    ratio = peaks["lite"] / peaks["full"]
    return Measured(
        value=f"{ratio:.2f} x",
        held=ratio <= 0.75,
        detail=", ".join(f"{name} {peak / 2**20:.0f} MiB" for name, peak in peaks.items()) + "; float32",
    )


# --------------------------------------------------------------------------------------------------- scaled


@claim(
    SYSTEM,
    name="pruning_does_not_hurt",
    grade="scaled",
    statement="The leaf nodes which rarely send messages can be pruned without hindering the model performance.",
    where="abstract",
    criterion="pruning 48 % of the tokens by score, trained and tested so, loses at most 1.5 points of mean accuracy "
    f"against the full network; random pruning of as many loses at least twice as much ({RECIPE}; digits on "
    "an empty canvas of 12 x 12 pixels: 36, 30, 24 and 18 tokens)",
)
def pruning_does_not_hurt() -> Measured:
    """16 % of the tokens after the attention of layers 2, 3 and 4 each; m as another score beside it."""
    names = ("full", "by score", "at random", "by m")
    full, lite, random, by_m = (mean_accuracy(name, on_canvas=True) for name in names)
    loss, random_loss = full - lite, full - random
    return Measured(
        value=f"loses {loss:.2f} points by score, {random_loss:.2f} at random",
        held=loss <= 1.5 and random_loss >= 2 * loss,
        detail=f"full {full:.2f} %, by score {lite:.2f} %, at random {random:.2f} %, by m {by_m:.2f} %",
    )


@claim(
    SYSTEM,
    name="accuracy_beside_a_vit",
    grade="scaled",
    statement="DependencyViT works well in weakly-supervised pre-training with image labels.",
    where="abstract",
    criterion=f"mean accuracy within 1.5 points of an equal ViT's ({RECIPE})",
)
def accuracy_beside_a_vit() -> Measured:
    """The same widths, depth and recipe, and neither a class token nor dropout."""
    ours, theirs = mean_accuracy("full"), mean_accuracy("ViT")
    return Measured(
        value=f"{ours - theirs:+.2f} points",
        held=ours >= theirs - 1.5,
        detail=f"DependencyViT {ours:.2f} %, ViT {theirs:.2f} %",
    )


def _structures() -> dict[str, list[Structure]]:
    with one_thread():
        return {name: [structure(name, seed) for seed in SEEDS] for name in ("DependencyViT", "ViT")}


def _labels_right(found: dict[str, list[Structure]]) -> str:
    return ", ".join(f"{name} {mean([each.right for each in runs]):.1f} %" for name, runs in found.items())


@claim(
    SYSTEM,
    name="saliency_emerges",
    grade="scaled",
    statement="Hierarchies emerge from reversed attention, and a dependency tree is induced from leaves to the root "
    "without labels; salient objects are segmented by it.",
    where="abstract; section 4",
    criterion="mean intersection over union of the root's subtree with the objects >= 0.5 and above that of "
    f"the same read-out of an equal ViT's attention rollout ({STRUCTURE_RECIPE})",
)
def saliency_emerges() -> Measured:
    """The root and its subtrees, but for lone leaves on the root; chosen on a network of another seed."""
    found = _structures()
    ours, theirs = (mean([each.overlap for each in found[name]]) for name in ("DependencyViT", "ViT"))
    return Measured(
        value=f"{ours:.3f}, ViT {theirs:.3f}",
        held=ours >= 0.5 and ours > theirs,
        detail=f"labels right: {_labels_right(found)}",
    )


@claim(
    SYSTEM,
    name="parts_emerge",
    grade="scaled",
    statement="Entities and their parts are represented by different subtrees, enabling part partitioning.",
    where="abstract",
    criterion="mean adjusted Rand index of the subtrees with the parts, over the patches of objects, above that of the "
    f"same read-out of an equal ViT's attention rollout ({STRUCTURE_RECIPE})",
)
def parts_emerge() -> Measured:
    """The tree is cut above depth 2: entities hang on the root, their parts on them."""
    found = _structures()
    ours, theirs = (mean([each.agreement for each in found[name]]) for name in ("DependencyViT", "ViT"))
    return Measured(
        value=f"{ours:.3f}, ViT {theirs:.3f}", held=ours > theirs, detail=f"labels right: {_labels_right(found)}"
    )


# --------------------------------------------------------------------------------------------------- out of reach

out_of_reach(
    SYSTEM,
    name="imagenet",
    statement="DependencyViT and DependencyViT-Lite work well on ImageNet, self-supervised and weakly supervised.",
    where="section 4",
    criterion="top-1 accuracy on ImageNet after 300 epochs, full and lite",
    reason="300 epochs on ImageNet take GPU weeks, and the authors published no weights; accuracy_beside_a_vit and "
    "pruning_does_not_hurt stand in at small scale",
)
out_of_reach(
    SYSTEM,
    name="segmentation",
    statement="Unsupervised part and saliency segmentation from the trees.",
    where="section 4",
    criterion="part and saliency segmentation on Pascal-Part, ECSSD, DUTS and DUT-OMRON above baselines that use "
    "self-supervised Transformers",
    reason="needs pre-training on ImageNet, and how trees are read is not published; saliency_emerges and parts_emerge "
    "stand in on synthetic scenes",
)
out_of_reach(
    SYSTEM,
    name="coco",
    statement="DependencyViT is effective as a backbone for detection.",
    where="section 4",
    criterion="AP on COCO val2017 above an equal ViT's",
    reason="training detectors on COCO takes GPU days; features() gives the map that a detector builds upon",
)
