"""Parity of MEDUSA's parts with independent evaluations of their equations: there is no public code."""

from __future__ import annotations

from torch import Tensor, nn

from regard.layers.attention_body import BODY_NAMES, AttentionBody
from regard.layers.reference_names import Rules, rename
from regard.layers.scale_heads import OWN_NAMES, ScaleHeads
from regard.parity.adapters import Case, Outcome, adapter, renamed_leaves


def _statistics(case: Case, module: nn.Module, rules: Rules) -> dict[str, Tensor]:
    """What training changed, under the names of the case."""
    buffers = dict(module.named_buffers())
    return {name: buffers[rename(name, rules)] for name in case.expected if ".running_" in name}


@adapter("independent:attention_body")
def attention_body(case: Case) -> Outcome:
    """The global map of an image."""
    config = case.config
    body = AttentionBody(
        config["in_channels"],
        width=config["width"],
        levels=config["levels"],
        out_channels=config["out_channels"],
        downscale=config["downscale"],
    )
    body.load_reference(case.state)
    body.train(case.mode == "train")
    image = case.inputs["image"]
    outputs = {"global_map": body(image), **_statistics(case, body, BODY_NAMES)}
    return Outcome(outputs=outputs, leaves={"in.image": image, **renamed_leaves(case, body, BODY_NAMES)})


@adapter("independent:scale_heads")
def scale_heads(case: Case) -> Outcome:
    """Attention maps and modulated features of every scale; the loss weighs the latter."""
    config, inputs = case.config, case.inputs
    heads = ScaleHeads(
        config["channels"],
        global_channels=config["global_channels"],
        head_width=config["head_width"],
        per_channel=config["per_channel"],
        residual=config["residual"],
    )
    heads.load_reference(case.state)
    heads.train(case.mode == "train")
    scales = range(len(config["channels"]))
    found = heads(inputs["global_map"], [inputs[f"feature_{scale}"] for scale in scales])
    outputs = {f"attention_{scale}": each.attention for scale, each in enumerate(found)}
    outputs |= {f"modulated_{scale}": each.modulated for scale, each in enumerate(found)}
    weighted = [(outputs[f"modulated_{scale}"] * inputs[f"loss_weight_{scale}"]).sum() for scale in scales]
    own = {f"in.{name}": inputs[name] for name in ("global_map", *(f"feature_{scale}" for scale in scales))}
    return Outcome(
        outputs={**outputs, **_statistics(case, heads, OWN_NAMES)},
        leaves={**own, **renamed_leaves(case, heads, OWN_NAMES)},
        losses={"": sum(weighted[1:], start=weighted[0])},
    )
