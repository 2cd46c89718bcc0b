"""The claims of MEDUSA (Aboutalebi et al., Frontiers in Medicine 2022, https://arxiv.org/abs/2110.06063), measured."""

from __future__ import annotations

from dataclasses import replace

import torch

from regard.claims import Measured, claim, out_of_reach
from regard.claims._chest_images import NETWORKS, SETTING, accuracy_of, map_quality, parameters, trained
from regard.claims._training import SEEDS, mean
from regard.measure import contraction_macs
from regard.meta_device import sizes_only
from regard.models.medical.medusa import PAPER_SIZE, Medusa, MedusaConfig
from regard.models.medical.medusa_cost import Cost, cost_by_part

RELEASED = "the list of released models, COVIDNet-CXR-3"
SINGLE_BODY = "single body, multi-scale heads"

# --------------------------------------------------------------------------------------------------- exact


@claim(
    "medusa",
    name="size",
    grade="exact",
    statement="The network has 29.2 M parameters and takes 29.1 G multiply-accumulates at 480 x 480",
    figure="29.2 M, 29.1 G",
    where=RELEASED,
    criterion="ResNet-50 with a body of width 28 and four heads: parameters within 3 % and contractions within 10 %",
)
def size() -> Measured:
    """The body's width is chosen to meet the figures, since the paper's is not public."""
    variant = Medusa.VARIANTS["medusa_resnet50"]
    reported, parts = variant.reported, cost_by_part(variant.config, image_size=PAPER_SIZE)
    assert reported.params is not None
    assert reported.macs is not None
    params, macs = sum(part.params for part in parts.values()), sum(part.macs for part in parts.values())
    apart = params / reported.params - 1, macs / reported.macs - 1
    return Measured(
        value=f"{params / 1e6:.2f} M ({100 * apart[0]:+.1f} %), {macs / 1e9:.2f} G ({100 * apart[1]:+.1f} %)",
        held=abs(apart[0]) <= 0.03 and abs(apart[1]) <= 0.10,
        detail=", ".join(f"{name} {part.params:,} and {part.macs / 1e9:.2f} G" for name, part in parts.items()),
    )


@claim(
    "medusa",
    name="one_body_for_all_heads",
    grade="exact",
    statement="One attention body of high capacity serves heads at all scales, instead of many isolated modules",
    where=SINGLE_BODY,
    criterion="ResNet-50 at 480 x 480 with heads behind 1, 2, 3 and 4 stages: the body's contractions and parameters "
    "are the same in all, and with a body for each head they are as many times as large",
)
def one_body_for_all_heads() -> Measured:
    """Counted without memory for the weights."""
    config, shown, held = Medusa.VARIANTS["medusa_resnet50"].config, [], True
    once = _of_bodies(config)
    for heads in range(1, 5):
        places = tuple(range(4 - heads, 4))
        shared, own = (
            _of_bodies(replace(config, heads_at=places, shared_body=is_shared)) for is_shared in (True, False)
        )
        held = held and shared == once and own == Cost(params=heads * once.params, macs=heads * once.macs)
        shown.append(f"{heads} heads: {shared.macs / 1e9:.2f} G shared, {own.macs / 1e9:.2f} G each its own")
    return Measured(value="; ".join(shown), held=held)


def _of_bodies(config: MedusaConfig) -> Cost:
    with sizes_only():
        model = Medusa(config).eval()
    images = torch.empty(1, config.in_channels, PAPER_SIZE, PAPER_SIZE, device="meta")
    params = sum(parameter.numel() for parameter in model.bodies.parameters())
    return Cost(params=params, macs=contraction_macs(lambda: model.global_maps(images)))


# --------------------------------------------------------------------------------------------------- scaled


@claim(
    "medusa",
    name="subtle_lesions",
    grade="scaled",
    statement="Heads on one global body tell subtle findings apart better than no attention and than light, isolated "
    "modules",
    where="results on COVIDx; " + SINGLE_BODY,
    criterion="mean accuracy of MEDUSA at least 2 points above plain and no lower than CBAM, and no more than 0.5 "
    f"points below a body for each head, all within 5 % of MEDUSA's parameters; {SETTING}",
)
def subtle_lesions() -> Measured:
    """A faint spot inside the lungs is a finding, one outside is none; end to end, from labels alone."""
    found = {name: mean([accuracy_of(name, seed) for seed in SEEDS]) for name in NETWORKS}
    sizes = {name: parameters(config) for name, config in NETWORKS.items()}
    ours = found["MEDUSA"]
    over = {name: ours - other for name, other in found.items() if name != "MEDUSA"}
    equal = all(abs(count / sizes["MEDUSA"] - 1) <= 0.05 for count in sizes.values())
    return Measured(
        value=f"{ours:.2f} %: {over['plain']:+.2f} points over plain, {over['CBAM']:+.2f} over CBAM, "
        f"{over['separate bodies']:+.2f} over separate bodies",
        held=equal and over["plain"] >= 2 and over["CBAM"] >= 0 and over["separate bodies"] >= -0.5,
        detail=", ".join(f"{name} {value:.2f} % with {sizes[name]:,}" for name, value in found.items()),
    )


@claim(
    "medusa",
    name="global_and_local_context",
    grade="scaled",
    statement="The shared body gives explicit global context, and attention still differs between levels",
    where=SINGLE_BODY,
    criterion="two phases (the body alone on masks of the lungs for 100 steps, then the whole network): on the test "
    "images, sigmoid(A^G) inside the lungs at least 1.5 times that outside, and the mean correlation of two scales' "
    f"attention below 0.95, means over the seeds; {SETTING}",
)
def global_and_local_context() -> Measured:
    """What a body that was trained end to end looks at is reported beside it."""
    both = [map_quality(trained("MEDUSA", seed, two_phases=True)) for seed in SEEDS]
    alone = [map_quality(trained("MEDUSA", seed)) for seed in SEEDS]
    lungs, lesions, correlation = (mean([each[place] for each in both]) for place in range(3))
    other = [mean([each[place] for each in alone]) for place in range(3)]
    return Measured(
        value=f"{lungs:.2f} times inside the lungs, correlation {correlation:.2f}",
        held=lungs >= 1.5 and correlation < 0.95,
        detail=f"inside lesions {lesions:.2f} times; without the first phase {other[0]:.2f} and {other[1]:.2f} times, "
        f"correlation {other[2]:.2f}",
    )


# --------------------------------------------------------------------------------------------------- out of reach

out_of_reach(
    "medusa",
    name="small_medical_images",
    statement="MEDUSA gains on medical images beyond radiographs of one data set",
    where="results",
    criterion="area under the ROC curve on PneumoniaMNIST (28 x 28) no more than 0.005 below that of a plain network",
    reason="no file of such images is at hand without a download; subtle_lesions stands in with generated radiographs",
)
out_of_reach(
    "medusa",
    name="covidx",
    statement="MEDUSA is the most accurate network on COVIDx",
    figure="accuracy 98.3 %, COVID-19 sensitivity 97.5 %; COVIDNet-CXR-2: 96.3 % and 95.5 %",
    where=RELEASED,
    criterion="accuracy and sensitivity on COVIDx's test list at 480 x 480, trained for 30 epochs or more",
    reason="the images come from sources with licences of their own and training takes accelerators for days; lists in "
    "COVIDx's format are read by the task, and subtle_lesions stands in",
)
out_of_reach(
    "medusa",
    name="rsna",
    statement="MEDUSA is the best of the compared networks on RSNA RICORD and RSNA Pneumonia",
    where="results",
    criterion="accuracy, sensitivity and predictive value on both data sets above those of the compared networks",
    reason="both need an agreement for their use; the task reads the Pneumonia Challenge's labels and DICOM files",
)
