"""Parity of the tumour network's parts with independent evaluations in float64: no code of the authors is public."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from regard.layers.aspp import ASPP, aspp_names
from regard.layers.resunet_decoder import UNIT_NAMES, ResUNetDecoderBlock
from regard.mixers.channel.cbam_channel import CBAMChannel
from regard.parity.adapters import Case, Outcome, Reshaped, adapter, renamed_leaves
from regard.tasks.volumes.losses import region_loss
from regard.tasks.volumes.metrics import dice, hd95
from regard.tasks.volumes.regions import BRATS, region_masks


@adapter("independent:channel_attention")
def channel_attention(case: Case) -> Outcome:
    """The gate and the gated map."""
    layer = CBAMChannel(case.config["channels"], reduction=case.config["reduction"])
    layer.load_reference(case.state)
    layer.train(case.mode == "train")
    x = case.inputs["x"]
    leaves = {
        name: Reshaped(weight, (*weight.shape, 1, 1))
        for name, weight in (("mlp.0.weight", layer.down_proj.weight), ("mlp.2.weight", layer.up_proj.weight))
    }
    return Outcome(outputs={"out": layer(x), "weight": layer.gate(x).flatten(1)}, leaves={"in.x": x, **leaves})


@adapter("independent:aspp")
def aspp(case: Case) -> Outcome:
    """All branches, in torchvision's layout."""
    rates = case.config["atrous_rates"]
    layer = ASPP(case.config["in_channels"], rates, out_channels=case.config["out_channels"])
    layer.load_reference(case.state)
    layer.train(case.mode == "train")
    x = case.inputs["x"]
    leaves = renamed_leaves(case, layer, aspp_names(len(rates)))
    return Outcome(outputs={"out": layer(x)}, leaves={"in.x": x, **leaves})


@adapter("independent:decoder_block")
def decoder_block(case: Case) -> Outcome:
    """A step up, and the statistics that it leaves behind."""
    config = case.config
    layer = ResUNetDecoderBlock(config["in_channels"], config["skip_channels"], config["out_channels"])
    layer.load_reference(case.state)
    layer.train(case.mode == "train")
    inputs = {name: case.inputs[name] for name in ("x", "skip")}
    outputs = {"out": layer(inputs["x"], inputs["skip"])}
    buffers = dict(layer.unit.named_buffers())
    outputs |= {name: buffers[name] for name in case.expected if name in buffers}
    leaves = renamed_leaves(case, layer, UNIT_NAMES)
    return Outcome(outputs=outputs, leaves={**{f"in.{name}": x for name, x in inputs.items()}, **leaves})


@adapter("independent:segmentation_loss")
def segmentation_loss(case: Case) -> Outcome:
    """Dice, cross-entropy and their sum."""
    logits, config = case.inputs["logits"], case.config
    loss = region_loss(
        logits,
        case.inputs["target"],
        dice_weight=config["dice_weight"],
        bce_weight=config["bce_weight"],
        smooth=config["smooth"],
    )
    outputs = {"dice_loss": loss.dice, "bce_loss": loss.bce, "loss": loss.total}
    return Outcome(outputs=outputs, leaves={"in.logits": logits})


@adapter("independent:segmentation_metrics")
def segmentation_metrics(case: Case) -> Outcome:
    """Overlap and surface distances of every volume and region."""
    spacing = case.inputs["spacing"].tolist()
    regions = [region for name in case.config["regions"] for region in BRATS if region.name == name]
    pairs = [
        list(zip(region_masks(found.numpy(), regions), region_masks(true.numpy(), regions), strict=True))
        for found, true in zip(case.inputs["prediction"], case.inputs["target"], strict=True)
    ]
    of_all = {
        "dice": [[dice(*pair) for pair in volume] for volume in pairs],
        "hd95": [[hd95(*pair, spacing) for pair in volume] for volume in pairs],
        "hd95_pooled": [[hd95(*pair, spacing, pooled=True) for pair in volume] for volume in pairs],
    }
    return Outcome(outputs={name: _as_tensor(values) for name, values in of_all.items()})


def _as_tensor(values: list[list[float]]) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float32))
