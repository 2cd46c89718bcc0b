"""Names in the state of the compared code's `PerlinAttention` (gmlwns2000/sea-attention@5609413b), and ours."""

from __future__ import annotations

_REFERENCE_PREFIXES = {
    "attention_predictor_enc.0.": "estimate.encoder.",
    "attention_predictor_enc.1.": "estimate.encoder_norm.",
    "attention_predictor_dec_row.0.": "estimate.decoder.expand.",
    "attention_predictor_cnn.0.module.": "estimate.decoder.first_norm.",
    "attention_predictor_cnn.1.module.net.0.module.": "estimate.decoder.first_conv.",
    "attention_predictor_cnn.1.module.net.2.module.": "estimate.decoder.second_conv.",
    "attention_predictor_cnn.1.module.net.5.module.": "estimate.decoder.last_conv.",
    "attention_predictor_cnn.2.module.": "estimate.decoder.last_norm.",
    "attention_predictor_cnn.0.net.0.": "estimate.decoder.first_conv.",
    "attention_predictor_cnn.0.net.2.": "estimate.decoder.second_conv.",
    "attention_predictor_cnn.0.net.5.": "estimate.decoder.last_conv.",
    "attention_predictor_dec_scaler.0.": "gates.",
}
_REFERENCE_NAMES = {
    "v_eye_learned_causal": "estimate.positions",
    "performer.projection_matrix": "estimate.features.directions",
    "performer_proj_updater.calls_since_last_redraw": "estimate.features.calls",
}
_WITHOUT_EFFECT = (
    "attention_predictor_enc_per_layer.",
    "attention_predictor_enc_head_embd",
    "performer_proj_updater.instance.",
    "norm.",
    "norm_performer.",
    "norm_partial.",
    "norm_random.",
)


def without_effect(name: str, *, causal: bool) -> bool:
    """Whether the code keeps this tensor in the state without using it in this form."""
    if name == "v_eye_learned" or (name == "v_eye_learned_causal" and not causal):
        return True
    return name.startswith(_WITHOUT_EFFECT) or name.endswith(".weight_mask")


def reference_name(name: str) -> str:
    """The name of a tensor in `EstimatedAttention`."""
    for theirs, ours in _REFERENCE_PREFIXES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return _REFERENCE_NAMES.get(name, f"reference {name}")


_MIXER_PREFIXES = {
    "out_proj.": "o_proj.",
    "perlin_self_attention.query_lora.": "q_lora.",
    "perlin_self_attention.key_lora.": "k_lora.",
    "perlin_self_attention.value_lora.": "v_lora.",
}


def mixer_reference_name(name: str) -> str:
    """The name of a tensor beside `EstimatedAttention` in the mixer that holds it."""
    for theirs, ours in _MIXER_PREFIXES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name if name.startswith(("q_proj.", "k_proj.", "v_proj.")) else f"reference {name}"
