"""Parity with OpenNLPLab/lightning-attention: the operator and the TNL layer."""

from __future__ import annotations

from regard.mixers.sequence.lightning import LightningAttention
from regard.ops.linear_attention import linear_attention_with_state
from regard.parity.adapters import Case, Outcome, adapter


@adapter("lightning_attn/ops/torch/linear_attention.py:linear_attn")
def linear_attn(case: Case) -> Outcome:
    """The operator with its final state; the reference's slopes are a tensor `(h, 1, 1)`, ours are numbers."""
    q, k, v = (case.inputs[name] for name in ("q", "k", "v"))
    slopes = case.inputs["slope"].detach().flatten().tolist() if case.config["decay"] else None
    o, state = linear_attention_with_state(q, k, v, slopes=slopes)
    return Outcome(outputs={"o": o, "kv_final": state}, leaves={"in.q": q, "in.k": k, "in.v": v})


@adapter("examples/module/tnl_attn.py:TnlAttention")
def tnl_attention(case: Case) -> Outcome:
    """The whole layer."""
    config = case.config
    layer = LightningAttention(
        config["embed_dim"],
        num_heads=config["num_heads"],
        bias=config["bias"],
        layer_idx=config["layer_idx"],
        num_layers=config["num_layers"],
    )
    layer.load_reference(case.state)
    layer.train(case.mode == "train")
    x = case.inputs["x"]
    return Outcome(outputs={"y": layer(x)}, leaves={"in.x": x, **dict(layer.named_parameters())})
