"""Parity with hermansh-id/rcmha: the attention layer with and without a memory, and the language model."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.mixers.sequence.rcmha import RCMHA
from regard.mixers.sequence.rcmha import REFERENCE_NAMES as ATTENTION_NAMES
from regard.models.language.rcmha import REFERENCE_NAMES, RCMHALanguageConfig, RCMHALanguageModel
from regard.parity.adapters import Case, Outcome, adapter, renamed_leaves

MAX_POSITIONS = 4096
"""Half the rows of the reference's tables."""


@adapter("rcmha/attention.py:RelativeMultiHeadAttention")
def relative_multi_head_attention(case: Case) -> Outcome:
    """The layer; queries are the last tokens of the input, the others are the memory."""
    x, mask = case.inputs["x"], case.inputs["mask"][..., 0] != 0
    queries, keys = mask.shape
    causal = not bool(mask.all())
    past = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    assert not causal or bool((mask == past).all()), "a mask that is neither causal nor full"
    layer = RCMHA(case.config["d_model"], num_heads=case.config["heads"], causal=causal, max_positions=MAX_POSITIONS)
    layer.load_reference(case.state)
    layer.train(case.mode == "train")
    rows = x.transpose(0, 1)
    memory, tokens = rows[:, : keys - queries], rows[:, keys - queries :]
    y, weights = layer.with_memory(tokens, memory), layer.map_with_memory(tokens, memory)
    return Outcome(
        outputs={"y": y.transpose(0, 1), "attn": weights.permute(2, 3, 0, 1)},
        leaves={"in.x": x, **renamed_leaves(case, layer, ATTENTION_NAMES)},
    )


@adapter("rcmha/model.py:AutoregressiveModel")
def language_model(case: Case) -> Outcome:
    """A segment behind the memory of another; the reference's new memory is the segment's own inputs."""
    config, tokens = case.config, case.inputs["ids"].T
    model = RCMHALanguageModel(
        RCMHALanguageConfig(
            vocab_size=config["n_vocab"],
            dim=config["d_model"],
            num_layers=config["n_layers"],
            num_heads=config["heads"],
            hidden=config["d_ff"],
            mem_len=tokens.shape[1],
            max_positions=MAX_POSITIONS,
            dropout=config["dropout_prob"],
        )
    )
    model.load_reference(case.state)
    model.train(case.mode == "train")
    _, memory = model.read(case.inputs["prev_ids"].T)
    scores, memory = model.read(tokens, memory)
    outputs: dict[str, Tensor] = {"logits": scores.transpose(0, 1)}
    outputs |= {f"mem{layer}": kept.transpose(0, 1) for layer, kept in enumerate(memory)}
    return Outcome(outputs=outputs, leaves=renamed_leaves(case, model, REFERENCE_NAMES))
