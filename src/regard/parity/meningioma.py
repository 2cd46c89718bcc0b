"""Parity with dbouget/mri_brain_tumor_segmentation: both networks, in evaluation, with gradients of the volume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from regard.models.medical.agunet import AGUNet, AGUNetConfig
from regard.models.medical.daunet import DAUNet, DAUNetConfig
from regard.ops.soft_dice import soft_dice
from regard.ops.tied_pooling import TENSORFLOW
from regard.parity.adapters import Case, Outcome, adapter


def _shared(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that both networks have."""
    return {
        "in_channels": config["input_shape"][-1],
        "num_classes": config["nb_classes"],
        "filters": tuple(config["convolutions"]),
        "multi_scale_input": config["input_pyramid"],
        "pooling_ties": TENSORFLOW,
        "deep_supervision": config["deep_supervision"],
    }


def _run(case: Case, model: AGUNet | DAUNet) -> Outcome:
    """Probabilities of all levels, channels last as there, and the overlap of the finest with the given classes."""
    x = case.inputs["volume"]
    scores = model.eval().outputs(x.movedim(-1, 1))
    found = {f"prob{level}": part.softmax(dim=1).movedim(1, -1) for level, part in enumerate(scores)}
    overlap = soft_dice(scores[0].softmax(dim=1), case.inputs["onehot"].movedim(-1, 1))
    return Outcome(outputs={**found, "dice_per_class": overlap}, leaves={"in.volume": x})


@adapter("src/Models/UNet/AttentionGatedUNet.py:AttentionGatedUnet")
def agunet(case: Case) -> Outcome:
    """With attention gates."""
    model = AGUNet(AGUNetConfig(**_shared(case.config)))
    model.load_reference(case.state)
    return _run(case, model)


@adapter("src/Models/UNet/DualAttentionUNet.py:DualAttentionUnet")
def daunet(case: Case) -> Outcome:
    """With attention at the bottleneck.

    Keras gives the three maps of the position attention one name, so that a file holds the last of them, the values'.
    Without queries and keys every position attends to all alike, which moves the stored outputs by 3e-5 at most, within
    the tolerance: the case does not test what is attended to. That there are queries and keys with which the outputs
    agree to 2e-6, and none where the softmax runs over another axis, is tested with the network.
    """
    config = case.config
    model = DAUNet(DAUNetConfig(**_shared(config), guided=config["attention_guiding"]))
    state = dict(case.state)
    if "pam.pam.kernel" in state:
        channels = config["convolutions"][-1]
        state["pam.d.kernel"] = state.pop("pam.pam.kernel")
        for name in ("pam.b.kernel", "pam.c.kernel"):
            state[name] = torch.zeros(1, 1, 1, channels, channels // 8)
    model.load_reference(state)
    return _run(case, model)
