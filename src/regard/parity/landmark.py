"""Parity with epfml/landmark-attention: the grouped softmax, the network, and one layer with its memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regard.layers.reference_names import rename
from regard.mixers.sequence.landmark import LandmarkAttention, pairs_of_halves
from regard.models.language.landmark import REFERENCE_NAMES, LandmarkLM
from regard.models.language.landmark_config import LandmarkConfig
from regard.ops.landmark_attention import grouped_softmax
from regard.ops.landmark_stream import IGNORED
from regard.ops.visibility import visible_keys
from regard.parity.adapters import Case, Leaf, Outcome, Stacked, adapter


class Paired:
    """A projection to rotary channels, whose pairs are neighbours in the reference and half a head apart in ours.

    Args:
        weight: ours.
        num_heads: its heads.
    """

    def __init__(self, weight: Tensor, num_heads: int) -> None:
        self._weight, self._num_heads = weight, num_heads

    def parts(self) -> list[Tensor]:
        """Our tensors, of which gradients are taken."""
        return [self._weight]

    def assemble(self, gradients: Sequence[Tensor]) -> Tensor:
        """The gradient in the reference's order."""
        return pairs_of_halves(gradients[0], self._num_heads)


@adapter("lm_benchmark/models/landmark.py:landmark_grouped_softmax")
def landmark_grouped_softmax(case: Case) -> Outcome:
    """The weights from scores, as one softmax."""
    scores, landmarks = case.inputs["scores"], case.inputs["is_mem"]
    visible = visible_keys(*scores.shape[-2:], causal=True, device=scores.device)
    assert visible is not None
    return Outcome(outputs={"probs": grouped_softmax(scores, landmarks, visible)}, leaves={"in.scores": scores})


@adapter("lm_benchmark/models/landmark.py:GPTBase")
def gpt_base(case: Case) -> Outcome:
    """The network over tokens with landmarks between them, in one pass."""
    config = case.config
    model = LandmarkLM(
        LandmarkConfig(
            vocab_size=config["vocab_size"],
            landmark_id=config["landmark_id"],
            dim=config["n_embd"],
            num_layers=config["n_layer"],
            num_heads=config["n_head"],
            seq_len=config["sequence_length"],
            window=config["sequence_length"],
            bias=config["bias"],
            dropout=config["dropout"],
            gate_drop=config["group_dropout"] or 0.0,
        )
    )
    model.load_reference(case.state)
    model.train(case.mode == "train")
    scores, targets = model.stream_scores(case.inputs["idx"]), case.inputs["targets"]
    loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    parameters = dict(model.named_parameters())
    leaves: dict[str, Leaf] = {}
    for name in case.state:
        own = rename(name, REFERENCE_NAMES)
        owner, _, kind = own.rpartition(".c_attn.")
        if owner:
            q, k, v = (parameters[f"{owner}.{part}_proj.{kind}"] for part in "qkv")
            leaves[name] = Stacked([Paired(q, config["n_head"]), Paired(k, config["n_head"]), v])
        elif (own := own.replace(".mixer.c_proj.", ".mixer.o_proj.")) in parameters:
            leaves[name] = parameters[own]
    return Outcome(outputs={"logits": scores, "loss": loss}, leaves=leaves)


@adapter("lm_benchmark/models/landmark.py:CausalSelfAttention with models/caches/mem_cache.py:MemLMCacheStorage")
def attention_with_memory(case: Case) -> Outcome:
    """Chunks of hidden states, one after the other, through one memory; landmarks stand where ours expect them."""
    config = case.config
    layer = LandmarkAttention(
        config["n_embd"],
        num_heads=config["n_head"],
        block_size=config["mem_cache_freq"],
        top_k=config["cache_topk"],
        selection=config["cache_selection_method"],
        max_blocks=config["mem_cache_size"],
        as_compared=True,
        qkv_bias=config["bias"],
        out_bias=config["bias"],
        rope_base=10000.0,
        gate_drop=config["group_dropout"] or 0.0,
    )
    layer.load_reference(case.state)
    layer.train(case.mode == "train")
    outputs, state, seen = {}, layer.init_state(case.inputs["x0"].shape[0]), 0
    for number in range(len(case.output_names)):
        x, landmarks = case.inputs[f"x{number}"], case.inputs[f"is_mem{number}"]
        spots = (torch.arange(seen, seen + x.shape[1]) % (layer.block_size + 1)) == layer.block_size
        assert torch.equal(landmarks, spots.expand_as(landmarks)), "the case's landmarks end no block"
        outputs[f"y{number}"], state = layer.step(x, state)
        seen += x.shape[1]
    return Outcome(outputs=outputs)
