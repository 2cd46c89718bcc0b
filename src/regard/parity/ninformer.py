"""Parity with Abdullah-88/NiNformer: the gating unit, the blocks, and the classifier."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from regard.mixers.sequence.ninformer import MixerGatingUnit, own_name
from regard.models.vision import ninformer
from regard.models.vision.ninformer import NiNformer, NiNformerClassifier, NiNformerConfig
from regard.parity.adapters import Case, Outcome, adapter


def _run(
    case: Case, module: MixerGatingUnit | NiNformer | NiNformerClassifier, rename: Callable[[str], str]
) -> Outcome:
    module.load_reference(case.state)
    assert isinstance(module, nn.Module)
    module.train(case.mode == "train")
    x = case.inputs["x"]
    parameters = dict(module.named_parameters())
    leaves = {name: parameters[rename(name)] for name in case.state}
    return Outcome(outputs={"y": module(x)}, leaves={"in.x": x, **leaves})


@adapter("ninformer.py:MixerGatingUnit")
def mixer_gating_unit(case: Case) -> Outcome:
    """The gating unit alone."""
    config = case.config
    unit = MixerGatingUnit(
        config["dim"],
        seq_len=config["seq_len"],
        token_hidden=config["token_dim"],
        channel_hidden=config["channel_dim"],
        dropout=config["dropout"],
    )
    return _run(case, unit, own_name)


@adapter("ninformer.py:NiNformer")
def backbone(case: Case) -> Outcome:
    """The blocks."""
    config = case.config
    blocks = NiNformer(
        config["seq_len"],
        config["d_model"],
        num_layers=config["num_layers"],
        hidden=config["d_ffn"],
        dropout=config["dropout"],
    )
    return _run(case, blocks, ninformer.own_name)


@adapter("train.py:NiNformerImageClassification")
def classifier(case: Case) -> Outcome:
    """Patches, blocks, mean and classifier."""
    config = case.config
    sizes = NiNformerConfig(
        image_size=config["image_size"],
        in_channels=config["in_channels"],
        num_classes=config["num_classes"],
        patch_size=config["patch_size"],
        dim=config["d_model"],
        num_layers=config["num_layers"],
        hidden=config["d_ffn"],
        dropout=config["dropout"],
    )
    return _run(case, NiNformerClassifier(sizes), ninformer.own_classifier_name)
