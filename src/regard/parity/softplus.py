"""Parity with a third party's LSSA and LSSAR, which add an epsilon to the sums that they divide by."""

from __future__ import annotations

from regard.ops.softplus_attention import softplus_attention_reference, softplus_weights
from regard.ops.visibility import visible_keys
from regard.parity.adapters import Case, Outcome, adapter


@adapter("models/lssa.py:lssa_attention")
@adapter("models/lssar.py:lssar_attention")
def softplus(case: Case) -> Outcome:
    """The causal operator and its weights; an exponent of None is LSSA."""
    q, k, v = (case.inputs[name] for name in ("q", "k", "v"))
    visible = visible_keys(q.shape[2], k.shape[2], causal=True, device=q.device)
    power, eps = case.config["p"], case.config["eps"]
    return Outcome(
        outputs={
            "y": softplus_attention_reference(q, k, v, visible=visible, power=power, eps=eps),
            "weights": softplus_weights(q, k, visible=visible, power=power, eps=eps),
        },
        leaves={"in.q": q, "in.k": k, "in.v": v},
    )
