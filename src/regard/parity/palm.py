"""Parity with christianThardy/Partial-Attention-Language-Model: partial attention and the layer that holds it."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.mixers.sequence.palm import PartialAttention, own_name
from regard.models.language.palm_seq2seq import PALMSeq2SeqConfig, palm_layer
from regard.models.language.seq2seq import Layout
from regard.models.language.seq2seq_blocks import REFERENCE_LIMIT, Seq2SeqBlock, reference_name
from regard.parity.adapters import Case, Outcome, adapter


@adapter("palm/model/attention.py:PALMPartialAttention")
def partial_attention(case: Case) -> Outcome:
    """The second attention, in the parts that a network calls."""
    config = case.config
    mixer = PartialAttention(
        config["hidden_size"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_kv_heads"],
        activation="silu",
        limit=REFERENCE_LIMIT,
        out_bias=False,
        rope_base=config["rope_theta"],
    )
    mixer.load_reference(case.state)
    mixer.train(case.mode == "train")
    x, source = case.inputs["hidden_states"], case.inputs["source_states"]
    places, rows = _positions(case.call["kwargs"]["source_len"], x)
    q = mixer.queries(x, torch.cat((places, rows), dim=1))
    y = mixer.attend(q, *mixer.keys_values(source, places))
    parameters = dict(mixer.named_parameters())
    return Outcome(
        outputs={"y": y},
        leaves={
            "in.hidden_states": x,
            "in.source_states": source,
            **{name: parameters[own_name(name)] for name in case.state},
        },
    )


@adapter("palm/model/palm.py:PALMLayer")
def layer(case: Case) -> Outcome:
    """A whole layer; the masks are ours, by the source's length."""
    config = case.config
    block = Seq2SeqBlock(
        PALMSeq2SeqConfig(
            vocab_size=config["vocab_size"],
            dim=config["hidden_size"],
            num_heads=config["num_attention_heads"],
            num_kv_heads=config["num_kv_heads"],
            mlp_dim=config["intermediate_size"],
            norm="rms",
            norm_eps=config["layer_norm_eps"],
            feed_forward="swiglu",
            bias=False,
            positions="rotary",
            rope_base=config["rope_theta"],
            dropout=config["hidden_dropout_prob"],
            attn_drop=config["attention_probs_dropout_prob"],
        ),
        reader="partial",
    )
    block.load_reference(case.state)
    block.train(case.mode == "train")
    x = case.inputs["hidden_states"]
    places, rows = _positions(case.call["kwargs"]["source_len"], x)
    parameters = dict(block.named_parameters())
    return Outcome(
        outputs={"y": palm_layer(block, x, Layout(None, places, rows))},
        leaves={"in.hidden_states": x, **{name: parameters[reference_name(name)] for name in case.state}},
    )


def _positions(source_len: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """0..S-1 for the source and 0..T-1 for the target."""
    return torch.arange(source_len)[None], torch.arange(x.shape[1] - source_len)[None]
