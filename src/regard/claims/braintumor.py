"""The claims of the tumour network (Behzadpour et al., 2025, https://arxiv.org/abs/2501.11196), measured.

Trained networks are small: the encoder is EfficientNet-B0 with random weights, the decoder and the pyramid have half
their widths, and the rates are 1, 2 and 3, as suits coarsest maps of 3 x 3. They see 120 batches of 8 slices instead of
400 of 16, which takes a sixth of the time.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from dataclasses import replace

import torch
from torch import nn

from regard.claims import Measured, claim, out_of_reach
from regard.claims._mask_distances import hd95_by_definition, random_pairs
from regard.claims._textures import pretrained_encoder
from regard.claims._training import SEEDS, mean
from regard.claims._tumour_slices import (
    BATCH,
    SIDE,
    STEPS,
    Scores,
    held_out_slices,
    patients,
    quartile_dice,
    scores,
    train_slices,
    trained,
)
from regard.measure import one_thread
from regard.meta_device import sizes_only
from regard.models.medical.tumour_resunet import TumourResUNet, TumourResUNetConfig
from regard.tasks.volumes.metrics import dice, hd95

COUNTED = {3: 3_595_388, 4: 3_595_676}
PAIRS, TOLERANCE = 200, 1e-4
ARMS = {
    "full": TumourResUNet.SMALL,
    "without ASPP": replace(TumourResUNet.SMALL, aspp=False),
    "resunet_b0": replace(TumourResUNet.SMALL, attention="none", aspp=False),
}
TRANSFER_SIDE, TRANSFER_STEPS, TRANSFER_PATIENTS = 64, 200, 10
TEXTURE_STEPS, TEXTURE_BATCH, TEXTURE_RATE = 200, 16, 3e-3


def _parameters(*modules: nn.Module | None) -> int:
    return sum(parameter.numel() for module in modules if module is not None for parameter in module.parameters())


def _built(config: TumourResUNetConfig) -> TumourResUNet:
    with sizes_only():
        return TumourResUNet(config)


# --------------------------------------------------------------------------------------------------- exact


@claim(
    "braintumor",
    name="encoder",
    grade="exact",
    statement="The encoder is EfficientNet-B0, so that its pretrained weights can be transferred.",
    where="abstract",
    criterion="parameters and maps equal those of timm's network for 3 and 4 channels; 3,595,388 and 3,595,676",
)
def encoder() -> Measured:
    """Counted, and compared with the same weights."""
    import timm

    counts, held, worst = [], True, 0.0
    for in_channels, expected in COUNTED.items():
        theirs = timm.create_model("efficientnet_b0", features_only=True, in_chans=in_channels).eval()
        ours = TumourResUNet(TumourResUNetConfig(in_channels=in_channels)).eval()
        ours.load_reference(theirs.state_dict())
        images = torch.randn(1, in_channels, 64, 96, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            pairs = zip(ours.encoder(images), theirs(images), strict=True)
            worst = max(worst, *(float((a - b).abs().max() / b.abs().max()) for a, b in pairs))
        counts.append(_parameters(ours.encoder))
        held = held and counts[-1] == _parameters(theirs) == expected
    return Measured(
        value=", ".join(f"{count:,}" for count in counts),
        held=held and worst < TOLERANCE,
        detail=f"largest relative difference of a map {worst:.1e}",
    )


@claim(
    "braintumor",
    name="switches",
    grade="exact",
    statement="Channel attention and ASPP are added to ResUNet with an EfficientNet-B0 encoder.",
    where="abstract",
    criterion="without gates the network lacks exactly their parameters; without ASPP exactly those of ASPP and of the "
    "gate behind it, where ASPP is as wide as the encoder's last map; at its own width of 256 also gains what the "
    "decoder's first unit then reads",
)
def switches() -> Measured:
    """Counted without memory for the parameters."""
    full, plain = _built(TumourResUNetConfig()), _built(TumourResUNetConfig(aspp=False))
    ungated, squeezed = (_built(TumourResUNetConfig(attention=kind)) for kind in ("none", "se"))
    wide = _built(TumourResUNetConfig(aspp_channels=320))
    gates = _parameters(full) - _parameters(ungated)
    pyramid = _parameters(wide) - _parameters(plain)
    read = _parameters(plain.decoder) - _parameters(full.decoder)
    held = (
        gates == _parameters(full.skip_gates, full.aspp_gate)
        and _parameters(squeezed) == _parameters(full)
        and pyramid == _parameters(wide.aspp, wide.aspp_gate)
        and _parameters(full) - _parameters(plain) == _parameters(full.aspp, full.aspp_gate) - read
        # a norm, a 3x3 and a 1x1 kernel for 64 channels more
        and read == 64 * (2 + 9 * 256 + 256)
    )
    b0 = _built(TumourResUNet.VARIANTS["resunet_b0"].config)
    return Measured(
        value=f"gates {gates:,}, ASPP {_parameters(full.aspp):,} at 256 channels",
        held=held,
        detail=f"resunet_b0 has {_parameters(b0):,} parameters, the full network {_parameters(full):,}",
    )


@claim(
    "braintumor",
    name="sizes",
    grade="exact",
    statement="A score for every pixel.",
    where="abstract",
    criterion="the scores are as large as the slices for every height and width among 32, 96 and 224, with and without "
    "gates and ASPP; sides that are not multiples of 32 are refused",
)
def sizes() -> Measured:
    """On the meta device."""
    sides, held = (32, 96, 224), True
    for config in (TumourResUNetConfig(), TumourResUNet.VARIANTS["resunet_b0"].config):
        model = _built(config).eval()
        with torch.no_grad():
            for size in ((y, x) for y in sides for x in sides):
                held = held and model(torch.empty(1, 3, *size, device="meta")).shape == (1, 1, *size)
    refused = 0
    for side in (31, 33, 48, 100):
        try:
            model(torch.empty(1, 3, 64, side, device="meta"))
        except ValueError:
            refused += 1
    return Measured(value=f"{len(sides) ** 2} sizes, {refused} of 4 others refused", held=held and refused == 4)


@claim(
    "braintumor",
    name="metrics_equal_monai",
    grade="exact",
    statement="Dice and HD95 measure the segmentation.",
    where="abstract",
    criterion=f"on {PAIRS} random pairs of masks with uneven spacing, Dice and HD95 within {TOLERANCE:g} of MONAI's "
    "metrics, and of brute force where a mask is empty and MONAI's HD95 has no value",
)
def metrics_equal_monai() -> Measured:
    """Pairs with empty masks among them."""
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.meandice import compute_dice

    worst_dice, worst_distance, without_value = 0.0, 0.0, 0
    for found, true, spacing in random_pairs(PAIRS, seed=0):
        tensors = [torch.from_numpy(mask)[None, None].float() for mask in (found, true)]
        worst_dice = max(worst_dice, abs(dice(found, true) - float(compute_dice(*tensors, ignore_empty=False))))
        if found.any() and true.any():
            with warnings.catch_warnings():
                # MONAI 1.6 warns of an argument that it passes to itself
                warnings.simplefilter("ignore", FutureWarning)
                theirs = compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=spacing)
            expected = float(theirs)
        else:
            without_value += 1
            expected = hd95_by_definition(found, true, spacing, pooled=False)
        worst_distance = max(worst_distance, abs(hd95(found, true, spacing) - expected))
    return Measured(
        value=f"Dice within {worst_dice:.1e}, HD95 within {worst_distance:.1e}",
        held=max(worst_dice, worst_distance) <= TOLERANCE,
        detail=f"{without_value} of {PAIRS} pairs have an empty mask",
    )


@claim(
    "braintumor",
    name="metrics_equal_medpy",
    grade="exact",
    statement="Dice and HD95 measure the segmentation.",
    where="abstract",
    criterion=f"on {PAIRS} random pairs of masks with uneven spacing, HD95 of both kinds within {TOLERANCE:g} of brute "
    "force over all pairs of surface voxels, and the pooled kind of medpy's where it is installed",
)
def metrics_equal_medpy() -> Measured:
    """The pooled kind, medpy's, takes the percentile of both directions' distances together."""
    theirs, source = None, "brute force; medpy is not installed"
    if importlib.util.find_spec("medpy") is not None:
        theirs, source = importlib.import_module("medpy.metric.binary").hd95, "brute force and medpy"
    worst, apart = 0.0, 0.0
    for found, true, spacing in random_pairs(PAIRS, seed=1):
        ours = {pooled: hd95(found, true, spacing, pooled=pooled) for pooled in (False, True)}
        for pooled, value in ours.items():
            worst = max(worst, abs(value - hd95_by_definition(found, true, spacing, pooled=pooled)))
        apart = max(apart, abs(ours[True] - ours[False]))
        if theirs is not None and found.any() and true.any():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                worst = max(worst, abs(ours[True] - theirs(found, true, voxelspacing=spacing)))
    return Measured(
        value=f"within {worst:.1e}",
        held=worst <= TOLERANCE,
        detail=f"against {source}; the two kinds differ by up to {apart:.1f} in the same unit",
    )


# --------------------------------------------------------------------------------------------------- scaled


@functools.cache
def _run(arm: str, seed: int) -> Scores:
    with one_thread():
        return scores(trained(ARMS[arm], train_slices(), seed=seed), held_out_slices())


def _runs(arm: str) -> list[Scores]:
    return [_run(arm, seed) for seed in SEEDS]


_SETTING = (
    f"generated slices of {SIDE} x {SIDE}, 400 to train and 100 of other patients to test, {STEPS} steps of {BATCH}"
)


@claim(
    "braintumor",
    name="ablation",
    grade="scaled",
    statement="The network consistently outperforms its variant with the EfficientNet encoder alone.",
    where="abstract",
    criterion="mean Dice of the full network >= resunet_b0 + 0.005, HD95 lower, and mean Dice >= 0.75, over slices and "
    f"{len(SEEDS)} seeds; {_SETTING}",
)
def ablation() -> Measured:
    """Without augmentation; slices on which nothing is and nothing was found count 1 and 0."""
    runs = {arm: _runs(arm) for arm in ("full", "resunet_b0")}
    found = {arm: mean([run.mean_dice for run in each]) for arm, each in runs.items()}
    apart = {arm: mean([run.mean_hd95 for run in each]) for arm, each in runs.items()}
    of_patients = {arm: mean([mean(run.dice_of_patients) for run in each]) for arm, each in runs.items()}
    gain = found["full"] - found["resunet_b0"]
    return Measured(
        value=f"Dice {found['full']:.3f} against {found['resunet_b0']:.3f}, "
        f"HD95 {apart['full']:.2f} against {apart['resunet_b0']:.2f} pixels",
        held=gain >= 0.005 and apart["full"] < apart["resunet_b0"] and found["full"] >= 0.75,
        detail=f"gain of Dice {gain:+.4f}; by seed "
        + ", ".join(f"{a.mean_dice:.3f}/{b.mean_dice:.3f}" for a, b in zip(*runs.values(), strict=True))
        + f"; Dice over a patient's slices {of_patients['full']:.3f} against {of_patients['resunet_b0']:.3f}",
    )


@claim(
    "braintumor",
    name="scale_robustness",
    grade="scaled",
    statement="ASPP enables multiscale contextual learning, crucial for tumours of varying sizes.",
    where="abstract",
    criterion="mean Dice on the quarter of the slices with the largest lesions: with ASPP >= without, gates in both, "
    f"{len(SEEDS)} seeds; {_SETTING}",
)
def scale_robustness() -> Measured:
    """Slices without lesions are left out; the smallest quarter is shown beside the largest."""
    small, large = quartile_dice(_runs("full"))
    small_without, large_without = quartile_dice(_runs("without ASPP"))
    return Measured(
        value=f"largest quarter {large:.3f} against {large_without:.3f}",
        held=large >= large_without,
        detail=f"smallest quarter {small:.3f} against {small_without:.3f}",
    )


@functools.cache
def _transfer(seed: int) -> tuple[float, float, float]:
    """Mean Dice from scratch and from the pretrained encoder, and the pretrained one's percent on textures."""
    data = patients(first=0, count=TRANSFER_PATIENTS, side=TRANSFER_SIDE)
    test = held_out_slices(side=TRANSFER_SIDE)
    with one_thread():
        start, accuracy = pretrained_encoder(
            ARMS["full"].encoder,
            seed=seed,
            steps=TEXTURE_STEPS,
            batch=TEXTURE_BATCH,
            side=TRANSFER_SIDE,
            learning_rate=TEXTURE_RATE,
        )
        found = [
            scores(trained(ARMS["full"], data, seed=seed, steps=TRANSFER_STEPS, encoder=weights), test).mean_dice
            for weights in (None, start)
        ]
    return found[0], found[1], accuracy


@claim(
    "braintumor",
    name="transfer",
    grade="scaled",
    statement="The encoder leverages pretrained features.",
    where="abstract",
    criterion=f"mean Dice after {TRANSFER_STEPS} steps of {BATCH} on 40 labelled slices of {TRANSFER_SIDE} x "
    f"{TRANSFER_SIDE} is higher from an encoder that has learned to tell ten textures than from scratch, on "
    f"{len(SEEDS)} of {len(SEEDS)} seeds",
)
def transfer() -> Measured:
    """An encoder is pretrained for every seed, on 200 batches of 16 textures."""
    found = [_transfer(seed) for seed in SEEDS]
    return Measured(
        value=", ".join(f"{after:.3f} against {scratch:.3f}" for scratch, after, _ in found),
        held=all(after > scratch for scratch, after, _ in found),
        detail=f"the encoders tell {', '.join(f'{accuracy:.0f}' for _, _, accuracy in found)} % of new textures right",
    )


out_of_reach(
    "braintumor",
    name="brats",
    statement="Dice and HD95 of whole tumour and tumour core on BraTS 2020.",
    figure="Dice 0.903 and 0.851, HD95 9.43 and 3.54 mm",
    where="abstract",
    criterion="Dice over volumes of BraTS 2020 at least 0.903 and 0.851, and HD95 at most 9.43 and 3.54 mm",
    reason="BraTS needs a registration and its training GPU hours; ablation stands in on generated slices, and the "
    "metrics that would judge it are held against MONAI's",
)
