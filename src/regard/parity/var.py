"""Parity with seilk/VisAttnSink: which tokens are sinks, which rows are chosen, and the attention afterwards."""

from __future__ import annotations

import torch

from regard.ops.visual_sinks import SinkRule, after_image, redistribute, sink_tokens
from regard.parity.adapters import Case, Outcome, adapter


@adapter("src/logic/logic.py:DimProspector, HeadFork, VARProcessor")
def redistribution(case: Case) -> Outcome:
    """In a prompt and in a decoding step, for one row of a batch."""
    config = case.config
    hidden_states, attention = case.inputs["hidden_states"], case.inputs["attn"]
    sinks = sink_tokens(hidden_states, config["dim_sink"], tau=config["tau"])
    image = torch.zeros_like(sinks)
    image[:, config["image_begin"] : config["image_begin"] + config["vis_len"]] = True
    rule = SinkRule(p=config["p"], rho=config["rho"], summ=config["summ"])
    changed = redistribute(attention, image, sinks, rule, rows=after_image(image, queries=attention.shape[2]))
    return Outcome(
        outputs={
            "sink_indices": sinks[0].nonzero()[:, 0],
            "selected": changed.selected,
            "attn_out": changed.attention,
        }
    )
