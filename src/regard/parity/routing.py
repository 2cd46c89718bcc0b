"""Parity with lucidrains/routing-transformer: attention in clusters, the centroids' update, the language model."""

from __future__ import annotations

from torch import Tensor

from regard.layers.centroids import Centroids
from regard.layers.routing_heads import RoutingHeads
from regard.models.language.routing import RoutingTransformerConfig, RoutingTransformerLM, own_names
from regard.ops.centroid_update import commitment_loss
from regard.ops.kmeans_routing import nearest_tokens, similarities
from regard.ops.routing_form import RoutingForm, on_sphere
from regard.parity.adapters import Case, Leaf, Outcome, Reshaped, Sliced, adapter


def _nothing(of: Tensor, like: Tensor) -> Leaf:
    """The reference's memory slots where it has none: a parameter of size 0, which ours lacks."""
    return Reshaped(Sliced(of, slice(0, 0)), like.shape)


@adapter("routing_transformer/routing_transformer.py:KmeansAttention")
def kmeans_attention(case: Case) -> Outcome:
    """Attention in clusters between the projections."""
    config = case.config
    form = RoutingForm(
        window_size=config["window_size"], causal=config["causal"], shared_qk=config["shared_qk"], mode="compat"
    )
    heads = RoutingHeads(
        form,
        num_heads=config["num_heads"],
        num_clusters=config["num_clusters"],
        head_dim=config["head_dim"],
        num_memory=config.get("num_mem_kv", 0),
    )
    heads.load_reference(case.state)
    heads.train(case.mode == "train")
    q, k, v = (case.inputs[name] for name in ("q", "k", "v"))
    routed = heads.prepare(q, k, v)
    chosen = nearest_tokens(similarities(routed.q_items, heads.centroids.means), form.window_size)
    leaves: dict[str, Leaf] = {"in.q": q, "in.k": k, "in.v": v}
    memory = heads.memory or (None, None)
    for name, ours in zip(("mem_key", "mem_value"), memory, strict=True):
        leaves[name] = _nothing(v, case.state[name]) if ours is None else ours
    return Outcome(
        outputs={
            "y": heads(routed),
            "aux_loss": heads.commitment_loss(routed.q_items, routed.k_items),
            "q_indices": chosen.flatten(2),
        },
        leaves=leaves,
    )


@adapter("routing_transformer/routing_transformer.py:Kmeans")
def kmeans(case: Case) -> Outcome:
    """One training call, and the update after it."""
    config = case.config
    centroids = Centroids(
        num_heads=config["num_heads"],
        num_clusters=config["num_clusters"],
        head_dim=config["head_dim"],
        mode="compat",
        decay=config["ema_decay"],
    )
    centroids.means.copy_(case.state["means"])
    items = on_sphere(case.inputs["x"], mode="compat")
    outputs = {
        "dists": similarities(items, centroids.means).transpose(2, 3),
        "loss": config["commitment"] * commitment_loss(items, centroids.means),
    }
    centroids.observe(items)
    assert centroids.observed is not None
    outputs["batch_means"] = centroids.observed[1]
    centroids.update()
    return Outcome(outputs={**outputs, "means_after": centroids.means})


@adapter("routing_transformer/routing_transformer.py:RoutingTransformerLM")
def routing_transformer_lm(case: Case) -> Outcome:
    """The network, and the losses of all its layers."""
    config = case.config
    model = RoutingTransformerLM(
        RoutingTransformerConfig(
            vocab_size=config["num_tokens"],
            dim=config["dim"],
            num_layers=config["depth"],
            num_heads=config["heads"],
            local_heads=config["n_local_attn_heads"],
            head_dim=config["dim_head"],
            mode="compat",
            num_clusters=config["max_seq_len"] // config["window_size"],
            window_size=config["window_size"],
            block_size=config["local_attn_window_size"],
            feed_forward="gelu",
        )
    )
    model.load_reference(case.state)
    model.train(case.mode == "train")
    logits, loss = model.forward_with_loss(case.inputs["ids"])
    parameters = dict(model.named_parameters())
    leaves: dict[str, Leaf] = {}
    for name, tensor in case.state.items():
        if tensor.numel() == 0:
            leaves[name] = _nothing(model.embedding.weight, tensor)
        for own in set(own_names({name: tensor})) & set(parameters):
            leaves[name] = parameters[own]
    return Outcome(outputs={"logits": logits, "aux_loss": loss.reshape(1)}, leaves=leaves)
