"""Parity with `torch.nn.MultiheadAttention` evaluated on every prefix; the authors published no code."""

from __future__ import annotations

from regard.mixers.sequence.aaren import AarenAttention
from regard.parity.adapters import Case, Leaf, Outcome, Stacked, adapter


@adapter("torch.nn.MultiheadAttention evaluated on every prefix with a learned query token")
def attention_on_every_prefix(case: Case) -> Outcome:
    """The whole layer."""
    mixer = AarenAttention(case.config["d_model"], num_heads=case.config["num_heads"])
    mixer.load_reference(case.state)
    mixer.train(case.mode == "train")
    x = case.inputs["x"]
    inputs = (mixer.q_proj, mixer.k_proj, mixer.v_proj)
    leaves: dict[str, Leaf] = {
        "in.x": x,
        "query": mixer.query,
        "attn.in_proj_weight": Stacked([projection.weight for projection in inputs]),
        "attn.in_proj_bias": Stacked([projection.bias for projection in inputs]),
        "attn.out_proj.weight": mixer.o_proj.weight,
        "attn.out_proj.bias": mixer.o_proj.bias,
    }
    return Outcome(outputs={"y": mixer(x)}, leaves=leaves)
