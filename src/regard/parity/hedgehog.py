"""Parity with HazyResearch/lolcats: feature maps, the forms of linear attention and the distillation losses."""

from __future__ import annotations

from regard.layers.feature_maps import HedgehogFeatureMap
from regard.mixers.sequence.hedgehog import NORMALISER_EPS
from regard.ops.distillation import attention_transfer_loss, output_transfer_loss
from regard.ops.linear_attention import linear_attention, linear_attention_reference, linear_attention_weights
from regard.ops.softmax_attention import softmax_attention_reference, softmax_weights
from regard.ops.visibility import visible_keys
from regard.parity.adapters import Case, Outcome, adapter


def _load_map(case: Case, prefix: str) -> HedgehogFeatureMap:
    config = case.config
    feature_map = HedgehogFeatureMap(
        config["num_heads"],
        config["head_dim"],
        activation=config["feature_map"],
        feature_dim=config["feature_dim"],
        fullspace=config["fullspace"],
    )
    names = [name for name in case.state if name.startswith(prefix)]
    feature_map.load_reference({name.removeprefix(prefix): case.state[name] for name in names})
    return feature_map


@adapter(
    "src/model/feature_map.py:FeatureMap(FeatureMapMLP)"
    "+src/model/linear_attention/linear_attention.py:quadratic_attention"
)
def quadratic_attention(case: Case) -> Outcome:
    """Maps, both attentions and both losses; the linear form where the file has it."""
    q, k, v = (case.inputs[name] for name in ("q", "k", "v"))
    causal = case.config["causal"]
    q_map, k_map = _load_map(case, "q_map."), _load_map(case, "k_map.")
    phi_q, phi_k = q_map(q), k_map(k)
    visible = visible_keys(q.shape[2], k.shape[2], causal=causal, device=q.device)
    teacher = softmax_weights(q, k, visible=visible)
    student = linear_attention_weights(phi_q, phi_k, causal=causal, normaliser_eps=NORMALISER_EPS)
    y = linear_attention_reference(phi_q, phi_k, v, causal=causal, normaliser_eps=NORMALISER_EPS)
    softmax_y = softmax_attention_reference(q, k, v, visible=visible)
    transfer = attention_transfer_loss(teacher, student)
    outputs = {
        "phi_q": phi_q,
        "phi_k": phi_k,
        "weights": student,
        "y": y,
        "softmax_weights": teacher,
        "softmax_y": softmax_y,
        "distill_xent": transfer.reshape(1),
        "distill_mse": output_transfer_loss(softmax_y, y).reshape(1),
    }
    if "y_linear" in case.expected:
        outputs["y_linear"] = linear_attention(phi_q, phi_k, v, causal=causal, normaliser_eps=NORMALISER_EPS)
    leaves = {"in.q": q, "in.k": k, "in.v": v}
    leaves |= {f"{name}.mlp.layer": of.get_parameter("weight") for name, of in (("q_map", q_map), ("k_map", k_map))}
    return Outcome(outputs=outputs, leaves=leaves, losses={"xent": transfer})
