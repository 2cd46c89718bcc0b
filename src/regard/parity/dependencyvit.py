"""Parity with an independent implementation of DependencyViT; the authors published no code.

The case was computed with the formula of Fredo Guan's `timm/models/dependencyvit.py` (2023), typed anew.
"""

from __future__ import annotations

from regard.layers.reversed_attention import REVERSED_ATTENTION_NAMES, ReversedAttention
from regard.parity.adapters import Case, Outcome, adapter, renamed_leaves


@adapter("ReversedAttention")
def reversed_attention(case: Case) -> Outcome:
    """The layer; m has two axes more in the case."""
    config = case.config
    layer = ReversedAttention(
        config["dim"],
        num_heads=config["num_heads"],
        qkv_bias=config["qkv_bias"],
        temperature=config["temperature"],
    ).eval()
    layer.load_reference(case.state)
    x, m = case.inputs["x"], case.inputs["m"]
    sent = layer(x, m.flatten(1), score="received")
    outputs = {
        "y": sent.y,
        "m_out": sent.m[:, None, None],
        "dependency_mask": layer.dependency_mask(x, m.flatten(1)),
        "prune_score": sent.score,
    }
    leaves = renamed_leaves(case, layer, REVERSED_ATTENTION_NAMES)
    return Outcome(outputs=outputs, leaves={"in.x": x, "in.m": m, **leaves})
