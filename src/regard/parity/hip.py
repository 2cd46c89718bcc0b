"""Parity with DeepAuto-AI/hip-attention: which blocks of keys the search chooses, and attention to them."""

from __future__ import annotations

import torch

from regard.ops.block_sparse import Reach, block_sparse_attention, block_sparse_visible
from regard.ops.hip_search import search_key_blocks
from regard.parity.adapters import Case, Outcome, adapter


@adapter("src/hip_attn/v1_1/attention2_draft.py:masking_iteration_draft (run as plain numpy)")
def masking_iteration(case: Case) -> Outcome:
    """The search; rows of the reference's batch are heads of ours."""
    config = case.config
    q, k, v = (case.inputs[name][None] for name in ("q", "k", "v"))
    first = k.shape[2] - q.shape[2]
    choice = search_key_blocks(
        q,
        k,
        first=first,
        mask_k=config["mask_k"],
        block_q=config["block_size_q"],
        block_k=config["block_size_k"],
        window=config["sliding_window_size"],
    )
    reach, places = Reach(config["sliding_window_size"]), torch.tensor([first])
    visible = block_sparse_visible(choice, reach, first=places, queries=q.shape[2], keys=k.shape[2])
    return Outcome(
        outputs={
            "indices": choice.starts[0].int(),
            "ks": choice.counts[0].int(),
            "mask": visible[0].to(torch.uint8),
            "context": block_sparse_attention(q, k, v, choice, reach, first=places)[0],
        }
    )
