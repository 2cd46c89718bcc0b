"""Parity with lucidrains/titans-pytorch: its neural memory, and its network with the memory as a context."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.layers.chunk_memory import ChunkMemory
from regard.models.language.titans_lucidrains import MemoryAsContextTransformer, TransformerConfig
from regard.parity.adapters import Case, Leaf, Outcome, Reshaped, adapter


@adapter("titans_pytorch/neural_memory.py:NeuralMemory")
def neural_memory(case: Case) -> Outcome:
    """One call, then single tokens after it."""
    config, network = case.config, case.config["default_model_kwargs"]
    memory = ChunkMemory(
        config["dim"],
        num_heads=config.get("heads", 1),
        head_dim=config.get("dim_head"),
        chunk_size=config["chunk_size"],
        batch_size=config.get("batch_size"),
        depth=network["depth"],
        expansion=int(network["expansion_factor"]),
        residual_norm=config.get("mem_model_norm_add_residual", True),
        qk_norm=config.get("qk_rmsnorm", False),
    )
    memory.load_reference(case.state)
    memory.train(case.mode == "train")
    x = case.inputs["x"]
    retrieved, state, stored = memory(x)
    outputs = {"retrieved": retrieved, "surprise_loss": stored.losses, "adaptive_lr": stored.steps}
    for name, last, momentum, updates in zip(
        _weight_names(memory), state.last, state.momentum, stored.updates, strict=True
    ):
        outputs[f"final_weight.{name}"] = _their_shape(name, last)
        outputs[f"final_momentum.{name}"] = _their_shape(name, momentum)[None]
        outputs[f"updates.{name}"] = _their_shape(name, updates)
    following = []
    for token in case.inputs["x_next"].split(1, dim=1):
        read, state, _ = memory(token, state)
        following.append(read)
    outputs["retrieved_next"] = torch.cat(following, dim=1)
    own = dict(memory.named_parameters())
    leaves: dict[str, Leaf] = {"in.x": x}
    for key, gradient in case.gradients[""].items():
        if not key.startswith("in."):
            leaves[key] = Reshaped(own[memory.own_name(key)], gradient.shape)
    return Outcome(outputs=outputs, leaves=leaves)


@adapter("titans_pytorch/mac_transformer.py:MemoryAsContextTransformer")
def memory_as_context(case: Case) -> Outcome:
    """The whole network."""
    config = case.config
    network = MemoryAsContextTransformer(
        TransformerConfig(
            vocab_size=config["num_tokens"],
            dim=config["dim"],
            num_layers=config["depth"],
            num_heads=config["heads"],
            head_dim=config["dim_head"],
            segment_len=config["segment_len"],
            num_persistent=config["num_persist_mem_tokens"],
            num_longterm=config["num_longterm_mem_tokens"],
            memory_layers=tuple(config["neural_memory_layers"]),
            memory_expansion=2,
        )
    )
    network.load_reference(case.state)
    network.train(case.mode == "train")
    own = dict(network.named_parameters())
    leaves: dict[str, Leaf] = {key: own[network.own_name(key)] for key in case.gradients[""]}
    return Outcome(outputs={"logits": network(case.inputs["ids"])}, leaves=leaves)


def _weight_names(memory: ChunkMemory) -> list[str]:
    """Their names of the memory's weights, in our order."""
    wrapped = "model." if memory.residual_norm else ""
    return [f"{wrapped}weights.{number}" for number in range(len(memory.weights))] + ["norm.gamma"] * (
        memory.residual_norm
    )


def _their_shape(name: str, tensor: Tensor) -> Tensor:
    """Rows and heads as one axis, and a gain without an axis of inputs."""
    flat = tensor.flatten(0, 1)
    return flat.squeeze(-2) if name == "norm.gamma" else flat
