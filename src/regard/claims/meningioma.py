"""The claims of AGUNet and DAUNet (Bouget et al., Frontiers in Radiology 2021, https://arxiv.org/abs/2101.07715)."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regard.claims import Measured, claim, out_of_reach
from regard.claims._brain_volumes import (
    THICKNESS,
    brains,
    detection,
    fit_segmenter,
    predicted,
    predicted_by_slabs,
    slabs,
    whole,
)
from regard.claims._light_networks import milliseconds, parameters
from regard.claims._training import SEEDS, mean
from regard.measure import one_thread, race
from regard.meta_device import sizes_only
from regard.mixers.spatial.position_attention import PositionAttention
from regard.models.medical.agunet import AGUNet
from regard.models.medical.daunet import DAUNet

SIDE, TRAINED, HELD_OUT, STEPS, BATCH, LEARNING_RATE = 48, 120, 30, 400, 2, 1e-2
SLAB_SIDE, SLAB_STEPS, DISTRACTORS = 32, 250, 2
PLAIN = {"attention_gates": False, "multi_scale_input": False, "deep_supervision": False}
AGUNET_CONCEPTS = ("attention_gates", "multi_scale_input", "deep_supervision", "batch_norm")
DAUNET_CONCEPTS = (
    "position_attention",
    "channel_attention",
    "guided",
    "multi_scale_input",
    "deep_supervision",
    "batch_norm",
)
STATISTICS = {
    "agunet_full": 6_216,
    "agunet_full_plain": 6_216,
    "agunet_small": 1_960,
    "agunet_small_plain": 1_960,
    "daunet_small": 2_720,
    "daunet_small_plain": 2_720,
}
"""Numbers in the running statistics, by variant, on the authors' code."""


# --------------------------------------------------------------------------------------------------- exact


@claim(
    "meningioma",
    name="sizes",
    grade="exact",
    statement="AGUNet and DAUNet, each plain and with multi-scale input and deep supervision",
    where="the architectures",
    criterion="parameters and running statistics equal those of the authors' code: AGUNet 16,405,742 and 18,657,716 "
    "with 16 to 256 channels, 1,626,142 and 1,774,660 with 8 to 128; DAUNet 3,428,196 and 3,576,714, the projections "
    "of the position attention counted",
)
def network_sizes() -> Measured:
    """Counted without memory for them."""
    found, held = {}, True
    for network in (AGUNet, DAUNet):
        for name, variant in network.VARIANTS.items():
            with sizes_only():
                model = network(variant.config)
            statistics = sum(part.numel() for part_name, part in model.named_buffers() if "running" in part_name)
            found[name] = parameters(model)
            held = held and found[name] == variant.reported.params and statistics == STATISTICS[name]
    return Measured(value=", ".join(f"{count:,}" for count in found.values()), held=held, detail=", ".join(found))


def _combinations(network: type[AGUNet] | type[DAUNet], concepts: tuple[str, ...]) -> Iterator[Any]:
    config: Any = replace(network.SMALL, filters=(4, 6, 8))
    for choice in itertools.product((False, True), repeat=len(concepts)):
        yield replace(config, **dict(zip(concepts, choice, strict=True)))


def _named_sizes(network: Any, config: Any) -> dict[str, int]:
    with sizes_only():
        return {name: value.numel() for name, value in network(config).named_parameters()}


def _belongs(concept: str, name: str, without: dict[str, int]) -> bool:
    """Whether a parameter may go, or get smaller, with a concept."""
    if concept == "batch_norm":
        return ".norm." in name and ".gate." not in name and "bottleneck" not in name
    own = {
        "attention_gates": (".gate.",),
        "multi_scale_input": ("encoder.pyramid.", "encoder.blocks."),
        "deep_supervision": ("heads.",),
        "position_attention": ("bottleneck.position.", "bottleneck.sum."),
        "channel_attention": ("bottleneck.channel.", "bottleneck.sum."),
        "guided": (".guide.", "joins.", "blocks."),
    }[concept]
    # what other concepts own is as large as before
    shrinks = name in without and name.endswith(("first.conv.weight", ".norm.weight", ".norm.bias"))
    return any(part in name for part in own) and (name not in without or shrinks or concept == "deep_supervision")


@claim(
    "meningioma",
    name="concepts",
    grade="exact",
    statement="Each concept can be switched off on its own for ablation studies",
    where="abstract, methods",
    criterion="all 16 combinations of AGUNet's four concepts and all 64 of DAUNet's six build and run; switching a "
    "concept off takes away, or narrows, parameters of that concept's own layers and of those that read its maps, and "
    "no other",
)
def concepts() -> Measured:
    """Filters of 4, 6 and 8 channels, volumes of 12 voxels per side."""
    x, built, strangers = torch.randn(1, 1, 12, 12, 12), 0, set()
    for network, names in ((AGUNet, AGUNET_CONCEPTS), (DAUNet, DAUNET_CONCEPTS)):
        for config in _combinations(network, names):
            with torch.no_grad():
                scores = network(config).eval().outputs(x)
            built += all(bool(part.isfinite().all()) for part in scores)
            given = _named_sizes(network, config)
            for concept in (name for name in names if getattr(config, name)):
                left = _named_sizes(network, replace(config, **{concept: False}))
                changed = {name for name in given if left.get(name) != given[name]} | set(left) - set(given)
                strangers |= {f"{concept}: {name}" for name in changed if not _belongs(concept, name, left)}
    return Measured(
        value=f"{built} of 80 combinations run, {len(strangers)} parameters of others change",
        held=built == 80 and not strangers,
        detail=", ".join(sorted(strangers)[:5]),
    )


# --------------------------------------------------------------------------------------------------- ratio


@claim(
    "meningioma",
    name="cost_of_position_attention",
    grade="ratio",
    statement="Attention between all positions of the bottleneck grows with the square of its voxels",
    where="dual attention",
    criterion="at a bottleneck of 8^3 at most 10 % of the forward time of the network around it (64^3 voxels, 8 to 32 "
    "channels, one thread, medians of one run); at 16^3 it is shown",
)
def cost_of_position_attention() -> Measured:
    """The attention alone beside the whole network, at 64 and 128 voxels per side."""
    model, shares, seconds = DAUNet(DAUNet.SMALL).eval(), {}, {}
    attention = PositionAttention(DAUNet.SMALL.filters[-1]).eval()
    shown = []
    with one_thread(), torch.no_grad():
        for side in (8, 16):
            volume, bottom = torch.randn(1, 1, *[8 * side] * 3), torch.randn(1, attention.channels, *[side] * 3)
            times = race({"network": partial(model, volume), "attention": partial(attention, bottom)}, rounds=5)
            shares[side], seconds[side] = times.ratio("attention", "network"), times.median_s["attention"]
            shown.append(f"{side}^3: {milliseconds(times)}")
    return Measured(
        value=f"{100 * shares[8]:.2f} % at 8^3, {100 * shares[16]:.2f} % at 16^3",
        held=shares[8] <= 0.1,
        detail=f"{'; '.join(shown)}; 8 times the voxels take {seconds[16] / seconds[8]:.0f} times as long",
    )


# --------------------------------------------------------------------------------------------------- scaled


@claim(
    "meningioma",
    name="gated_beside_plain",
    grade="scaled",
    statement="AGUNet with multi-scale input and deep supervision segments best; small tumours are what is missed",
    figure="Dice 81.6 %, recall 93 %; near-perfect detection above 3 ml",
    where="abstract, results",
    criterion=f"generated heads of {SIDE}^3 voxels, {TRAINED} to train and {HELD_OUT} held out, filters 8, 16, 32, 32, "
    f"{STEPS} steps of {BATCH}, {len(SEEDS)} seeds: AGUNet's mean Dice at least 0.80, and at least that of the plain "
    "U-Net - 0.01; masses above the median volume are met at least as often as those below",
)
def gated_beside_plain() -> Measured:
    """A third of the 1,200 steps that were meant, since those take more than an hour on one thread."""
    heads = brains(TRAINED, first_seed=0, size=SIDE)
    held_out = brains(HELD_OUT, first_seed=10_000, size=SIDE)
    large = held_out.shares() > held_out.shares().median()
    configs = {"AGUNet": AGUNet.SMALL, "plain": replace(AGUNet.SMALL, **PLAIN)}  # type: ignore[arg-type]
    train: dict[str, Any] = {"steps": STEPS, "batch": BATCH, "learning_rate": LEARNING_RATE}
    scores: dict[str, list[float]] = {name: [] for name in configs}
    recalls: list[tuple[float, float]] = []
    with one_thread():
        for name, seed in itertools.product(configs, SEEDS):
            model = fit_segmenter(partial(AGUNet, configs[name]), heads, seed=seed, **train)
            found = detection(predicted(model, held_out), held_out)
            scores[name].append(found.mean_dice)
            if name == "AGUNet":
                recalls.append((found.recall(large), found.recall(~large)))
    above, below = (mean(values) for values in zip(*recalls, strict=True))
    ours, plain = mean(scores["AGUNet"]), mean(scores["plain"])
    return Measured(
        value=f"Dice {ours:.3f}, plain {plain:.3f}; recall {above:.3f} above the median volume, {below:.3f} below",
        held=ours >= 0.8 and ours >= plain - 0.01 and above >= below,
        detail="; ".join(f"{name} {', '.join(f'{value:.3f}' for value in values)}" for name, values in scores.items()),
    )


@claim(
    "meningioma",
    name="whole_beside_slabs",
    grade="scaled",
    statement="Leveraging global context from a whole volume provides the best performance",
    where="abstract",
    criterion=f"heads of {SLAB_SIDE}^3 voxels with {DISTRACTORS} spheres each, as bright and large as masses, that "
    "touch the shell nowhere: F1 of the network on whole volumes above that of the same network on slabs of "
    f"{THICKNESS} slices for each of {len(SEEDS)} seeds; {SLAB_STEPS} steps, parts of fewer than 20 voxels not counted",
)
def whole_beside_slabs() -> Measured:
    """Volumes of 32 voxels per side instead of 48, for the time that they take.

    The slabs' outer slices are repeated up to the smallest side that the network takes.
    """
    heads = brains(TRAINED, first_seed=0, size=SLAB_SIDE, distractors=DISTRACTORS)
    held_out = brains(HELD_OUT, first_seed=10_000, size=SLAB_SIDE, distractors=DISTRACTORS)
    build = partial(AGUNet, AGUNet.SMALL)
    train: dict[str, Any] = {"steps": SLAB_STEPS, "batch": BATCH, "learning_rate": LEARNING_RATE}
    rows = []
    with one_thread():
        for seed in SEEDS:
            of_whole = fit_segmenter(build, heads, seed=seed, cut=whole, **train)
            of_slabs = fit_segmenter(build, heads, seed=seed, cut=slabs(of_whole.smallest), **train)
            rows.append(
                (
                    detection(predicted(of_whole, held_out), held_out),
                    detection(predicted_by_slabs(of_slabs, held_out), held_out),
                )
            )
    pairs = ", ".join(f"{ours.f1:.3f} against {theirs.f1:.3f}" for ours, theirs in rows)
    return Measured(
        value=f"F1 {pairs}",
        held=all(ours.f1 > theirs.f1 for ours, theirs in rows),
        detail="false parts "
        + ", ".join(f"{sum(ours.false)} against {sum(theirs.false)}" for ours, theirs in rows)
        + f" in {HELD_OUT} heads",
    )


class Oracle(nn.Module):
    """A network that knows: what is brighter than half of the range is the mass."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of background and mass."""
        scores = 50 * (x[:, :1] - self.threshold)
        return torch.cat((-scores, scores), dim=1)


SPACINGS = ((1.0, 1.5, 2.5), (0.8, 0.8, 3.0), (2.0, 1.0, 1.0))
ANGLES = ((0.2, -0.1, 0.3), (-0.4, 0.3, 0.1), (0.1, 0.5, -0.2))


def _oblique(spacing: tuple[float, ...], angles: tuple[float, ...]) -> Any:
    """Voxels to millimetres: turned about all three axes."""
    from scipy.spatial.transform import Rotation

    made = np.eye(4)
    made[:3, :3] = Rotation.from_euler("xyz", angles).as_matrix() @ np.diag(spacing)
    made[:3, 3] = (3.0, -20.0, 8.0)
    return made


def _mass(spacing: tuple[float, ...]) -> tuple[Any, Any]:
    """A bright ellipsoid of about 14 mm in 90 mm of darkness, and its mask."""
    shape = [round(90 / step) for step in spacing]
    steps = zip(np.indices(shape), shape, spacing, strict=True)
    places = [(index - 0.45 * side) * step for index, side, step in steps]
    mask = sum((place / radius) ** 2 for place, radius in zip(places, (16.0, 12.0, 14.0), strict=True)) <= 1
    return (100 + 400 * mask).astype(np.float32), mask


@claim(
    "meningioma",
    name="pipeline_in_native_space",
    grade="scaled",
    statement="The whole volume is resampled to the network's size, and its segmentation brought back",
    where="preprocessing and inference",
    criterion="NIfTI files with anisotropic voxels and oblique axes, predicted by the task for segmentation with a "
    "network that thresholds: Dice of the saved mask, in the voxels of the file, at least 0.95 for each of 3 files",
)
def pipeline_in_native_space() -> Measured:
    """At 64 voxels per side, with files of about 90 mm per side; needs nibabel."""
    import nibabel

    from regard.tasks.segmentation import Segmentation
    from regard.tasks.volumes.metrics import dice
    from regard.tasks.volumes.settings import SegmentationSettings

    task = Segmentation(SegmentationSettings(view="whole", targets="classes", size=64, normalise="minmax"))
    labels = {"0": "background", "1": "mass"}
    task.restore({"channels": ["T1"], "labels": labels, "regions": [["mass", [1]]], "pictures": False})
    found, same = [], True
    with tempfile.TemporaryDirectory() as folder:
        for number, (spacing, angles) in enumerate(zip(SPACINGS, ANGLES, strict=True)):
            image, mask = _mass(spacing)
            affine = _oblique(spacing, angles)
            path = Path(folder) / f"head_{number}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(image, affine), path)
            written, *_ = task.predict(Oracle().eval(), [path], Path(folder))
            saved: Any = nibabel.load(written)
            same = same and np.allclose(saved.affine, affine, atol=1e-4)
            found.append(dice(np.asarray(saved.dataobj) > 0, mask))
    return Measured(
        value=f"Dice {', '.join(f'{value:.3f}' for value in found)}",
        held=same and min(found) >= 0.95,
        detail=f"voxels of {', '.join(' x '.join(f'{step:g}' for step in spacing) for spacing in SPACINGS)} mm",
    )


# --------------------------------------------------------------------------------------------------- out of reach

out_of_reach(
    "meningioma",
    name="hospital_volumes",
    statement="Five-fold cross-validation over 600 T1-weighted volumes of meningiomas",
    figure="Dice 81.6 %, F1 95.6 %, precision 98 %, recall 93 %",
    where="abstract, results",
    criterion="the same figures, patient by patient, after training on four of five parts",
    reason="the volumes of St. Olavs hospital are not public; gated_beside_plain and whole_beside_slabs stand in with "
    "generated heads, and the authors' AGUNet weights load through load_reference",
)
