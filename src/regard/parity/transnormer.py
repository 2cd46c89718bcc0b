"""Parity with TransNormerLLM's modelling file, as kept in weigao266/TNL-MoE: the attention layer and the network."""

from __future__ import annotations

import torch

from regard.layers.linear_state import LinearState
from regard.mixers.sequence.transnormer import NormLinearAttention
from regard.models.language.transnormer import TransNormerConfig, TransNormerLM
from regard.parity.adapters import Case, Leaf, Outcome, Stacked, adapter


def _layer_leaves(mixer: NormLinearAttention) -> dict[str, Leaf]:
    own = dict(mixer.named_parameters())
    leaves: dict[str, Leaf] = {
        "qkvu_proj.weight": Stacked([own["qkv.weight"], own["u_proj.weight"]]),
        "out_proj.weight": own["o_proj.weight"],
    }
    return leaves | ({"lrpe.theta": own["theta"]} if "theta" in own else {})


@adapter("modeling_transnormer.py:NormLinearAttention")
def norm_linear_attention(case: Case) -> Outcome:
    """The layer: in training in parallel, otherwise from an empty state, which is handed back."""
    config = case.config
    layer = NormLinearAttention(
        config["embed_dim"],
        num_heads=config["num_heads"],
        layer_idx=config["layer_idx"],
        num_layers=config["num_layers"],
        lrpe=config["linear_use_lrpe"],
        activation=config["linear_act_fun"],
        bias=config["bias"],
    )
    layer.load_reference(case.state)
    layer.train(case.mode == "train")
    x = case.inputs["x"]
    leaves = {"in.x": x, **_layer_leaves(layer)}
    if case.mode == "train":
        return Outcome(outputs={"y": layer(x)}, leaves=leaves)
    y, state = layer.step(x, layer.init_state(x.shape[0]))
    return Outcome(outputs={"y": y, "kv": state.kv}, leaves=leaves)


@adapter("modeling_transnormer.py:TransnormerForCausalLM")
def causal_lm(case: Case) -> Outcome:
    """The network in parallel, then the same tokens as a prefill and single steps; gradients of layer 0."""
    config = case.config
    model = TransNormerLM(
        TransNormerConfig(
            vocab_size=config["vocab_size"],
            dim=config["decoder_embed_dim"],
            num_layers=config["decoder_layers"],
            num_heads=config["decoder_attention_heads"],
            hidden=config["glu_dim"],
        )
    )
    model.load_reference(case.state)
    model.train(case.mode == "train")
    tokens = case.inputs["input_ids"]
    hidden = model.features(tokens)
    outputs = {"logits": model.head(hidden), "last_hidden_state": hidden}
    model.eval()
    chunks, state, decoded = case.call["kwargs"], model.init_state(tokens.shape[0]), []
    with torch.no_grad():
        for piece in tokens.split([chunks["prefill"], *[1] * chunks["decode_steps"]], dim=1):
            logits, state = model.step(piece, state)
            decoded.append(logits)
    outputs["decode_logits"] = torch.cat(decoded, dim=1)
    outputs |= {f"kv_state.{layer}": each.kv for layer, each in enumerate(state) if isinstance(each, LinearState)}
    block = model.blocks[0]
    mixer, mlp = block.get_submodule("mixer"), dict(block.get_submodule("mlp").named_parameters())
    assert isinstance(mixer, NormLinearAttention)
    leaves = {f"token_mixer.{name}": leaf for name, leaf in _layer_leaves(mixer).items()}
    names = {"l1": "gate_proj", "l2": "up_proj", "l3": "down_proj"}
    leaves |= {f"channel_mixer.{theirs}.weight": mlp[f"{ours}.weight"] for theirs, ours in names.items()}
    return Outcome(outputs=outputs, leaves={f"model.layers.0.{name}": leaf for name, leaf in leaves.items()})
